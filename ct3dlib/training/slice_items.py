"""Axial slices of stored volumes with their regions, as training items."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch import Tensor

from ct3dlib.cohort.store import StoredVolume, key_of
from ct3dlib.config import Axes
from ct3dlib.errors import StoreError
from ct3dlib.scan.axes import swapped, to_model
from ct3dlib.training.loader import Items
from ct3dlib.training.patches import draw_start, read_box

Pair = tuple[StoredVolume, StoredVolume]


def pair_regions(volumes: Sequence[StoredVolume], regions: Sequence[StoredVolume]) -> list[Pair]:
    """Return each volume with its regions; volumes that have none are left out.

    Raises:
        StoreError: Regions lie on another grid than their volume.
    """
    found = {stored.volume: stored for stored in regions}
    pairs = [(volume, found[volume.volume]) for volume in volumes if volume.volume in found]
    for volume, labels in pairs:
        if volume.shape != labels.shape:
            raise StoreError(
                f"{volume.volume}: its regions have shape {labels.shape}, the volume "
                f"{volume.shape}; run the rule regions again"
            )
    return pairs


@dataclass(frozen=True, eq=False)
class SliceItems(Items):
    """Random slices of stored volumes: `volume` 1 1 H W in `range`, `regions` 1 1 H W int64.

    A slice is a crop of depth 1 and starts anywhere it fits. One that is smaller than the crop is
    padded at the far end with the low end of the range, region 0.

    Args:
        pairs: Volumes with their regions.
        crop: Pixels (H, W) of a slice.
        window: HU that map to `range`; beyond it values are clipped.
        range: What models see.
        axes: The order in which models see the axes of a stored volume.
    """

    pairs: Sequence[Pair]
    _: KW_ONLY
    crop: tuple[int, int]
    window: tuple[float, float]
    range: tuple[float, float]
    axes: Axes = "dhw"

    def __len__(self) -> int:
        """Return the number of volumes."""
        return len(self.pairs)

    @property
    def key(self) -> str:
        """A hash of the volumes' and regions' contents, the crop and the window."""
        contents = [(volume.sha256, regions.sha256) for volume, regions in self.pairs]
        return key_of("slice", contents, self.crop, self.window, self.range, self.axes)

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return a slice of one volume at a place drawn from `rng`."""
        volume, regions = self.pairs[index]
        shape = swapped((1, *self.crop), self.axes)
        start = draw_start(volume.shape, shape, rng)
        box = read_box(volume, start, shape, window=self.window, value_range=self.range)
        labels = np.zeros(shape, dtype=np.int64)
        stop = [min(a + n, size) for a, n, size in zip(start, shape, volume.shape, strict=True)]
        d, h, w = (b - a for a, b in zip(start, stop, strict=True))
        labels[:d, :h, :w] = regions.read(start, stop)
        return {
            "volume": torch.from_numpy(to_model(box, self.axes))[None],
            "regions": torch.from_numpy(to_model(labels, self.axes))[None],
        }
