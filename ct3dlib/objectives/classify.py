"""Training of the volume classifier: each label of a volume, present or absent.

Letters: B volumes, L labels.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ct3dlib.config import ClassifierSpec, VolumeClassifierNetworkSpec
from ct3dlib.models.classifier import VolumeClassifier
from ct3dlib.training.augment import augment
from ct3dlib.training.objective import Batch, Metrics, Objective


class ClassifyObjective(Objective):
    """Binary cross entropy of every label, nats.

    A batch holds `volume`, B 1 D H W in the recipe's range, and `labels`, B L of 0 and 1.

    Args:
        spec: Training and augmentation.
        network: Of the model.
        positive_weights: What a present label counts, where an absent one counts 1: absent over
            present volumes puts a logit of 0 where both errors are equally rare.
        value_range: The recipe's range.
    """

    positive_weights: Float[Tensor, " L"]

    def __init__(
        self,
        spec: ClassifierSpec,
        network: VolumeClassifierNetworkSpec,
        *,
        positive_weights: Float[Tensor, " L"],
        value_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        self.spec = spec
        self.value_range = value_range
        self.register_buffer("positive_weights", positive_weights, persistent=False)
        self.model = VolumeClassifier(network)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        """Return the mean over volumes and labels; `accuracy` is the share that is told right."""
        del turn  # there is one
        if self.training:
            batch = augment(batch, self.spec.augment, value_range=self.value_range)
        logits = self.model(batch["volume"]).float()
        loss = F.binary_cross_entropy_with_logits(
            logits, batch["labels"], pos_weight=self.positive_weights
        )
        right = (logits > 0) == (batch["labels"] > 0)
        return loss, {"accuracy": right.float().mean().detach()}
