"""Regions by thresholds, components, morphology and place; no weights.

Everything is found on a coarse isotropic grid, in the order in which organs help each other:
body, airway, lungs, spine, aorta, heart, what else lies between the lungs, ribs, abdomen. What
is not there is absent; nothing is drawn from an atlas. Kidneys cannot be told from the muscles
beside them and are not looked for.
"""

import numpy as np
from numpy.typing import NDArray

from ct3dlib.regions.abdomen import find_bowel, find_cavity, find_liver, find_spleen
from ct3dlib.regions.bones import Spine, find_ribs, find_spine
from ct3dlib.regions.chest import Lungs, find_airway, find_body, find_lungs, split_lobes
from ct3dlib.regions.edges import to_volume_grid_with_edges
from ct3dlib.regions.label_map import FOUND, region_id
from ct3dlib.regions.mediastinum import (
    Thorax,
    find_aorta,
    find_heart,
    find_oesophagus,
    find_thyroid,
    find_vessels,
)
from ct3dlib.regions.morphology import Mask, dilate, occupied
from ct3dlib.regions.provider import Provided, Provider, Request
from ct3dlib.regions.working_grid import Scan

DOME = 50.0  # mm that the liver's dome stands above the diaphragm under the heart
KNOWN = FOUND - {region_id("kidney_adrenal")}
SURE = frozenset(map(region_id, ("trachea_bronchi", "spine", "ribs_chest_wall")))


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


class ClassicalProvider(Provider):
    """Finds regions of a CT by classical image processing."""

    name = "classical"

    def identity(self, name: str, sources: tuple[str, ...]) -> str:
        """Return nothing: the voxels say all."""
        del name, sources
        return ""

    def __call__(self, request: Request) -> Provided:
        """Return all regions but the kidneys; airway, spine and ribs are found well."""
        found = _segment(request.scan)
        labels = to_volume_grid_with_edges(found, request.scan, request.volume.array)
        return Provided(labels, KNOWN, SURE)


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
    """Paint what lies around the lungs: mediastinum, bones, upper abdomen."""
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
