"""Aorta, heart, oesophagus and vessels between the lungs, on the working grid.

Without contrast these organs have one HU; they are told apart by roundness and by their place
around the spine's course, the carina and the lungs. Distances in the code are mm.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ct3dlib.regions.bones import Spine
from ct3dlib.regions.chest import Lungs
from ct3dlib.regions.morphology import (
    Mask,
    components,
    dilate,
    hull_slices,
    largest,
    opening,
    track,
)
from ct3dlib.regions.working_grid import Scan

FLUID_HU = 0.0  # blood and muscle lie above, fat below
ROUND = 0.3  # least share by which a disc must be fuller than the ring around it
RING = 6.0  # width of that ring
AORTA_RADII = (9.0, 11.0, 13.0, 15.0)
ASCENDING_RADII = (13.0, 15.0, 17.0)
OESOPHAGUS_RADII = (6.0, 8.0)
AORTA_ML = 15.0
OESOPHAGUS_ML = 5.0
HEART_ML = 120.0
VESSELS_ML = 10.0


@dataclass(frozen=True, eq=False)
class Thorax:
    """The landmarks that the organs of the mediastinum are placed by.

    Args:
        scan: The CT.
        body: The patient.
        lungs: Both lungs, found.
        airway: Trachea and bronchi; may be empty.
        spine: The spine and its course, found.
    """

    scan: Scan
    body: Mask
    lungs: Lungs
    airway: Mask
    spine: Spine

    @cached_property
    def between(self) -> Mask:
        """What lies in the slice-wise convex hull of the lungs and is neither lung nor airway."""
        return hull_slices(self.lungs.both) & ~self.lungs.both & ~self.airway & self.body

    @cached_property
    def carina(self) -> float:
        """Height of the carina, mm; without an airway from the extent of the lungs."""
        cell = self.scan.spacing[1] * self.scan.spacing[2]
        for d in range(len(self.airway) - 1, -1, -1):
            labels, _ = ndimage.label(self.airway[d])
            if (np.bincount(labels.ravel())[1:] * cell > 30).sum() >= 2:
                return (d + 0.5) * self.scan.spacing[0]
        rows = np.nonzero(self.lungs.both)[0]
        return float(rows.min() + 0.6 * np.ptp(rows)) * self.scan.spacing[0]

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
        share = np.clip((self.scan.hu - FLUID_HU + 50) / 80, 0, 1)
        return np.where(self.lungs.both | self.airway | bone | ~self.body, 0, share)


def find_aorta(thorax: Thorax) -> Mask:
    """Return the aorta: a descending and an ascending round tube, joined by an arch."""
    above, front, left = thorax.axes
    window = (front > 8) & (front < 62) & (left > -12) & (left < 46) & (above < 35)
    score, radius = roundness(thorax, AORTA_RADII)
    descending = Tube.along(np.where(window, score, -1).astype(np.float32), score, radius)
    window = (front > 45) & (front < 115) & (left > -38) & (left < 22)
    window = window & (above > -25) & (above < 30)
    score, radius = roundness(thorax, ASCENDING_RADII)
    ascending = Tube.along(np.where(window, score, -1).astype(np.float32), score, radius)
    heights = above[:, 0, 0]
    mask = descending.paint(thorax, heights < 30) | ascending.paint(
        thorax, (heights > -25) & (heights < 25)
    )
    for d in np.flatnonzero((heights > 12) & (heights < 30)):
        ends = [np.array(tube.path[d]) for tube in (descending, ascending)]
        for t in np.linspace(0, 1, 13):
            mask[d] |= disc(thorax.scan, ends[0] * (1 - t) + ends[1] * t, 11.0)
    mask &= (thorax.softness > 0.5) | (thorax.spine.mask & (thorax.scan.hu > 150) & (front > 12))
    return largest(mask, thorax.scan.voxels(AORTA_ML))


@dataclass(frozen=True, eq=False)
class Tube:
    """A round structure through the slices.

    Args:
        path: Its centre in each slice, D 2 (row, column), voxels.
        radius: In each slice, mm.
        score: Its roundness in each slice.
    """

    path: NDArray[np.int64]
    radius: NDArray[np.float64]
    score: NDArray[np.float64]

    @classmethod
    def along(
        cls, allowed: NDArray[np.float32], score: NDArray[np.float32], radius: NDArray[np.float32]
    ) -> "Tube":
        """Return the tube along the roundest course."""
        path = track(allowed, step=1)
        at = np.arange(len(path)), path[:, 0], path[:, 1]
        return cls(path, ndimage.median_filter(radius[at].astype(float), 9, mode="nearest"), score[at].astype(float))

    def paint(self, thorax: Thorax, chosen: NDArray[np.bool_]) -> Mask:
        """Return its discs in the chosen slices where it is round."""
        mask = thorax.scan.empty
        smooth = ndimage.uniform_filter1d(self.score, 5, mode="nearest")
        for d in np.flatnonzero(chosen & (smooth > ROUND)):
            mask[d] = disc(thorax.scan, self.path[d], self.radius[d] + 1.5)
        return mask


def disc(scan: Scan, centre: NDArray[np.generic], radius: float) -> Mask:
    """Return a disc of one slice, H W; the centre is (row, column) in voxels."""
    rows, columns = np.ogrid[: scan.hu.shape[1], : scan.hu.shape[2]]
    y, x = (rows - centre[0]) * scan.spacing[1], (columns - centre[1]) * scan.spacing[2]
    return y**2 + x**2 <= radius**2


def roundness(
    thorax: Thorax, radii: tuple[float, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return how much fuller a disc is than the ring around it, and the best radius, D H W.

    The score is mean softness of the disc less that of the ring, the largest over the radii.
    """
    best = np.full(thorax.softness.shape, -1, np.float32)
    chosen = np.zeros_like(best)
    step = thorax.scan.spacing[1]
    for radius in radii:
        n = int(np.ceil((radius + RING) / step))
        y, x = np.mgrid[-n : n + 1, -n : n + 1] * step
        distance = np.hypot(y, x)
        inner, ring = distance <= radius, (distance > radius + 1) & (distance <= radius + RING)
        kernel = inner / max(inner.sum(), 1) - ring / max(ring.sum(), 1)
        score = ndimage.correlate(
            thorax.softness, kernel[None].astype(np.float32), mode="nearest"
        )
        chosen[score > best] = radius
        best = np.maximum(best, score)
    return best, chosen


