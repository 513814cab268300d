"""Training of the slice features: which regions does each cell of a slice hold, and how much?

Letters: B slices, K regions, H W pixels, h w cells.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ct3dlib.config import FeaturesSpec
from ct3dlib.models.slice_features import SliceFeatures
from ct3dlib.regions.label_map import COLORS
from ct3dlib.training.augment import augment
from ct3dlib.training.objective import Batch, Metrics, Objective


def region_shares(
    regions: Int[Tensor, "B H W"], *, num_regions: int, cell: int
) -> Float[Tensor, "B K h w"]:
    """Return the share of each region among the pixels of each cell; they sum to 1."""
    one_hot = F.one_hot(regions, num_regions).movedim(-1, 1).float()  # B K H W
    return F.avg_pool2d(one_hot, cell)


class SliceFeaturesObjective(Objective):
    """Cross entropy of the predicted with the true shares of regions in each cell, nats.

    A batch holds `volume`, B 1 1 H W in the recipe's range, and `regions`, B 1 1 H W; training
    changes both as `spec.augment` says.

    Args:
        spec: Model and augmentation.
        value_range: The recipe's range.
    """

    def __init__(
        self, spec: FeaturesSpec, *, value_range: tuple[float, float] = (-1.0, 1.0)
    ) -> None:
        super().__init__()
        self.spec = spec
        self.value_range = value_range
        self.model = SliceFeatures(spec.model)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        """Return the mean cross entropy over cells.

        `accuracy` is the share of cells whose likeliest region is the one that fills most of it,
        `divergence` the part of the loss that a better network could do without, nats.
        """
        del turn  # there is one
        if self.training:
            batch = augment(batch, self.spec.augment, value_range=self.value_range)
        shares = self._shares(batch)
        logits = self.model.region_logits(batch["volume"][:, :, 0])
        loss = F.cross_entropy(logits, shares)
        floor = torch.special.entr(shares).sum(dim=1).mean()
        right = logits.argmax(dim=1) == shares.argmax(dim=1)
        metrics = {"accuracy": right.float().mean(), "divergence": loss - floor}
        return loss, {name: value.detach() for name, value in metrics.items()}

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return the first slice, its regions and those predicted, cell by cell."""
        volumes = batch["volume"][:1, :, 0]  # 1 1 H W
        low, high = self.value_range
        grey = ((volumes.float() - low) / (high - low)).expand(-1, 3, -1, -1)
        predicted = self.model.region_logits(volumes).softmax(dim=1).float()
        colors = grey.new_tensor(COLORS)[: self.spec.model.num_regions] / 255
        maps = [
            F.interpolate(torch.einsum("bkhw,kc->bchw", shares, colors), grey.shape[2:])
            for shares in (self._shares(batch)[:1], predicted)
        ]
        return {"regions": torch.cat((grey, *maps), dim=3)[0]}

    def _shares(self, batch: Batch) -> Float[Tensor, "B K h w"]:
        model = self.spec.model
        return region_shares(
            batch["regions"][:, 0, 0], num_regions=model.num_regions, cell=model.cell
        )
