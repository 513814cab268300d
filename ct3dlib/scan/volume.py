"""A 3D array with its place in the patient.

Axes are D H W; the affine maps a voxel (d, h, w, 1) to LPS millimetres (x, y, z, 1).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct3dlib.config import Domain


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume: values D H W and where they lie.

    Args:
        array: Values, D H W; HU where the domain is "hu".
        affine: 4 x 4, voxel (d, h, w, 1) to LPS mm.
        domain: What the values mean.

    Raises:
        ValueError: The array is not 3D or the affine is not a finite invertible 4 x 4 matrix.
    """

    array: NDArray[np.generic]
    affine: NDArray[np.float64]
    domain: Domain = "hu"

    def __post_init__(self) -> None:
        """Check the invariants and freeze the affine."""
        if self.array.ndim != 3:
            raise ValueError(f"a volume has 3 axes (D, H, W), not {self.array.ndim}")
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError(f"the affine must be a finite 4 x 4 matrix: {affine.tolist()}")
        if not np.array_equal(affine[3], (0, 0, 0, 1)):
            raise ValueError(f"the affine's last row must be (0, 0, 0, 1): {affine[3].tolist()}")
        if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise ValueError(f"the affine is singular: {affine[:3, :3].tolist()}")
        affine.flags.writeable = False
        object.__setattr__(self, "affine", affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along (D, H, W)."""
        depth, height, width = self.array.shape
        return depth, height, width

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of voxel centres along (D, H, W), mm."""
        d, h, w = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return d, h, w
