"""Training of a segmentation decoder over a volume encoder: the class of every voxel.

Letters: B volumes, D H W voxels, N all of them in a row, K classes, class 0 the background.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from ct3dlib.config import MaeSegmentSpec, SegmenterNetworkSpec
from ct3dlib.losses.segmentation import balanced_cross_entropy, soft_dice_loss
from ct3dlib.models.segmenter import Segmenter
from ct3dlib.nn.intensity import windowed
from ct3dlib.objectives.encoder_layers import Layers, decayed_layers
from ct3dlib.training.augment import augment
from ct3dlib.training.objective import Batch, Metrics, Objective


class SegmentObjective(Objective):
    """A segmenter and its loss: soft Dice and cross entropy.

    A batch holds `values` B 1 D H W as stored, `window` B 2 and `mask` B 1 D H W, the class of
    each voxel.
    """

    def __init__(self, spec: MaeSegmentSpec, network: SegmenterNetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.model = Segmenter(network)
        self.model.encoder.requires_grad_(not spec.frozen)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        """Return the weighted sum of the two."""
        del turn  # there is one
        volumes, mask = self._seen(batch)
        return self._error(self.model(volumes).float(), mask), {}

    def validate(self, batch: Batch) -> Metrics:
        """Return the loss, and `dice` of the classes as they are told."""
        volumes, mask = self._seen(batch)
        logits = self.model(volumes).float()
        told = logits.argmax(1, keepdim=True)
        dice = foreground_dice(told, mask, num_classes=self.model.spec.num_classes)
        return {"loss": self._error(logits, mask).detach(), "dice": dice.mean()}

    def train(self, mode: bool = True) -> "SegmentObjective":
        """Set the mode of all but a frozen encoder, which has nothing to draw."""
        super().train(mode)
        if self.spec.frozen:
            self.model.encoder.eval()
        return self

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return the slice with most of a volume's mask: as it is, its classes, those told."""
        volumes, mask = self._seen(batch)
        low, high = self.model.spec.encoder.range
        volume = ((volumes[0, 0] - low) / (high - low)).clamp(0, 1)
        told = self.model(volumes[:1])[0].argmax(0)
        shades = [classes / (self.model.spec.num_classes - 1) for classes in (mask[0, 0], told)]
        fullest = (mask[0, 0] > 0).sum((1, 2)).argmax()
        return {"classes": torch.cat([x[fullest] for x in (volume, *shades)], dim=1)[None]}

    def blocks(self) -> Sequence[nn.Module]:
        """Return the encoder's blocks."""
        return list(self.model.encoder.blocks)

    def layers(self, turn: str) -> Layers:
        """Return the encoder's layers, each slower than the next, and the decoder."""
        trained = self.parameters_of(turn)
        return decayed_layers(self.model.encoder, trained, decay=self.spec.layer_decay)

    def _error(
        self, logits: Float[Tensor, "B K D H W"], mask: Integer[Tensor, "B 1 D H W"]
    ) -> Float[Tensor, ""]:
        """Return what logits cost."""
        overlap = soft_dice_loss(logits, mask).mean()
        entropy = balanced_cross_entropy(logits, mask).mean()
        return self.spec.dice * overlap + self.spec.cross_entropy * entropy

    def _seen(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "B 1 D H W"], Integer[Tensor, "B 1 D H W"]]:
        """Return volumes in the model's range and their masks, both changed in training."""
        value_range = self.model.spec.encoder.range
        volumes = windowed(batch["values"], batch["window"], onto=value_range)
        if not self.training:
            return volumes, batch["mask"]
        seen = {**batch, "volume": volumes}
        changed = augment(seen, self.spec.augment, value_range=value_range)
        return changed["volume"], changed["mask"]


def foreground_dice(
    told: Integer[Tensor, "B 1 D H W"], mask: Integer[Tensor, "B 1 D H W"], *, num_classes: int
) -> Float[Tensor, " B"]:
    """Return the Dice of each volume, the mean over the classes that either mask holds.

    The background does not count. Where neither mask holds anything else it is 1.
    """
    one, other = told.flatten(1).long(), mask.flatten(1).long()
    both = _voxels(torch.where(one == other, one, 0), num_classes)
    either = _voxels(one, num_classes) + _voxels(other, num_classes)
    dice = (2 * both / either.clamp_min(1)).sum(1)
    held = (either > 0).sum(1)
    return torch.where(held > 0, dice / held.clamp_min(1), 1.0)


def _voxels(classes: Integer[Tensor, "B N"], num_classes: int) -> Integer[Tensor, "B _"]:
    """Return the number of voxels of each class but the background."""
    counts = classes.new_zeros(len(classes), num_classes)
    return counts.scatter_add_(1, classes, torch.ones_like(classes))[:, 1:]
