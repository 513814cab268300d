"""Where the body lies in a CT, without the table."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ct3dlib.scan.geometry import Index
from ct3dlib.scan.volume import Volume

# Above -500 HU, halfway to the next whole number: the same voxels before and after rounding.
_BODY_ABOVE = -499.5
_BODY_GRID = 4.0  # mm: coarse enough that the opening takes the table off the body


def body_center(volume: Volume) -> tuple[float, float, float]:
    """Return the middle of the body's bounding box in voxels, D H W.

    The body is the largest connected part above -500 HU on a grid of about 4 mm, after an opening
    that takes the table off; without one the middle of the volume is returned.
    """
    steps = _steps(volume)
    d, h, w = (
        (part.start + part.stop - 1) / 2 * step
        for part, step in zip(_coarse_box(volume), steps, strict=True)
    )
    return d, h, w


def body_box(volume: Volume, margin: float) -> tuple[Index, Index]:
    """Return the body's bounding box and a margin, half-open, within the volume.

    The body is that of `body_center`; the box reaches to where the coarse grid has seen no body.

    Args:
        volume: HU, canonical axes.
        margin: On every side, mm.

    Returns:
        Start and stop in voxels, D H W.
    """
    start, stop = [], []
    for part, step, length, spacing in zip(
        _coarse_box(volume), _steps(volume), volume.shape, volume.spacing, strict=True
    ):
        beyond = step - 1 + round(margin / spacing)
        start.append(max(part.start * step - beyond, 0))
        stop.append(min((part.stop - 1) * step + 1 + beyond, length))
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])


def count_body(array: NDArray[np.generic]) -> int:
    """Return how many voxels are denser than air and lung."""
    # Plane by plane: a mask of the whole would be half as large as the volume.
    return sum(int(np.count_nonzero(np.greater(plane, _BODY_ABOVE))) for plane in array)


def _steps(volume: Volume) -> Index:
    """Return every how many voxels the coarse grid takes one."""
    d, h, w = (max(1, round(_BODY_GRID / spacing)) for spacing in volume.spacing)
    return d, h, w


def _coarse_box(volume: Volume) -> tuple[slice, slice, slice]:
    """Return the box of the body in voxels of the coarse grid; all of it where there is none."""
    steps = _steps(volume)
    coarse = volume.array[tuple(slice(None, None, step) for step in steps)]
    mask = np.greater(coarse, _BODY_ABOVE)
    opened = np.asarray(ndimage.binary_opening(mask), dtype=np.bool_)
    parts, count = _label(opened if opened.any() else mask)
    if not count:
        d, h, w = (slice(0, length) for length in mask.shape)
        return d, h, w
    largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
    d, h, w = ndimage.find_objects(parts, max_label=largest)[largest - 1]
    return d, h, w


def _label(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Number the connected parts of a mask."""
    parts = np.zeros(mask.shape, dtype=np.int32)
    count = ndimage.label(mask, output=parts)
    return parts, int(count)  # pyright: ignore[reportArgumentType]
