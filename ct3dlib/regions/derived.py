"""Regions that are drawn around others, by one rule whoever found those.

Pericardium, mediastinum and pleura have no edge of their own on most scans. Drawn from the labels
of heart, lungs, airway and spine alone, they mean the same beside every provider.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ct3dlib.regions.bones import Spine
from ct3dlib.regions.chest import find_body
from ct3dlib.regions.label_map import DERIVED, LUNGS, region_id
from ct3dlib.regions.mediastinum import Thorax
from ct3dlib.regions.morphology import Mask, dilate, occupied
from ct3dlib.regions.working_grid import Scan

PERICARDIUM = 4.0  # mm around the heart, at least a cell of the working grid
PLEURA = 3.5  # mm around the lungs, likewise
BESIDE = 65.0  # mm that the mediastinum reaches to either side of the spine's course
BEFORE = 5.0  # mm that it starts in front of that course
COURSE = 12.0  # mm over which the spine's course is smoothed


def derived_regions(labels: NDArray[np.uint8], scan: Scan) -> NDArray[np.uint8]:
    """Return pericardium, mediastinum and pleura where labels leave room for them, else 0.

    Pericardium: what lies within 4 mm of the heart, between the lungs. Mediastinum: the rest of
    what lies between the lungs, before the spine and above the diaphragm; not without a spine.
    Pleura: what of the body lies within 3.5 mm of the lungs. Without lungs there is none of them.

    Args:
        labels: Ids 0-20 on the working grid; derived ones are drawn anew.
        scan: The CT on that grid.
    """
    lungs = np.isin(labels, LUNGS)
    drawn = np.zeros_like(labels)
    if not lungs.any():
        return drawn
    found = np.where(np.isin(labels, [*DERIVED]), 0, labels)
    spine = spine_course(found == region_id("spine"), scan)
    body = find_body(scan)
    thorax = Thorax(scan, body, lungs, found == region_id("trachea_bronchi"), spine)
    free = found == 0
    heart = found == region_id("heart")
    for name, mask in (
        ("pericardium", _around(heart, PERICARDIUM, scan) & thorax.between),
        ("mediastinum_nodes", _mediastinum(thorax)),
        ("pleura", _around(lungs, PLEURA, scan) & body),
    ):
        drawn[mask & free & (drawn == 0)] = region_id(name)
    return drawn


def _around(mask: Mask, thickness: float, scan: Scan) -> Mask:
    """Return what lies within a thickness in mm, and every cell that has a face on the mask."""
    return dilate(mask, max(thickness, 1.01 * max(scan.spacing)), scan.spacing)


def _mediastinum(thorax: Thorax) -> Mask:
    """Return what lies between the lungs, before the spine and above the diaphragm."""
    if not thorax.spine.found:
        return thorax.scan.empty
    _, front, left = thorax.axes
    above = thorax.scan.millimetres()[0] > thorax.floor
    return thorax.between & above & (front > BEFORE) & (np.abs(left) < BESIDE)


def spine_course(spine: Mask, scan: Scan) -> Spine:
    """Return a spine with the course of its centre; slices without bone lie on the way between."""
    slices = occupied(spine)
    if not len(slices):
        return Spine(spine, np.zeros(len(spine)), np.zeros(len(spine)))
    centres = np.array([ndimage.center_of_mass(spine[d]) for d in slices]) + 0.5
    every = np.arange(len(spine))
    row, column = (
        ndimage.gaussian_filter1d(
            np.interp(every, slices, centres[:, axis]), COURSE / scan.spacing[0], mode="nearest"
        )
        * scan.spacing[1 + axis]
        for axis in (0, 1)
    )
    return Spine(spine, row, column)
