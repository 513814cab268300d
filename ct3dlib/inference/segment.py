"""One object of one scan, by a box that a person gave."""

from dataclasses import dataclass

import numpy as np
import torch

from ct3dlib.errors import VolumeError
from ct3dlib.inference.single import Scan
from ct3dlib.regions.prompts import to_pictures
from ct3dlib.regions.refine import Refiner, largest_part, on_slices
from ct3dlib.regions.tracker import Prompt
from ct3dlib.scan.normalize import restore
from ct3dlib.scan.volume import Volume


@dataclass(frozen=True)
class Box:
    """A box around an object in one slice, in voxels of the scan's file, counted from 0.

    Args:
        corners: i0, j0, i1, j1: first and last voxel along the file's axes i and j.
        key: Voxel along its axis k.
        slices: First and last slice that the object may reach; None: all.
    """

    corners: tuple[int, int, int, int]
    key: int
    slices: tuple[int, int] | None = None


def segment_box(scan: Scan, box: Box, refiner: Refiner, *, window: tuple[float, float]) -> Volume:
    """Return the object in a box, on the scan's own grid.

    Args:
        scan: In HU, on canonical axes.
        box: Around the object in one slice.
        refiner: With MedSAM2's network.
        window: HU that are black and white for the network.

    Returns:
        uint8, 1 in the object.

    Raises:
        VolumeError: `BAD_BOX`, the box is empty, outside the scan, or not in an axial slice.
    """
    prompt = _prompt(scan, box, refiner.network.size)
    (track,) = refiner.draw(scan.volume, [prompt], window)
    mask = np.zeros(scan.volume.shape, np.uint8)
    _, height, width = scan.volume.shape
    logits = largest_part(track.logits)
    for row, d in enumerate(range(track.start, track.stop)):
        plane = on_slices(logits[row : row + 1], (height, width))[0] > 0
        mask[d] = plane.to(torch.uint8).cpu().numpy()
    return restore(Volume(mask, scan.volume.affine, "uint8"), scan.record, fill=0, nearest=True)


def _prompt(scan: Scan, box: Box, size: int) -> Prompt:
    """Return the prompt that a box is on the canonical grid."""
    i0, j0, i1, j1 = box.corners
    n_k, n_j, n_i = scan.record.source_shape
    first, last = box.slices or (0, n_k - 1)
    inside = 0 <= i0 <= i1 < n_i and 0 <= j0 <= j1 < n_j and 0 <= first <= box.key <= last < n_k
    if not inside:
        raise VolumeError(
            "BAD_BOX",
            f"box {box.corners} in slice {box.key} of slices {first} to {last}: the scan has "
            f"{n_i} x {n_j} x {n_k} voxels (i, j, k), counted from 0, and X0 <= X1, Y0 <= Y1",
        )
    # k j i of the file: the box's corners, then the ends of the slices in its middle.
    middle = (j0 + j1) / 2, (i0 + i1) / 2
    points = [(box.key, j, i, 1) for j in (j0, j1) for i in (i0, i1)]
    points += [(k, *middle, 1) for k in (first, last)]
    way = np.linalg.inv(scan.volume.affine) @ np.array(scan.record.source_affine)
    there = (np.array(points) @ way.T)[:, :3]
    depth, rows, columns = there[:4].T
    if np.ptp(depth) > 1:
        raise VolumeError(
            "BAD_BOX",
            "the file's slices are not axial: its axis k does not run from feet to head, or the "
            "gantry was tilted; write the scan upright first",
        )
    key = round(float(depth.mean()))
    ends = np.sort(np.rint(there[4:, 0]).astype(int))
    _, height, width = scan.volume.shape
    x0, x1 = to_pictures(columns.min(), columns.max() + 1, width, size)
    y0, y1 = to_pictures(rows.min(), rows.max() + 1, height, size)
    start, stop = max(int(ends[0]), 0), min(int(ends[1]) + 1, len(scan.volume.array))
    return Prompt(min(max(key, start), stop - 1), start, stop, box=(x0, y0, x1, y1))
