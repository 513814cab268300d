"""Liver, spleen and gas-filled bowel on the working grid: below the diaphragm."""

import numpy as np
from numpy.typing import NDArray

from ct3dlib.regions.bones import Spine
from ct3dlib.regions.morphology import (
    Mask,
    closing,
    components,
    dilate,
    erode,
    hull_slices,
    largest,
    opening,
)
from ct3dlib.regions.working_grid import Scan, smooth

LIVER_HU = (15.0, 200.0)
SPLEEN_HU = (15.0, 400.0)
SAME_HU = 28.0  # half width of one organ's HU after smoothing
GAS_HU = -600.0
PURE_GAS_HU = -930.0  # some of it is this empty; lung bases are not
LIVER_ML = (250.0, 4500.0)
SLAB = 50.0  # mm of height below which a volume does not tell an abdomen from a neck
SPLEEN_ML = (40.0, 1500.0)
GAS_ML = 3.0


def find_cavity(scan: Scan, body: Mask, bones: Mask) -> Mask:
    """Return what lies inside the rib cage, and deeper than 22 mm under the skin."""
    cage = hull_slices(bones) & body
    return erode(cage, 9.0, scan.spacing) | erode(body, 22.0, scan.spacing)


def find_liver(scan: Scan, cavity: Mask, spine: Spine) -> Mask:
    """Return the liver: the largest even soft tissue whose core lies right of the spine.

    What is too large for one is the tissue of a scan without an edge between organs: no liver. A
    volume of less than 50 mm has none.

    Args:
        scan: The CT.
        cavity: Where it may lie: below the diaphragm, inside the rib cage, no other organ.
        spine: The spine and its course, found.
    """
    if _is_slab(scan):
        return scan.empty
    left, _ = _around(scan, spine)
    hu = smooth(scan)
    soft = cavity & (hu > LIVER_HU[0]) & (hu < LIVER_HU[1])
    core = largest(opening(soft & (left < -25), 12.0, scan.spacing), scan.voxels(LIVER_ML[0] / 4))
    if not core.any():
        return scan.empty
    level = float(np.median(hu[core]))
    even = cavity & (np.abs(hu - level) < SAME_HU) & (left < 65)
    liver = _of_size(opening(even, 8.0, scan.spacing), LIVER_ML, scan)
    rim = dilate(liver, 6.0, scan.spacing) & (np.abs(scan.hu - level) < 2 * SAME_HU)
    return closing(liver | rim, 4.0, scan.spacing) & cavity


def find_spleen(scan: Scan, cavity: Mask, spine: Spine) -> Mask:
    """Return the spleen: thick soft tissue at the left back wall."""
    left, front = _around(scan, spine)
    hu = smooth(scan)
    soft = cavity & (hu > SPLEEN_HU[0]) & (hu < SPLEEN_HU[1]) & (left > 35) & (front < 75)
    return _of_size(opening(soft, 9.0, scan.spacing), SPLEEN_ML, scan)


def find_bowel(scan: Scan, cavity: Mask) -> Mask:
    """Return stomach and bowel as far as gas shows them: the gas with a wall of 6 mm.

    A volume of less than 50 mm has none: its gas may be a trachea's.
    """
    if _is_slab(scan):
        return scan.empty
    gas = scan.empty
    for part in components(cavity & (scan.hu < GAS_HU), scan.voxels(GAS_ML)):
        if np.quantile(scan.hu[part], 0.1) < PURE_GAS_HU:
            gas |= part
    return dilate(gas, 6.0, scan.spacing) & cavity


def _is_slab(scan: Scan) -> bool:
    """Return whether the volume is too low to tell an abdomen from a neck."""
    return scan.hu.shape[0] * scan.spacing[0] < SLAB


def _of_size(mask: Mask, ml: tuple[float, float], scan: Scan) -> Mask:
    """Return the largest component; empty where it is not of the size."""
    part = largest(mask, scan.voxels(ml[0]))
    return part if part.sum() <= scan.voxels(ml[1]) else scan.empty


def _around(scan: Scan, spine: Spine) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the distance to the left of the spine's course and in front of it, mm."""
    _, h, w = scan.millimetres()
    return w - spine.column[:, None, None], spine.row[:, None, None] - h
