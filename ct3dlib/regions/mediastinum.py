"""Aorta, heart, oesophagus and vessels between the lungs, on the working grid.

Without contrast these organs have one HU; they are told apart by roundness and by their place
around the spine's course, the carina and the lungs. All distances are mm.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ct3dlib.regions.bones import BONE_HU, Spine
from ct3dlib.regions.morphology import (
    Mask,
    closing,
    components,
    dilate,
    erode,
    hull_slices,
    largest,
    occupied,
    opening,
)
from ct3dlib.regions.tubes import disc, find_tube, paint_tube
from ct3dlib.regions.working_grid import Scan

AORTA_RADII = (9.0, 11.0, 13.0, 15.0)
ASCENDING_RADII = (13.0, 15.0, 17.0)
OESOPHAGUS_RADII = (6.0, 8.0)
AORTA_ML = 15.0
OESOPHAGUS_ML = 5.0
HEART_ML = 120.0
FLUID_HU = 24.0  # an effusion has less, blood without contrast more
RIB_GAP = 24.0  # mm of height in which every ray from the middle meets a rib
WALL = 9.0  # mm from the outer face of the ribs to the pleura
APEX = 40.0  # mm that the carina lies below the tops of the lungs, at least
SAG = 20.0  # the diaphragm under the heart lies that much lower than under the right lung
VESSELS_ML = 10.0
THYROID_ML = (3.0, 60.0)
THYROID_HU = (75.0, 250.0)  # iodine: brighter than muscle without contrast


@dataclass(frozen=True, eq=False)
class Thorax:
    """The landmarks that the organs between the lungs are placed by.

    Args:
        scan: The CT.
        body: The patient.
        lungs: Both lungs together; at least one voxel.
        airway: Trachea and bronchi; may be empty.
        spine: The spine and its course, found.
    """

    scan: Scan
    body: Mask
    lungs: Mask
    airway: Mask
    spine: Spine

    @cached_property
    def hull(self) -> Mask:
        """Convex hull of the lungs in every slice."""
        return hull_slices(self.lungs)

    @cached_property
    def between(self) -> Mask:
        """What lies in the hull of the lungs and is neither lung nor airway."""
        return self.hull & ~self.lungs & ~self.airway & self.body

    @cached_property
    def cage(self) -> Mask:
        """What lies inside the ribs around the lungs.

        It is more than the lungs' hull where a heart or fluid parts them from the front wall.
        """
        spacing = self.scan.spacing
        bone = (self.scan.hu > BONE_HU) & self.body & dilate(self.hull, 30.0, spacing)
        slices = 2 * round(RIB_GAP / 2 / spacing[0]) + 1
        rings = np.asarray(ndimage.maximum_filter1d(bone, slices, axis=0), bool)
        return self.hull | erode(hull_slices(rings), WALL, spacing)

    @cached_property
    def carina(self) -> float:
        """Height of the carina; without an airway, from the extent of the lungs.

        It is where the airway, well below the lungs' tops, first reaches much farther to both
        sides than the trachea above it.
        """
        step = self.scan.spacing[0]
        lungs = occupied(self.lungs)
        trachea: list[tuple[float, float]] = []  # middle and half width, from above
        for d in reversed(occupied(self.airway)):
            columns = np.flatnonzero(self.airway[d].any(axis=0))
            above = np.array(trachea[-round(40 / step) :])
            if len(above) * step >= 20 and (lungs[-1] - d) * step > APEX:
                middle, half = np.median(above, axis=0)
                if min(middle - columns[0], columns[-1] - middle) > 1.4 * half:
                    return (d + 0.5) * step
            tube = np.flatnonzero(largest(self.airway[d]).any(axis=0))
            trachea.append((float(tube.mean()), len(tube) / 2))
        return float(lungs[0] + 0.6 * (lungs[-1] - lungs[0])) * step

    @cached_property
    def floor(self) -> float:
        """Height of the diaphragm under the heart, from the lower face of the right lung.

        The columns within 20 mm of the lung's outline are left out: at the wall the lung
        reaches into its recess, at the heart it lies on the heart.
        """
        height, _, w = self.scan.millimetres()
        right = self.lungs & (w < self.spine.column[:, None, None])
        lung = right if right.any() else self.lungs
        base = np.where(lung, height, np.inf).min(axis=0)
        outline = lung.max(axis=0)
        inner = erode(outline[None], 20.0, (1.0, *self.scan.spacing[1:]))[0]
        return float(np.median(base[inner if inner.any() else outline])) - SAG

    @cached_property
    def axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Height above the carina, distance in front of the spine's course, and to its left."""
        d, h, w = self.scan.millimetres()
        row, column = self.spine.row[:, None, None], self.spine.column[:, None, None]
        return d - self.carina, row - h, w - column

    @cached_property
    def softness(self) -> NDArray[np.float32]:
        """Share of blood or muscle in a cell, 0-1; 0 in the lungs and around the spine."""
        _, front, left = self.axes
        bone = (front < 8) | ((front < 28) & (np.abs(left) < 18))
        share = np.clip((self.scan.hu + 50) / 80, 0, 1)  # fat 0, blood 1
        return np.where(self.lungs | self.airway | bone | ~self.body, np.float32(0), share)


