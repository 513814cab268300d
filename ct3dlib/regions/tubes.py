"""Round structures that run through the slices: how round, where, how wide."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from ct3dlib.regions.morphology import Mask, Spacing, track

ROUND = 0.3  # least share by which a disc must be fuller than the ring around it
RING = 6.0  # width of that ring, mm


@dataclass(frozen=True, eq=False)
class Tube:
    """A round structure through all slices.

    Args:
        path: Its centre in each slice, D 2 (row, column), voxels.
        radius: In each slice, mm.
        score: How much fuller it is than the ring around it in each slice, -1 to 1.
    """

    path: NDArray[np.int64]
    radius: NDArray[np.float64]
    score: NDArray[np.float32]


def find_tube(
    fullness: NDArray[np.float32], radii: tuple[float, ...], *, window: Mask, spacing: Spacing
) -> Tube:
    """Return the roundest course through a window.

    Args:
        fullness: Share of soft tissue in each cell, D H W, 0-1.
        radii: Radii that it may have, mm.
        window: Where its centre may lie.
        spacing: Of the grid, mm.
    """
    rows, columns = (_extent(window.max(axis=axes)) for axes in ((0, 2), (0, 1)))
    score, radius = roundness(fullness, radii, rows=rows, columns=columns, spacing=spacing)
    allowed = np.where(window[:, rows, columns], score, -1).astype(np.float32)
    path = track(allowed, step=1)
    at = np.arange(len(path)), path[:, 0], path[:, 1]
    smooth = ndimage.median_filter(radius[at], 9, mode="nearest")
    return Tube(path + np.array([rows.start, columns.start]), smooth, score[at])


def _extent(line: NDArray[np.bool_]) -> slice:
    """Return the span of a line's True values; all of it where there is none."""
    places = np.flatnonzero(line)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, len(line))


def roundness(
    fullness: NDArray[np.float32],
    radii: tuple[float, ...],
    *,
    rows: slice,
    columns: slice,
    spacing: Spacing,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return how much fuller a disc is than the ring around it, and its radius, in a window.

    The score is the mean of the disc less that of the ring, the largest over the radii.
    """
    sides = [int(np.ceil((max(radii) + RING) / step)) for step in spacing[1:]]
    padded = np.pad(fullness, [(0, 0), *((n, n) for n in sides)], mode="edge")
    near = padded[
        :, rows.start : rows.stop + 2 * sides[0], columns.start : columns.stop + 2 * sides[1]
    ]
    y, x = np.ogrid[-sides[0] : sides[0] + 1, -sides[1] : sides[1] + 1]
    distance = np.hypot(y * spacing[1], x * spacing[2])
    scores = []
    for radius in radii:
        inner, ring = distance <= radius, (distance > radius + 1) & (distance <= radius + RING)
        kernel = inner / max(inner.sum(), 1) - ring / max(ring.sum(), 1)
        kernel = kernel[None].astype(np.float32)  # symmetric: convolution is correlation
        scores.append(signal.fftconvolve(near, kernel, "valid", axes=(1, 2)))
    stack = np.stack(scores)
    return stack.max(axis=0), np.asarray(radii, np.float64)[stack.argmax(axis=0)]


def paint_tube(tube: Tube, shape: tuple[int, ...], spacing: Spacing) -> Mask:
    """Return a tube's discs, D H W, in the slices where it is round."""
    mask = np.zeros(shape, bool)
    smooth = ndimage.uniform_filter1d(tube.score, 5, mode="nearest")
    for d in np.flatnonzero(smooth > ROUND):
        mask[d] = disc(tube.path[d], float(tube.radius[d]) + spacing[1] / 2, shape[1:], spacing)
    return mask


def disc(
    centre: NDArray[np.generic], radius: float, shape: tuple[int, ...], spacing: Spacing
) -> NDArray[np.bool_]:
    """Return a disc, H W, of a radius in mm around (row, column) in voxels."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    y, x = (rows - centre[0]) * spacing[1], (columns - centre[1]) * spacing[2]
    return y**2 + x**2 <= radius**2
