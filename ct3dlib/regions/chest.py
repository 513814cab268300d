"""Body, airway, lungs and lobes on the working grid: air inside the body, by place and size."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ct3dlib.regions.morphology import (
    Mask,
    closing,
    components,
    dilate,
    distance_to,
    erode,
    fill_slices,
    grow,
    largest,
    occupied,
    opening,
)
from ct3dlib.regions.working_grid import Scan

SOFT_HU = -300.0  # halfway between air and skin
LUNG_HU = -400.0  # halfway between lung and soft tissue
AIRWAY_HU = (-700.0, -775.0, -825.0, -875.0, -915.0, -950.0)
AIRWAY_ML = (4.0, 90.0)
AIRWAY_REACH = 60.0  # mm to either side of the trachea: lobar bronchi end there
AIRWAY_KEPT = 0.75  # share that the next threshold leaves of a tree without a leak
LUNG_ML = 150.0
DOME = 8.0  # mm; tissue so thick is joined to the body outside, vessels in the lung are not
GAS_HU = -975.0  # bowel gas; lung is never so empty in the middle


@dataclass(frozen=True, eq=False)
class Lungs:
    """Both lungs, vessels filled in; a lung that was not found has no voxel."""

    right: Mask
    left: Mask

    @property
    def both(self) -> Mask:
        """Right and left together."""
        return self.right | self.left


def find_body(scan: Scan) -> Mask:
    """Return the patient without the table, air inside included."""
    solid = opening(scan.hu > SOFT_HU, 6.0, scan.spacing)
    return fill_slices(largest(solid, scan.voxels(50.0)))


def find_airway(scan: Scan, body: Mask) -> Mask:
    """Return trachea and central bronchi.

    The seed is the uppermost small round gas area near the midline. It grows through gas below
    a threshold, tightened until the tree does not leak into the lungs.
    """
    _, _, w = scan.millimetres()
    for seed in _tracheas(scan, body):
        middle = (np.nonzero(seed)[2].mean() + 0.5) * scan.spacing[2]
        near = body & (np.abs(w - middle) < AIRWAY_REACH)
        tree = _steadiest(
            [grow(seed, near & (scan.hu < threshold)) for threshold in AIRWAY_HU], scan
        )
        if tree.any():
            rim = dilate(tree, 1.1 * scan.voxel, scan.spacing)
            return tree | (rim & (scan.hu < -500) & near)
    return scan.empty


def _steadiest(trees: list[Mask], scan: Scan) -> Mask:
    """Return the widest tree of an airway's size that the next threshold hardly shrinks.

    A leak into the lung shrinks by much. Where no tree is steady it is the tightest; where none
    has an airway's volume and height it is empty.
    """
    low, high = (scan.voxels(ml) for ml in AIRWAY_ML)
    sized = [tree for tree in trees if low < tree.sum() < high and _height(tree, scan) >= 40]
    for wide, tight in pairwise(sized):
        if tight.sum() > AIRWAY_KEPT * wide.sum():
            return wide
    return sized[-1] if sized else scan.empty


def _height(mask: Mask, scan: Scan) -> float:
    """Return the height that a mask with a voxel spans, mm."""
    return float(np.ptp(occupied(mask))) * scan.spacing[0]


def _tracheas(scan: Scan, body: Mask) -> list[Mask]:
    """Return candidate cross-sections of the trachea, the uppermost first."""
    cell = scan.spacing[1] * scan.spacing[2]
    columns = np.nonzero(body)[2]
    middle = columns.mean() if len(columns) else 0
    candidates = []
    top = len(body) - 1
    for d in range(top, max(top - round(120 / scan.spacing[0]), -1), -1):
        for spot in components((scan.hu[d] < AIRWAY_HU[0]) & body[d]):
            rows, cols = np.nonzero(spot)
            area = len(rows) * cell
            box = (np.ptp(rows) + 1) * (np.ptp(cols) + 1) * cell
            off = abs(cols.mean() - middle) * scan.spacing[2]
            if 50 < area < 700 and off < 35 and area > 0.5 * box:
                seed = scan.empty
                seed[d] = spot
                candidates.append(seed)
        if len(candidates) >= 8:
            break
    return candidates


def find_lungs(scan: Scan, body: Mask, airway: Mask) -> Lungs:
    """Return both lungs: the largest air spaces in the body that are not airway or bowel gas."""
    air = (scan.hu < LUNG_HU) & body & ~dilate(airway, 1.1 * scan.voxel, scan.spacing)
    parts = [
        part for part in components(air, scan.voxels(LUNG_ML))[:4] if _core_hu(scan, part) > GAS_HU
    ][:2]
    if len(parts) == 1:
        parts = _split(parts[0], scan)
    middle = float(np.nonzero(body)[2].mean()) if body.any() else 0.0
    sides = [np.nonzero(part)[2].mean() for part in parts]
    if len(parts) == 2:
        right, left = (parts[i] for i in np.argsort(sides))
    elif len(parts) == 1:
        lung = parts[0]
        right, left = (lung, scan.empty) if sides[0] < middle else (scan.empty, lung)
    else:
        return Lungs(scan.empty, scan.empty)
    right, left = (closing(lung, 9.0, scan.spacing) & body for lung in (right, left))
    # The domes of the diaphragm, which lung may ring in a slice, are no hole in it.
    solid = largest(opening(body & ~(right | left | airway), DOME, scan.spacing))
    right, left = (fill_slices(lung) & body & ~airway & ~solid for lung in (right, left))
    return Lungs(right, left & ~right)


def _core_hu(scan: Scan, part: Mask) -> float:
    """Return the median HU of an air space away from its surface."""
    core = erode(part, 1.1 * scan.voxel, scan.spacing)
    return float(np.median(scan.hu[core if core.any() else part]))


def _split(fused: Mask, scan: Scan) -> list[Mask]:
    """Return two lungs that touch, cut where an erosion first parts them; else the one lung."""
    for radius in (3.0, 5.0, 8.0, 11.0, 14.0):
        cores = components(erode(fused, radius, scan.spacing), scan.voxels(LUNG_ML / 3))[:2]
        if len(cores) == 2:
            near = distance_to(cores[0], scan.spacing) <= distance_to(cores[1], scan.spacing)
            return [fused & near, fused & ~near]
    return [fused]


def split_lobes(lung: Mask, scan: Scan, *, middle: bool) -> tuple[Mask, Mask, Mask]:
    """Return upper, middle and lower lobe of a lung by planes in its bounding box.

    The oblique fissure falls from behind and above to the front and below, the horizontal one
    of the right lung runs level: the mean course in an adult, not the patient's own.
    """
    if not lung.any():
        return scan.empty, scan.empty, scan.empty
    rows, cols = np.nonzero(lung)[:2]
    depth, height = np.ogrid[: lung.shape[0], : lung.shape[1]]
    up = (depth - rows.min()) / max(int(np.ptp(rows)), 1)  # 0 base, 1 apex
    back = (height - cols.min()) / max(int(np.ptp(cols)), 1)  # 0 front, 1 back
    low = (up < 0.06 + 0.78 * back)[:, :, None]
    level = (up < 0.52)[:, :, None] & middle
    return lung & ~low & ~level, lung & ~low & level, lung & low