def find_oesophagus(thorax: Thorax, aorta: Mask) -> Mask:
    """Return the oesophagus: a thin round tube before the spine, beside the aorta.

    Its wall is rarely seen at this grid, so most of its place comes from the prior: a little in
    front of the spine and, above the carina, right behind the trachea.
    """
    above, front, left = thorax.axes
    score, _ = roundness(thorax, OESOPHAGUS_RADII)
    trachea = _trachea_back(thorax)
    ahead = np.where(above > 0, np.minimum(trachea[:, None, None] - 6, 45), 38)
    prior = ((front - ahead) / 12) ** 2 + ((left - 3) / 14) ** 2
    window = (prior < 4) & ~aorta & ~thorax.airway
    path = track(np.where(window, score - 0.15 * prior, -9).astype(np.float32), step=1)
    mask = thorax.scan.empty
    for d, centre in enumerate(path):
        mask[d] = disc(thorax.scan, centre, 8.5)
    mask &= (thorax.softness > 0.4) & ~aorta
    return largest(mask, thorax.scan.voxels(OESOPHAGUS_ML))


def _trachea_back(thorax: Thorax) -> NDArray[np.float64]:
    """Return how far in front of the spine's course the airway's back lies, per slice, mm."""
    front = np.broadcast_to(thorax.axes[1], thorax.airway.shape)
    back = np.where(thorax.airway, front, np.inf).min(axis=(1, 2))
    return np.where(np.isfinite(back), back, 40.0)


def find_heart(thorax: Thorax, aorta: Mask) -> tuple[Mask, NDArray[np.float64]]:
    """Return the heart and the height of its floor, the diaphragm, H W, mm.

    The heart is what a ball of 14 mm fits into between the lungs, below the carina and above
    the diaphragm; that is where the lungs beside the heart end, continued under it.
    """
    scan = thorax.scan
    above, front, left = thorax.axes
    solid = thorax.between & (scan.hu > FLUID_HU - 20) & ~dilate(aorta, 2, scan.spacing)
    solid &= (front > 28) & (above < -18) & (np.abs(left - 25) < 95)
    band = opening(solid & (above < -35) & (above > -75), 12, scan.spacing)
    floor = _floor(thorax, band.any(axis=0))
    height = scan.millimetres()[0]
    solid &= height > floor
    return largest(opening(solid, 14, scan.spacing), scan.voxels(HEART_ML)), floor


def _floor(thorax: Thorax, silhouette: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the height of the diaphragm under a silhouette, H W, mm.

    The lowest lung beside the silhouette, smoothly continued (normalised convolution); the
    columns behind the heart are left out, where the lung reaches down into its recess.
    """
    scan = thorax.scan
    height, h, _ = scan.millimetres()
    lung = thorax.lungs.both
    base = np.where(lung, height, np.inf).min(axis=0)
    spacing = (1.0, *scan.spacing[1:])
    ring = dilate(silhouette[None], 15, spacing)[0] & ~dilate(silhouette[None], 4, spacing)[0]
    ring &= np.isfinite(base) & (h[0] < np.median(thorax.spine.row) - 50)
    if not ring.any():
        return np.full(base.shape, base[np.isfinite(base)].mean())
    sigma = 30 / scan.spacing[1]
    weight = ndimage.gaussian_filter(ring.astype(np.float64), sigma)
    value = ndimage.gaussian_filter(np.where(ring, base, 0.0), sigma)
    return np.where(weight > 1e-6, value / np.maximum(weight, 1e-6), base[ring].mean())


def find_vessels(thorax: Thorax, taken: Mask) -> Mask:
    """Return the great vessels: thick soft tissue between the lungs above the heart."""
    scan = thorax.scan
    above, front, left = thorax.axes
    place = (above > -45) & (above < 75) & (front > 15) & (np.abs(left) < 60)
    solid = thorax.between & (scan.hu > FLUID_HU + 10) & place & ~taken
    parts = components(opening(solid, 4, scan.spacing), scan.voxels(2))
    mask = np.logical_or.reduce([scan.empty, *parts])
    return mask if mask.sum() > scan.voxels(VESSELS_ML) else scan.empty
