"""Regions by thresholds, components, morphology and place; no weights.

Everything is found on a coarse isotropic grid, in the order in which organs help each other:
body, airway, lungs, spine, aorta, heart, what else lies between the lungs, ribs, abdomen. What
is not there is absent; nothing is drawn from an atlas. Kidneys cannot be told from the muscles
beside them and are always absent.
"""

import numpy as np
from numpy.typing import NDArray

from ct3dlib.config import ClassicalRegionsSpec
from ct3dlib.errors import VolumeError
from ct3dlib.regions.abdomen import find_bowel, find_cavity, find_liver, find_spleen
from ct3dlib.regions.bones import Spine, find_ribs, find_spine
from ct3dlib.regions.chest import Lungs, find_airway, find_body, find_lungs, split_lobes
from ct3dlib.regions.label_map import REGIONS, region_id
from ct3dlib.regions.mask import Regions, Status, areas
from ct3dlib.regions.mediastinum import (
    Thorax,
    find_aorta,
    find_heart,
    find_oesophagus,
    find_thyroid,
    find_vessels,
)
from ct3dlib.regions.morphology import Mask, dilate, occupied
from ct3dlib.regions.working_grid import Scan, to_volume_grid, to_working_grid
from ct3dlib.scan.volume import Volume

PERICARDIUM = 4.0  # mm around the heart
PLEURA = 3.5  # mm around the lungs
DOME = 50.0  # mm that the liver's dome stands above the diaphragm under the heart
FOUND: frozenset[str] = frozenset({"trachea_bronchi", "spine", "ribs_chest_wall"})


class Canvas:
    """Region ids on the working grid, painted front to back: who comes first stays."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.labels = np.zeros(shape, np.uint8)

    @property
    def taken(self) -> Mask:
        """Where a region is already."""
        return self.labels > 0

    def paint(self, name: str, mask: Mask) -> None:
        """Give free voxels of a mask to a region."""
        self.labels[mask & ~self.taken] = region_id(name)


def classical_regions(volume: Volume, spec: ClassicalRegionsSpec) -> Regions:
    """Return the regions of a CT by classical image processing.

    Args:
        volume: HU; axes nearest to D inferior to superior, H anterior to posterior, W right to
            left of the patient.
        spec: The working grid.

    Returns:
        Ids on the volume's grid. Airway, spine and ribs are "ok" where found, all else is
        "approximate".

    Raises:
        VolumeError: `WRONG_DOMAIN`, the volume is not in HU.
        ValueError: Its axes point elsewhere.
    """
    _check(volume)
    scan = to_working_grid(volume, spec.spacing)
    mask = to_volume_grid(_segment(scan), volume.shape)
    present = areas(mask).sum(axis=0) > 0
    status: dict[str, Status] = {}
    for name, there in zip(REGIONS[1:], present[1:], strict=True):
        status[name] = ("ok" if name in FOUND else "approximate") if there else "absent"
    return Regions(mask, status, "classical")


def _check(volume: Volume) -> None:
    """Refuse a volume whose values or axes are not what the anatomy is read from."""
    if volume.domain != "hu":
        raise VolumeError(
            "WRONG_DOMAIN", f"classical regions need HU, not the domain {volume.domain!r}"
        )
    direction = volume.affine[:3, :3] / volume.spacing
    if not (direction[[2, 1, 0], [0, 1, 2]] > 0.5).all():
        raise ValueError(
            "classical regions need axes D to superior, H to posterior, W to the patient's left; "
            f"the affine's columns point to {np.round(direction, 2).T.tolist()}; normalize first"
        )


def _segment(scan: Scan) -> NDArray[np.uint8]:
    """Return region ids on the working grid."""
    canvas = Canvas(scan.hu.shape)
    body = find_body(scan)
    if not body.any():
        return canvas.labels
    airway = find_airway(scan, body)
    lungs = find_lungs(scan, body, airway)
    spine = find_spine(scan, body)
    if not lungs.both.any():
        canvas.paint("spine", spine.mask)
        bones = spine.mask | find_ribs(scan, body, outside=~spine.mask)
        _paint_abdomen(canvas, scan, find_cavity(scan, body, bones), spine)
        return canvas.labels
    canvas.paint("trachea_bronchi", airway)
    _paint_lobes(canvas, lungs, scan)
    if spine.found:
        _paint_trunk(canvas, Thorax(scan, body, lungs.both, airway, spine))
    canvas.paint("pleura", dilate(lungs.both, PLEURA, scan.spacing) & body)
    return canvas.labels


def _paint_lobes(canvas: Canvas, lungs: Lungs, scan: Scan) -> None:
    """Paint the five lobes."""
    upper, middle, lower = split_lobes(lungs.right, scan, middle=True)
    canvas.paint("lung_upper_lobe_right", upper)
    canvas.paint("lung_middle_lobe_right", middle)
    canvas.paint("lung_lower_lobe_right", lower)
    upper, _, lower = split_lobes(lungs.left, scan, middle=False)
    canvas.paint("lung_upper_lobe_left", upper)
    canvas.paint("lung_lower_lobe_left", lower)


def _paint_trunk(canvas: Canvas, thorax: Thorax) -> None:
    """Paint what lies around the lungs: mediastinum, bones, upper abdomen, and their shells."""
    scan = thorax.scan
    height = scan.millimetres()[0]
    aorta = find_aorta(thorax)
    heart = find_heart(thorax, aorta)
    canvas.paint("aorta", aorta)
    canvas.paint("spine", thorax.spine.mask)
    canvas.paint("heart", heart)
    canvas.paint("esophagus", find_oesophagus(thorax, canvas.taken))
    lowest = occupied(thorax.lungs)[0] * scan.spacing[0]
    outside = ~(canvas.taken | (thorax.hull & (thorax.axes[1] > 5)))
    canvas.paint(
        "ribs_chest_wall", find_ribs(scan, thorax.body, outside=outside & (height > lowest - 70))
    )
    canvas.paint("great_vessels", find_vessels(thorax, canvas.taken))
    canvas.paint("thyroid", find_thyroid(thorax, canvas.taken))
    bones = np.isin(canvas.labels, (region_id("spine"), region_id("ribs_chest_wall")))
    cavity = find_cavity(scan, thorax.body, bones) & (height < thorax.floor + DOME)
    _paint_abdomen(canvas, scan, cavity & ~dilate(heart, 3.0, scan.spacing), thorax.spine)
    canvas.paint("pericardium", dilate(heart, PERICARDIUM, scan.spacing) & thorax.between)
    _, front, left = thorax.axes
    inner = (height > thorax.floor) & (front > 5) & (np.abs(left) < 65)
    canvas.paint("mediastinum_nodes", thorax.between & inner)


def _paint_abdomen(canvas: Canvas, scan: Scan, cavity: Mask, spine: Spine) -> None:
    """Paint the organs below the diaphragm."""
    if not spine.found:
        return
    canvas.paint("liver_biliary", find_liver(scan, cavity & ~canvas.taken, spine))
    canvas.paint("stomach_bowel", find_bowel(scan, cavity & ~canvas.taken))
    liver = occupied(canvas.labels == region_id("liver_biliary"))
    if len(liver):
        beside = cavity & (scan.millimetres()[0] > liver[0] * scan.spacing[0] - 20)
        canvas.paint("spleen_pancreas", find_spleen(scan, beside & ~canvas.taken, spine))
