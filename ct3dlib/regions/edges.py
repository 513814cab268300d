"""Edges between air and tissue at a volume's own resolution, from labels of the working grid."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ct3dlib.regions.label_map import LUNGS, region_id
from ct3dlib.regions.morphology import Mask
from ct3dlib.regions.working_grid import Scan, cells

AIR = (*LUNGS, region_id("trachea_bronchi"))
BONES = (region_id("spine"), region_id("ribs_chest_wall"))
BOWEL = region_id("stomach_bowel")
EDGE_HU = -400.0  # halfway between lung and soft tissue
MIXED_HU = (-780.0, -30.0)  # means of cells that hold both; purer cells stay as they are
FACES = ndimage.generate_binary_structure(3, 1)


def to_volume_grid_with_edges(
    labels: NDArray[np.uint8], scan: Scan, array: NDArray[np.generic]
) -> NDArray[np.uint8]:
    """Return labels of the working grid on a volume's grid, lungs and airway cut at their edge.

    Where air and tissue meet, a cell of mixed HU is divided by the HU of its voxels: below -400
    they take the label of the air in or beside it, above that of the tissue. All other voxels
    take the label of the cell that their centre lies in. Bowel keeps its gas and its wall.

    Args:
        labels: Region ids on the working grid, D H W.
        scan: The CT on that grid.
        array: The CT on its own grid, HU, D H W; same field of view.
    """
    below, above = _sides(labels, scan)
    d, h, w = (cells(m, n) for m, n in zip(labels.shape, array.shape, strict=True))
    out = np.empty(array.shape, np.uint8)
    for plane, hu, cell in zip(out, array, d, strict=True):
        plane[...] = above[cell][h][:, w]
        if (below[cell] != above[cell]).any():
            np.copyto(plane, below[cell][h][:, w], where=hu < EDGE_HU)
    return out


def _sides(labels: NDArray[np.uint8], scan: Scan) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the label of each cell's voxels below and above the edge's HU."""
    air = np.isin(labels, AIR)
    mixed = (scan.hu > MIXED_HU[0]) & (scan.hu < MIXED_HU[1]) & (labels != BOWEL)
    beside_air = _beside(labels, air)
    below = np.where(mixed & (beside_air > 0), np.where(air, labels, beside_air), labels)
    surface = air & np.asarray(ndimage.binary_dilation(~air, FACES), bool)
    beside_tissue = _beside(labels, ~air & ~np.isin(labels, BONES))
    return below, np.where(mixed & surface, beside_tissue, labels)


def _beside(labels: NDArray[np.uint8], source: Mask) -> NDArray[np.uint8]:
    """Return the highest label of the source among a cell and the six beside it; 0: none."""
    shown = np.where(source, labels, np.uint8(0))
    return np.asarray(ndimage.grey_dilation(shown, footprint=FACES), np.uint8)
