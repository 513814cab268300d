"""Spine and rib cage on the working grid: bone, by its place around the spine's course."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ct3dlib.regions.morphology import (
    Mask,
    closing,
    components,
    fill_slices,
    grow,
    opening,
    track,
)
from ct3dlib.regions.working_grid import Scan

BONE_HU = 130.0  # spongy bone averaged over a cell
DENSE_HU = 200.0  # brighter counts no more: contrast in the aorta outshines bone
SPINE_ML = 25.0
SPONGY_HU = 450.0  # half of a spine is below; skulls, shafts of long bones and metal are above
RIBS_ML = 10.0


@dataclass(frozen=True, eq=False)
class Spine:
    """The spine and its course.

    Args:
        mask: Vertebrae with canal.
        row: Of the course in every slice, mm from the front edge; it runs by the canal's front.
        column: Of the course in every slice, mm from the right edge.
    """

    mask: Mask
    row: NDArray[np.float64]
    column: NDArray[np.float64]

    @property
    def found(self) -> bool:
        """Whether there is a spine."""
        return bool(self.mask.any())


def find_spine(scan: Scan, body: Mask) -> Spine:
    """Return the spine: the densest smooth course through the back half of the body.

    Bone around the course is closed, so that marrow, canal and discs belong to it. Bone that is
    dense throughout is no spine.
    """
    _, h, w = scan.millimetres()
    if not body.any():
        return Spine(scan.empty, np.zeros(len(body)), np.zeros(len(body)))
    middle = (np.nonzero(body)[2].mean() + 0.5) * scan.spacing[2]
    near_middle = np.abs(w - middle) < 40
    back = np.where(body & near_middle, h, 0).max(axis=(1, 2), keepdims=True)
    sigma = (0, 9 / scan.spacing[1], 9 / scan.spacing[2])
    density = ndimage.gaussian_filter(np.clip(scan.hu, 0, DENSE_HU) * body, sigma)
    allowed = near_middle & (h > back - 115) & (h < back - 20)
    path = track(np.where(allowed, density, -1e3).astype(np.float32), step=1)
    smooth = ndimage.gaussian_filter1d(path + 0.5, 12 / scan.spacing[0], axis=0, mode="nearest")
    row, column = smooth[:, 0] * scan.spacing[1], smooth[:, 1] * scan.spacing[2]
    behind, aside = h - row[:, None, None], np.abs(w - column[:, None, None])
    box = (aside < 28) & (behind > -38) & (behind < 50)
    bone = (scan.hu > BONE_HU) & body & box
    solid = fill_slices(closing(bone, 5.0, scan.spacing)) & box & body
    parts = components(opening(solid, 3.0, scan.spacing), scan.voxels(SPINE_ML))
    spine = np.logical_or.reduce([scan.empty, *parts])
    spongy = spine.any() and np.median(scan.hu[spine]) < SPONGY_HU
    return Spine(spine if spongy else scan.empty, row, column)


def find_ribs(scan: Scan, body: Mask, *, outside: Mask) -> Mask:
    """Return ribs, sternum and shoulder girdle.

    Args:
        scan: The CT.
        body: The patient.
        outside: What lies neither between the lungs, where contrast is as bright as bone, nor
            in the spine. Bone reaches a little into the space between the lungs.
    """
    bone = (scan.hu > BONE_HU + 20) & body
    seed = bone & outside
    reach = max(1, round(12 / scan.voxel))
    parts = components(grow(seed, bone, steps=reach), scan.voxels(0.5))
    ribs = np.logical_or.reduce([scan.empty, *parts])
    return ribs if ribs.sum() > scan.voxels(RIBS_ML) else scan.empty
