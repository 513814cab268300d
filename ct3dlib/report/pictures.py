"""Volumes as pictures: three planes as a radiologist sees them, at their true proportions.

Axial slices show the patient's right on the left and the front on top; coronal and sagittal ones
have the head on top.
"""

import io
from collections.abc import Sequence

import matplotlib.image
import numpy as np
from jaxtyping import Float, Integer, Num, UInt8
from numpy.typing import NDArray
from scipy.ndimage import zoom

from ct3dlib.regions.label_map import COLORS

Picture = UInt8[np.ndarray, "_ _ 3"]  # pictures of one call differ in size
SOFT = (-160.0, 240.0)
Window = tuple[float, float]
WIDE: Window = (-1000.0, 1000.0)
LUNG = (-1350.0, 150.0)
PIXEL_MM = 1.6
_GAP = 4
# Of the regions, and of lesions, whose class stands behind theirs.
_OVERLAY = np.array((*COLORS, (255, 50, 50)), np.float32) / 255


def planes(
    hu: Num[np.ndarray, "D H W"],
    spacing: tuple[float, float, float],
    *,
    window: Window = WIDE,
    regions: Integer[np.ndarray, "D H W"] | None = None,
    at: tuple[float, float, float] = (0.5, 0.5, 0.5),
) -> Picture:
    """Return an axial, a coronal and a sagittal slice side by side; of a single slice that one.

    Args:
        hu: Canonical orientation.
        spacing: (D, H, W), mm.
        window: HU shown from black to white.
        regions: Ids 0-20 and 21 for lesions, laid over in colour.
        at: Where the slices are cut, as a share of each axis.
    """
    gray = np.clip((np.asarray(hu, np.float32) - window[0]) / (window[1] - window[0]), 0, 1)
    cut = _positions(hu, at)
    pictures = []
    for axis in _cuts(hu):
        shown = np.take(gray, cut[axis], axis=axis)
        size = [s for i, s in enumerate(spacing) if i != axis]
        picture = np.repeat(_scaled(shown, size, order=1)[..., None], 3, axis=-1)
        if regions is not None:
            ids = _scaled(np.take(regions, cut[axis], axis=axis), size, order=0)
            picture = _blended(picture, ids)
        # Slices run from foot to head: turned over, the head is on top.
        pictures.append(picture if axis == 0 else picture[::-1])
    return beside([np.clip(p * 255, 0, 255).astype(np.uint8) for p in pictures])


def shown_ids(
    regions: Integer[np.ndarray, "D H W"], *, at: tuple[float, float, float] = (0.5, 0.5, 0.5)
) -> list[int]:
    """Return the ids but 0 that `planes` shows of regions."""
    cut = _positions(regions, at)
    seen = {i for axis in _cuts(regions) for i in np.unique(np.take(regions, cut[axis], axis=axis))}
    return sorted(int(i) for i in seen if i)


def difference(
    first: Num[np.ndarray, "D H W"],
    second: Num[np.ndarray, "D H W"],
    spacing: tuple[float, float, float],
    *,
    window: Window = WIDE,
    at: tuple[float, float, float] = (0.5, 0.5, 0.5),
) -> Picture:
    """Return the planes of `second - first`: red higher, blue lower, full at 1/4 of the window."""
    error = np.clip(4 * (second.astype(np.float32) - first) / (window[1] - window[0]), -1, 1)
    high = planes(np.maximum(error, 0), spacing, window=(0.0, 1.0), at=at)[..., 0]
    low = planes(np.maximum(-error, 0), spacing, window=(0.0, 1.0), at=at)[..., 0]
    return np.stack([high, np.minimum(high, low), low], axis=-1)


def _positions(volume: Num[np.ndarray, "D H W"], at: tuple[float, float, float]) -> tuple[int, ...]:
    """Return the slice of each axis at a share of it."""
    return tuple(min(n - 1, int(n * share)) for n, share in zip(volume.shape, at, strict=True))


def _cuts(volume: Num[np.ndarray, "D H W"]) -> range:
    """Return the axes to cut across: a single slice has nothing to show from the side."""
    return range(3) if len(volume) > 1 else range(1)


def beside(pictures: Sequence[Picture]) -> Picture:
    """Return pictures in a row, centred, with dark gaps."""
    height = max(p.shape[0] for p in pictures)
    cells: list[NDArray[np.uint8]] = []
    for picture in pictures:
        above = (height - picture.shape[0]) // 2
        below = height - picture.shape[0] - above
        cells.append(np.pad(picture, ((above, below), (0, _GAP), (0, 0))))
    return np.concatenate(cells, axis=1)[:, :-_GAP]


def above(pictures: Sequence[Picture]) -> Picture:
    """Return pictures one above the other with dark gaps."""
    width = max(p.shape[1] for p in pictures)
    rows = [np.pad(p, ((0, _GAP), (0, width - p.shape[1]), (0, 0))) for p in pictures]
    return np.concatenate(rows, axis=0)[:-_GAP]


def png(picture: Picture) -> bytes:
    """Return a picture as a PNG file."""
    file = io.BytesIO()
    matplotlib.image.imsave(file, np.ascontiguousarray(picture), format="png")
    return file.getvalue()


def _scaled(
    shown: Num[np.ndarray, "H W"], size: Sequence[float], *, order: int
) -> Num[np.ndarray, "h w"]:
    """Return a slice at PIXEL_MM a pixel."""
    factors = [s / PIXEL_MM for s in size]
    return np.asarray(zoom(shown, factors, order=order, mode="nearest", grid_mode=True))


def _blended(
    picture: Float[np.ndarray, "H W 3"], ids: Integer[np.ndarray, "H W"]
) -> Float[np.ndarray, "H W 3"]:
    """Return a picture with region colours laid over it."""
    share = np.where(ids > 0, 0.4, 0.0)[..., None]
    return picture * (1 - share) + _OVERLAY[ids] * share
