"""Stored volumes as training items: random crops, whole volumes, all patches of a grid."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ct3dlib.cohort.store import StoredVolume, key_of
from ct3dlib.config import Axes, Shape
from ct3dlib.scan.axes import swapped
from ct3dlib.training.loader import Items
from ct3dlib.training.patches import draw_start, read_box


@dataclass(frozen=True, eq=False)
class CropItems(Items):
    """Random crops of stored volumes: `volume` 1 D H W, float32 in `range`.

    Each axis of a crop starts anywhere it fits. A volume that is smaller than the crop is padded at
    the far end with the low end of the range.

    Args:
        volumes: Of one domain; MR keeps the windows of its volumes.
        crop: Voxels of a crop.
        window: HU that map to `range`; beyond it values are clipped.
        range: What models see.
        axes: The order in which they see it: that of `crop` and of an item.
    """

    volumes: Sequence[StoredVolume]
    _: KW_ONLY
    crop: Shape
    window: tuple[float, float]
    range: tuple[float, float]
    axes: Axes = "dhw"

    def __len__(self) -> int:
        """Return the number of volumes."""
        return len(self.volumes)

    @property
    def key(self) -> str:
        """A hash of the volumes' contents, the crop and the window."""
        contents = [volume.sha256 for volume in self.volumes]
        return key_of("crop", contents, self.crop, self.window, self.range, self.axes)

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return a crop of one volume at a place drawn from `rng`."""
        volume = self.volumes[index]
        start = draw_start(swapped(volume.shape, self.axes), self.crop, rng)
        box = read_box(
            volume,
            start,
            self.crop,
            window=self.window,
            value_range=self.range,
            axes=self.axes,
        )
        return {"volume": torch.from_numpy(box)[None]}


@dataclass(frozen=True, eq=False)
class GridItems(Items):
    """All patches of a grid over every volume: each is one item, so an epoch holds each once.

    Patches start at the multiples of the stride, the first at voxel 0, until the volume is
    covered. The last one of an axis is not shifted inwards but padded at the far end with the low
    end of the range: with a stride of the patch's own shape every voxel is in exactly one patch.

    An item holds `volume` (1 D H W, float32 in `range`), `valid` (1 D H W bool: False where it is
    padded), `start` (3 int64: its first voxel, in the order of `axes`) and `volume_index` (int64:
    place in `volumes`).

    Args:
        volumes: Of one domain; MR keeps the windows of its volumes.
        patch: Voxels of a patch.
        stride: Voxels between the starts of neighbours; `patch` for patches that do not overlap.
        window: HU that map to `range`; beyond it values are clipped.
        range: What models see.
        axes: The order in which they see it: that of `patch`, `stride` and of an item.

    Raises:
        ValueError: The stride is longer than the patch, so that voxels would be left out.
    """

    volumes: Sequence[StoredVolume]
    _: KW_ONLY
    patch: Shape
    stride: Shape
    window: tuple[float, float]
    range: tuple[float, float]
    axes: Axes = "dhw"

    def __post_init__(self) -> None:
        """Check that the patches leave nothing out."""
        if any(step > n for step, n in zip(self.stride, self.patch, strict=True)):
            raise ValueError(
                f"stride {self.stride} leaves gaps between patches of {self.patch}; lower it to at "
                f"most the patch"
            )

    def __len__(self) -> int:
        """Return the number of patches of all volumes."""
        return int(self._ends[-1]) if len(self.volumes) else 0

    @property
    def key(self) -> str:
        """A hash of the volumes' contents, the grid and the window."""
        contents = [volume.sha256 for volume in self.volumes]
        seen = (self.window, self.range, self.axes)
        return key_of("grid", contents, self.patch, self.stride, *seen)

    def grid(self, volume: StoredVolume) -> tuple[int, int, int]:
        """Return how many patches a volume has along each axis, in the order of `axes`."""
        sizes = zip(swapped(volume.shape, self.axes), self.patch, self.stride, strict=True)
        d, h, w = (1 + math.ceil(max(0, size - n) / step) for size, n, step in sizes)
        return d, h, w

    def place(self, index: int) -> tuple[int, tuple[int, int, int]]:
        """Return which volume an item is of, and its first voxel in the order of `axes`."""
        which = int(np.searchsorted(self._ends, index, side="right"))
        grid = self.grid(self.volumes[which])
        first = int(self._ends[which]) - math.prod(grid)
        cell = np.unravel_index(index - first, grid)
        d, h, w = (int(i) * step for i, step in zip(cell, self.stride, strict=True))
        return which, (d, h, w)

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return one patch; nothing is drawn."""
        del rng
        which, start = self.place(index)
        volume = self.volumes[which]
        box = read_box(
            volume,
            start,
            self.patch,
            window=self.window,
            value_range=self.range,
            axes=self.axes,
        )
        valid = torch.zeros(self.patch, dtype=torch.bool)
        sizes = swapped(volume.shape, self.axes)
        d, h, w = (size - a for size, a in zip(sizes, start, strict=True))
        valid[:d, :h, :w] = True
        return {
            "volume": torch.from_numpy(box)[None],
            "valid": valid[None],
            "start": torch.tensor(start),
            "volume_index": torch.tensor(which),
        }

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """Number of patches up to and with each volume."""
        return np.cumsum([math.prod(self.grid(v)) for v in self.volumes], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class WholeItems(Items):
    """Whole stored volumes: `volume` 1 D H W, float32 in `range`.

    Args:
        volumes: Of one shape and domain; MR keeps the windows of its volumes.
        window: HU that map to `range`; beyond it values are clipped.
        range: What models see.
        axes: The order in which they see it: that of an item.

    Raises:
        ValueError: The shapes differ.
    """

    volumes: Sequence[StoredVolume]
    _: KW_ONLY
    window: tuple[float, float]
    range: tuple[float, float]
    axes: Axes = "dhw"

    def __post_init__(self) -> None:
        """Check that the volumes make a batch."""
        for volume in self.volumes:
            if volume.shape != self.volumes[0].shape:
                raise ValueError(
                    f"whole volumes need one shape: {self.volumes[0].volume} has "
                    f"{self.volumes[0].shape}, {volume.volume} has {volume.shape}; give their "
                    f"recipe a `shape`"
                )

    def __len__(self) -> int:
        """Return the number of volumes."""
        return len(self.volumes)

    @property
    def key(self) -> str:
        """A hash of the volumes' contents and the window."""
        contents = [volume.sha256 for volume in self.volumes]
        return key_of("whole", contents, self.window, self.range, self.axes)

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return one volume; nothing is drawn."""
        del rng
        volume = self.volumes[index]
        box = read_box(
            volume,
            (0, 0, 0),
            swapped(volume.shape, self.axes),
            window=self.window,
            value_range=self.range,
            axes=self.axes,
        )
        return {"volume": torch.from_numpy(box)[None]}
