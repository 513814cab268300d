"""Stored volumes as training items."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch import Tensor

from ct3dlib.cohort.store import StoredVolume, key_of
from ct3dlib.config import Shape
from ct3dlib.scan.intensity import apply_window
from ct3dlib.training.loader import Items


@dataclass(frozen=True, eq=False)
class CropItems(Items):
    """Random crops of stored volumes: `volume` 1 D H W, float32 in `range`.

    Each axis of a crop starts anywhere it fits. A volume that is smaller than the crop is padded at
    the far end with the low end of the range.

    Args:
        volumes: HU.
        crop: Voxels of a crop.
        window: HU that map to `range`; beyond it values are clipped.
        range: What models see.
    """

    volumes: Sequence[StoredVolume]
    _: KW_ONLY
    crop: Shape
    window: tuple[float, float]
    range: tuple[float, float]

    def __len__(self) -> int:
        """Return the number of volumes."""
        return len(self.volumes)

    @property
    def key(self) -> str:
        """A hash of the volumes' contents, the crop and the window."""
        contents = [volume.sha256 for volume in self.volumes]
        return key_of("crop", contents, self.crop, self.window, self.range)

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return a crop of one volume at a place drawn from `rng`."""
        volume = self.volumes[index]
        sizes = list(zip(volume.shape, self.crop, strict=True))
        start = [int(rng.integers(max(0, size - crop) + 1)) for size, crop in sizes]
        stop = [min(a + crop, size) for a, (size, crop) in zip(start, sizes, strict=True)]
        windowed = apply_window(volume.read(start, stop), self.window, onto=self.range)
        pad = [(0, max(0, crop - size)) for size, crop in sizes]
        padded = np.pad(windowed, pad, constant_values=self.range[0])
        return {"volume": torch.from_numpy(padded)[None]}


@dataclass(frozen=True, eq=False)
class WholeItems(Items):
    """Whole stored volumes: `volume` 1 D H W, float32 in `range`.

    Args:
        volumes: HU, all of one shape.
        window: HU that map to `range`; beyond it values are clipped.
        range: What models see.

    Raises:
        ValueError: The shapes differ.
    """

    volumes: Sequence[StoredVolume]
    _: KW_ONLY
    window: tuple[float, float]
    range: tuple[float, float]

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
        return key_of("whole", [volume.sha256 for volume in self.volumes], self.window, self.range)

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return one volume; nothing is drawn."""
        del rng
        windowed = apply_window(self.volumes[index].read(), self.window, onto=self.range)
        return {"volume": torch.from_numpy(windowed)[None]}
