"""Binary morphology in mm on a working grid, axes D H W."""

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]


def distance_to(mask: Mask, spacing: Spacing) -> NDArray[np.float32]:
    """Return the distance of every voxel to the nearest voxel of the mask, mm; inf if empty.

    Maurer, Qi and Raghavan 2003, linear time.
    """
    if not mask.any():
        return np.full(mask.shape, np.inf, np.float32)
    picture = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
    picture.SetSpacing(spacing[::-1])
    distance = SimpleITK.SignedMaurerDistanceMap(
        picture, squaredDistance=False, useImageSpacing=True
    )
    return np.maximum(SimpleITK.GetArrayFromImage(distance), 0)


def dilate(mask: Mask, radius: float, spacing: Spacing) -> Mask:
    """Return all voxels within `radius` mm of the mask."""
    box = _around(mask, radius, spacing)
    dilated = np.zeros_like(mask)
    dilated[box] = distance_to(mask[box], spacing) <= radius
    return dilated


def erode(mask: Mask, radius: float, spacing: Spacing) -> Mask:
    """Return the mask's voxels farther than `radius` mm from its outside.

    What lies beyond the volume does not count as outside: a cut organ keeps its cut face.
    """
    box = _around(mask, max(spacing), spacing)
    eroded = np.zeros_like(mask)
    eroded[box] = distance_to(~mask[box], spacing) > radius
    return eroded


def _around(mask: Mask, margin: float, spacing: Spacing) -> tuple[slice, ...]:
    """Return the bounding box of a mask, widened by a margin in mm; distances cost its voxels."""
    box = []
    for axis, step in enumerate(spacing):
        places = np.flatnonzero(mask.max(axis=tuple(a for a in range(3) if a != axis), initial=0))
        reach = int(np.ceil(margin / step))
        low, high = (places[0], places[-1] + 1) if len(places) else (0, 0)
        box.append(slice(max(int(low) - reach, 0), int(high) + reach))
    return tuple(box)


def opening(mask: Mask, radius: float, spacing: Spacing) -> Mask:
    """Return the parts of the mask that a ball of `radius` mm fits into."""
    return mask & dilate(erode(mask, radius, spacing), radius, spacing)


def closing(mask: Mask, radius: float, spacing: Spacing) -> Mask:
    """Return the mask with gaps filled that a ball of `radius` mm does not fit into."""
    return mask | erode(dilate(mask, radius, spacing), radius, spacing)


def number(mask: Mask) -> NDArray[np.int32]:
    """Return the number of the face-connected component that each element lies in; 0 outside."""
    numbers = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, 1), output=numbers)
    return numbers


def grow(seed: Mask, within: Mask, steps: int = 0) -> Mask:
    """Return the seed grown by `steps` voxels over faces inside a mask; 0: as far as it goes."""
    faces = ndimage.generate_binary_structure(3, 1)
    grown = ndimage.binary_dilation(seed & within, faces, iterations=steps or -1, mask=within)
    return np.asarray(grown, bool)


def components(mask: Mask, smallest: int = 1) -> list[Mask]:
    """Return the face-connected components of at least `smallest` voxels, largest first."""
    numbers = number(mask)
    sizes = np.bincount(numbers.ravel())
    sizes[0] = 0
    order = np.argsort(-sizes, kind="stable")
    return [numbers == i for i in order if sizes[i] >= max(smallest, 1)]


def largest(mask: Mask, smallest: int = 1) -> Mask:
    """Return the largest component; all False where none has `smallest` voxels."""
    numbers = number(mask)
    sizes = np.bincount(numbers.ravel())
    sizes[0] = 0
    winner = int(sizes.argmax())
    return (numbers == winner) if sizes[winner] >= max(smallest, 1) else np.zeros_like(mask)


def occupied(mask: Mask) -> NDArray[np.intp]:
    """Return the slices that the mask has a voxel in, rising."""
    return np.flatnonzero(mask.any(axis=(1, 2)))


def fill_slices(mask: Mask) -> Mask:
    """Return the mask with the holes of every axial slice filled."""
    return np.stack([np.asarray(ndimage.binary_fill_holes(plane), bool) for plane in mask])


def hull_slices(mask: Mask) -> Mask:
    """Return the convex hull of every axial slice.

    A point is inside when, for each of 64 directions, it lies no farther than the mask's
    farthest voxel: exact up to the corners between directions, and without a triangulation.
    """
    hull = np.zeros_like(mask)
    angles = np.arange(64) * (2 * np.pi / 64)
    normals = np.stack([np.sin(angles), np.cos(angles)])  # 2 N
    rows, columns = np.indices(mask.shape[1:])
    grid = np.stack([rows, columns], axis=-1)  # H W 2
    for plane, out in zip(mask, hull, strict=True):
        points = np.argwhere(plane)
        if len(points):
            reach = (points @ normals).max(axis=0)
            low, high = points.min(axis=0), points.max(axis=0) + 1
            box = slice(low[0], high[0]), slice(low[1], high[1])
            out[box] = (grid[box] @ normals <= reach + 1e-6).all(axis=-1)
    return hull


def track(score: NDArray[np.float32], step: int) -> NDArray[np.int64]:
    """Return the path through all slices of the largest summed score, D 2 (row, column).

    Between slices the path moves at most `step` voxels in row and in column: dynamic
    programming (Viterbi), so one bad slice does not lead it astray.
    """
    total = np.array(score, dtype=np.float64)
    size = 2 * step + 1
    for d in range(1, len(total)):
        total[d] += ndimage.maximum_filter(total[d - 1], size, mode="nearest")
    path = np.zeros((len(total), 2), np.int64)
    path[-1] = np.unravel_index(total[-1].argmax(), total[-1].shape)
    for d in range(len(total) - 2, -1, -1):
        low = np.maximum(path[d + 1] - step, 0)
        window = total[d, low[0] : path[d + 1, 0] + step + 1, low[1] : path[d + 1, 1] + step + 1]
        path[d] = low + np.unravel_index(window.argmax(), window.shape)
    return path
