"""OME-Zarr 0.5 metadata, so that other readers and viewers place a volume in millimetres."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROWS = {"z": 2, "y": 1, "x": 0}  # of an LPS affine
_ALIGNED = 1e-6  # mm per voxel off an axis


def multiscales(name: str, affine: NDArray[np.float64]) -> dict[str, Any]:
    """Return the attribute `ome` of a volume: one level, axes z y x in mm.

    `scale` is the spacing. Where the grid is parallel to the patient's axes, `translation` is the
    centre of the first voxel in LPS mm; OME-Zarr 0.5 has no rotations, so that an oblique volume
    has its affine in `ct3d` alone.

    Args:
        name: What viewers call the volume.
        affine: Voxel (d, h, w, 1) to LPS mm.
    """
    axes = [{"name": axis, "type": "space", "unit": "millimeter"} for axis in _ROWS]
    matrix = affine[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    transforms: list[dict[str, Any]] = [{"type": "scale", "scale": spacing.tolist()}]
    # Columns are d h w and rows x y z, so that an aligned grid is a diagonal turned over.
    if np.allclose(matrix[::-1], np.diag(spacing), rtol=0, atol=_ALIGNED):
        origin = [float(affine[row, 3]) for row in _ROWS.values()]
        transforms.append({"type": "translation", "translation": origin})
    level = {"path": "0", "coordinateTransformations": transforms}
    return {"version": "0.5", "multiscales": [{"name": name, "axes": axes, "datasets": [level]}]}
