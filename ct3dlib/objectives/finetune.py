"""Fine-tuning of a volume encoder: findings, classes or numbers of whole volumes.

Letters: B volumes, D H W voxels, K outputs: findings, classes or numbers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ct3dlib.config import MaeFinetuneSpec, PredictorNetworkSpec
from ct3dlib.errors import ConfigError
from ct3dlib.models.predictor import Predictor
from ct3dlib.nn.intensity import windowed
from ct3dlib.objectives.encoder_layers import Layers, decayed_layers
from ct3dlib.training.augment import augment
from ct3dlib.training.mixing import mix
from ct3dlib.training.objective import Batch, Metrics, Objective, masked_mean

# A finding that next to no volume has must not outweigh all others.
_LARGEST_WEIGHT = 20.0


class FinetuneObjective(Objective):
    """A predictor and its loss.

    A batch holds `values` B 1 D H W as stored, `window` B 2 and `targets` B K: 0 or 1 of each
    finding (NaN: not known), a class as a one-hot row, or numbers.

    Args:
        spec: Task, augmentation, mixing, weights of classes.
        network: Of the model.
        targets: Of the training, for the weights of classes and the scale of numbers.
    """

    class_weights: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        spec: MaeFinetuneSpec,
        network: PredictorNetworkSpec,
        *,
        targets: Float[Tensor, "N K"],
    ) -> None:
        super().__init__()
        self.spec = spec
        self.model = Predictor(network)
        if spec.frozen:
            self.model.encoder.requires_grad_(False)
        self.register_buffer("class_weights", class_weights(spec, targets), persistent=False)
        mean, std = target_scale(spec, targets)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        """Return the mean over volumes and what is known of them.

        `accuracy` is the share that is told right, `balanced_accuracy` the share by the weights of
        classes; of numbers `rmse` is in deviations of the training's.
        """
        del turn  # there is one
        volumes, targets = self._seen(batch)
        outputs = self.model(volumes).float()
        known = ~targets.isnan()
        loss = masked_mean(self._errors(outputs, targets.nan_to_num()), known)
        return loss, self._metrics(outputs.detach(), targets.nan_to_num(), known=known)

    def weight(self, batch: Batch, turn: str) -> Tensor:
        """Return how many targets are known; mixed with an unknown one, one is unknown too."""
        del turn
        known = ~batch["targets"].isnan()
        if self.training and (self.spec.mixup or self.spec.cutmix):
            known = known & known.roll(1, 0)
        return known.float().sum()

    def blocks(self) -> Sequence[nn.Module]:
        """Return the encoder's blocks."""
        return list(self.model.encoder.blocks)

    def layers(self, turn: str) -> Layers:
        """Return the encoder's layers, each slower than the next, and the head."""
        trained = self.parameters_of(turn)
        return decayed_layers(self.model.encoder, trained, decay=self.spec.layer_decay)

    def _seen(self, batch: Batch) -> tuple[Float[Tensor, "B 1 D H W"], Float[Tensor, "B K"]]:
        """Return volumes in the model's range and targets; both changed and mixed in training."""
        value_range = self.model.spec.encoder.range
        volumes = windowed(batch["values"], batch["window"], onto=value_range)
        targets = (batch["targets"] - self.mean) / self.std
        if not self.training:
            return volumes, targets
        seen = {**batch, "volume": volumes}
        volumes = augment(seen, self.spec.augment, value_range=value_range)["volume"]
        mixup, cutmix = self.spec.mixup, self.spec.cutmix
        return mix(volumes, targets, batch["item_seed"], mixup=mixup, cutmix=cutmix)

    def _errors(
        self, outputs: Float[Tensor, "B K"], targets: Float[Tensor, "B K"]
    ) -> Float[Tensor, "B K"]:
        """Return what each output costs."""
        smoothing = self.spec.label_smoothing if self.training else 0.0
        match self.spec.task:
            case "binary" | "multilabel":
                soft = targets * (1 - smoothing) + smoothing / 2
                return F.binary_cross_entropy_with_logits(
                    outputs, soft, pos_weight=self.class_weights, reduction="none"
                )
            case "multiclass":
                classes = outputs.shape[1]
                soft = targets * (1 - smoothing) + smoothing / classes
                # The mean over K terms is the cross entropy of a volume.
                return -classes * self.class_weights * soft * outputs.log_softmax(1)
            case "regression":
                return (outputs - targets).square()

    def _metrics(
        self,
        outputs: Float[Tensor, "B K"],
        targets: Float[Tensor, "B K"],
        *,
        known: Bool[Tensor, "B K"],
    ) -> Metrics:
        """Return how often outputs are right; of mixed targets the larger part counts."""
        match self.spec.task:
            case "binary" | "multilabel":
                present = targets > 0.5
                right = ((outputs > 0) == present).float()
                weights = torch.where(present, self.class_weights, 1.0) * known
                balanced = (right * weights).sum() / weights.sum().clamp_min(1e-6)
                return {"accuracy": masked_mean(right, known), "balanced_accuracy": balanced}
            case "multiclass":
                classes = targets.argmax(1)
                right = (outputs.argmax(1) == classes).float()
                weights = self.class_weights[classes]
                balanced = (right * weights).sum() / weights.sum()
                return {"accuracy": right.mean(), "balanced_accuracy": balanced}
            case "regression":
                return {"rmse": masked_mean((outputs - targets).square(), known).sqrt()}


def class_weights(spec: MaeFinetuneSpec, targets: Float[Tensor, "N K"]) -> Float[Tensor, " K"]:
    """Return what a present finding, or an item of each class, counts.

    Balanced: absent over present volumes of a finding, at most 20, so that a logit of 0 lies where
    both errors are equally rare; of classes, the weight that gives each the same sum.

    Raises:
        ConfigError: The config gives another number of weights than there are outputs.
    """
    count = targets.shape[1]
    match spec.class_weights:
        case tuple() as given:
            if len(given) != count:
                raise ConfigError(
                    f"class_weights: {len(given)} numbers for {count} outputs; give one each"
                )
            return torch.tensor(given)
        case "balanced" if spec.task != "regression":
            present, known = targets.nansum(0), (~targets.isnan()).sum(0)
            if spec.task == "multiclass":
                return len(targets) / (count * present.clamp_min(1))
            ratio = ((known - present) / present.clamp_min(1)).clamp(
                1 / _LARGEST_WEIGHT, _LARGEST_WEIGHT
            )
            return torch.where(present > 0, ratio, 1.0)
        case _:
            return torch.ones(count)


def target_scale(
    spec: MaeFinetuneSpec, targets: Float[Tensor, "N K"]
) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """Return mean and deviation of numbers, which are learnt in deviations; 0 and 1 of labels."""
    count = targets.shape[1]
    if spec.task != "regression":
        return torch.zeros(count), torch.ones(count)
    mean = targets.nanmean(0)
    spread = (targets - mean).square().nanmean(0).sqrt()
    return mean, torch.where(spread > 0, spread, 1.0)