def find_aorta(thorax: Thorax) -> Mask:
    """Return the aorta: a descending and an ascending round tube, joined by an arch.

    The arch is a chain of discs from tube to tube; the part below the lungs is left out.
    """
    spacing, shape = thorax.scan.spacing, thorax.scan.hu.shape
    above, front, left = thorax.axes
    lowest = occupied(thorax.lungs)[0] * spacing[0] - thorax.carina - 30
    behind = (front > 8) & (front < 62) & (left > -12) & (left < 46) & (above < 35)
    down = find_tube(thorax.softness, AORTA_RADII, window=behind, spacing=spacing)
    ahead = (front > 45) & (front < 115) & (left > -38) & (left < 22)
    ahead = ahead & (above > -25) & (above < 30)
    up = find_tube(thorax.softness, ASCENDING_RADII, window=ahead, spacing=spacing)
    descending = paint_tube(down, shape, spacing) & (above > lowest) & (above < 30)
    ascending = paint_tube(up, shape, spacing) & (above > -25) & (above < 25)
    for d in np.flatnonzero((above > 12) & (above < 30)):
        for share in np.linspace(0, 1, 13):
            centre = down.path[d] * (1 - share) + up.path[d] * share
            ascending[d] |= disc(centre, 11.0, shape[1:], spacing)
    contrast = thorax.spine.mask & (thorax.scan.hu > 150) & (front > 12)
    blood, smallest = (thorax.softness > 0.5) | contrast, thorax.scan.voxels(AORTA_ML)
    return largest(descending & blood, smallest) | largest(ascending & blood, smallest)


def find_oesophagus(thorax: Thorax, aorta: Mask) -> Mask:
    """Return the oesophagus: a thin round tube before the spine, beside the aorta.

    Its wall is rarely seen at this grid, so most of its place comes from the prior: a little in
    front of the spine and, above the carina, right behind the trachea.
    """
    spacing, shape = thorax.scan.spacing, thorax.scan.hu.shape
    above, front, left = thorax.axes
    trachea = np.where(thorax.airway, front, np.inf).min(axis=(1, 2), keepdims=True)
    ahead = np.where((above > 0) & np.isfinite(trachea), np.minimum(trachea - 6, 45), 38)
    beside = thorax.lungs.any(axis=(1, 2), keepdims=True)
    window = (((front - ahead) / 12) ** 2 + ((left - 3) / 14) ** 2 < 1) & ~aorta & ~thorax.airway
    tube = find_tube(thorax.softness, OESOPHAGUS_RADII, window=window, spacing=spacing)
    mask = np.stack([disc(centre, 8.5, shape[1:], spacing) for centre in tube.path])
    mask &= (thorax.softness > 0.4) & ~aorta & beside
    parts = components(mask, thorax.scan.voxels(1.0))
    oesophagus = np.logical_or.reduce([thorax.scan.empty, *parts])
    return oesophagus if mask.sum() > thorax.scan.voxels(OESOPHAGUS_ML) else thorax.scan.empty


def find_heart(thorax: Thorax, aorta: Mask) -> Mask:
    """Return the heart with its sac.

    It is what a ball of 14 mm fits into between the lungs, below the carina and above the
    diaphragm. Fluid in the sac is left out.
    """
    scan = thorax.scan
    above, front, left = thorax.axes
    solid = (
        thorax.cage
        & ~thorax.lungs
        & ~thorax.airway
        & (scan.hu > -20)
        & ~dilate(aorta, 2.0, scan.spacing)
    )
    solid &= (front > 28) & (above < -18) & (left > -45) & (left < 120)
    solid &= scan.millimetres()[0] > thorax.floor
    solid = closing(solid, 1.1 * scan.voxel, scan.spacing)  # noise is no hole
    blood = solid & (_level(scan, solid) > FLUID_HU)
    heart = largest(opening(blood, 14.0, scan.spacing), scan.voxels(HEART_ML))
    return dilate(heart, 1.5 * scan.voxel, scan.spacing) & opening(solid, 14.0, scan.spacing)


def _level(scan: Scan, mask: Mask) -> NDArray[np.float32]:
    """Return the HU of a mask's voxels averaged over near voxels of the mask only, sigma 4 mm."""
    sigma = [4 / step for step in scan.spacing]
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    total = ndimage.gaussian_filter(np.where(mask, scan.hu, np.float32(0)), sigma)
    return np.where(mask, total / np.maximum(weight, 1e-6), np.float32(0))


def find_vessels(thorax: Thorax, taken: Mask) -> Mask:
    """Return the great vessels: thick soft tissue between the lungs above the heart."""
    scan = thorax.scan
    above, front, left = thorax.axes
    place = (above > -45) & (above < 75) & (front > 15) & (np.abs(left) < 60)
    solid = thorax.between & (scan.hu > 10) & place & ~taken
    parts = components(opening(solid, 4.0, scan.spacing), scan.voxels(2.0))
    vessels = np.logical_or.reduce([scan.empty, *parts])
    return vessels if vessels.sum() > scan.voxels(VESSELS_ML) else scan.empty


def find_thyroid(thorax: Thorax, taken: Mask) -> Mask:
    """Return the thyroid: bright tissue beside the trachea at the height of the lungs' tops."""
    scan = thorax.scan
    top = occupied(thorax.lungs)[-1]
    height = scan.millimetres()[0] - top * scan.spacing[0]
    bright = (scan.hu > THYROID_HU[0]) & (scan.hu < THYROID_HU[1]) & ~taken & (height > -25)
    bright &= dilate(thorax.airway, 22.0, scan.spacing) & (thorax.axes[1] > 25)
    parts = components(bright, scan.voxels(1.0))[:2]
    thyroid = np.logical_or.reduce([scan.empty, *parts])
    low, high = (scan.voxels(ml) for ml in THYROID_ML)
    return thyroid if low < thyroid.sum() < high else scan.empty
