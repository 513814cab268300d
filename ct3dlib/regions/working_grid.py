"""The coarse isotropic grid that classical regions are found on, and the way back."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ct3dlib.regions.morphology import Mask, Spacing
from ct3dlib.scan.volume import Volume


@dataclass(frozen=True, eq=False)
class Scan:
    """A CT on the working grid.

    Args:
        hu: D H W, HU, float32.
        spacing: (D, H, W), mm; close to isotropic.
    """

    hu: NDArray[np.float32]
    spacing: Spacing

    @property
    def empty(self) -> Mask:
        """A mask without a voxel."""
        return np.zeros(self.hu.shape, bool)

    @property
    def voxel(self) -> float:
        """Edge of a voxel: the cube root of its volume, mm."""
        return float(np.prod(self.spacing)) ** (1 / 3)

    def voxels(self, ml: float) -> int:
        """Return how many voxels fill a volume in ml, at least 1."""
        return max(1, round(ml * 1000 / self.voxel**3))

    def millimetres(self) -> tuple[NDArray[np.float64], ...]:
        """Return the open coordinate axes (D, H, W) of the voxel centres, mm from the corner."""
        return np.meshgrid(
            *((np.arange(n) + 0.5) * s for n, s in zip(self.hu.shape, self.spacing, strict=True)),
            indexing="ij",
            sparse=True,
        )


def to_working_grid(volume: Volume, spacing: float) -> Scan:
    """Average a volume over the cells of an isotropic grid with the same field of view.

    A cell's value is the mean of what it covers, so a coarse grid is not aliased and a fine
    one repeats voxels. The spacing is rounded to fit whole cells into the volume.

    Args:
        volume: HU, D H W.
        spacing: Of the working grid, mm.
    """
    shape = tuple(
        max(1, round(n * s / spacing)) for n, s in zip(volume.shape, volume.spacing, strict=True)
    )
    depth, height, width = (overlaps(n, m) for n, m in zip(volume.shape, shape, strict=True))
    planes = [height @ plane.astype(np.float32) @ width.T for plane in volume.array]
    hu = np.tensordot(depth, np.stack(planes), axes=1)
    d, h, w = (n * s / m for n, s, m in zip(volume.shape, volume.spacing, shape, strict=True))
    return Scan(hu, (d, h, w))


def smooth(scan: Scan) -> NDArray[np.float32]:
    """Return the HU without noise and thin vessels: a Gaussian of 4 mm."""
    return np.asarray(ndimage.gaussian_filter(scan.hu, [4 / s for s in scan.spacing]), np.float32)


def overlaps(source: int, target: int) -> NDArray[np.float32]:
    """Return the share of each target cell (rows) that each source voxel (columns) covers."""
    edges = np.arange(target + 1) * (source / target)
    low = np.maximum(edges[:-1, None], np.arange(source))
    high = np.minimum(edges[1:, None], np.arange(1, source + 1))
    return (np.clip(high - low, 0, None) * (target / source)).astype(np.float32)


def to_volume_grid(labels: NDArray[np.uint8], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return labels of the working grid on a volume's grid; each voxel takes its centre's cell."""
    out = labels
    for axis, n in enumerate(shape):
        out = out.take(cells(labels.shape[axis], n), axis=axis)
    return out


def cells(count: int, voxels: int) -> NDArray[np.intp]:
    """Return the cell of `count` along an axis that the centre of each of `voxels` lies in."""
    return ((np.arange(voxels) + 0.5) * count / voxels).astype(np.intp)
