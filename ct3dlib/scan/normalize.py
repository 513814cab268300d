"""The recipe: a volume onto the grid that a store holds, and back.

Orientation, shear, spacing or size, crop or pad, rounding: in this order, each once.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ct3dlib.config import RecipeSpec, Shape
from ct3dlib.errors import VolumeError
from ct3dlib.scan.body import body_box, body_center, count_body
from ct3dlib.scan.domain import Storage, check_domain, percentile_window, storage
from ct3dlib.scan.geometry import (
    Index,
    center_start,
    check_target,
    crop_or_pad,
    orientation,
    reorient,
    shear,
    shifted,
)
from ct3dlib.scan.intensity import HU_MIN
from ct3dlib.scan.resample import (
    covered,
    resample_to,
    resampled_shape,
    resize,
    straighten,
)
from ct3dlib.scan.volume import Volume

_MAX_SHEAR = 1e-3

Row = tuple[float, float, float, float]
Matrix = tuple[Row, Row, Row, Row]


class Record(BaseModel):
    """What `normalize` did, enough to undo it; it lies in the store's attributes.

    Affines map a voxel (d, h, w, 1) to LPS mm. The source grid is the file's own, its D H W being
    the file's slowest to fastest axis.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_shape: Shape
    source_affine: Matrix
    permutation: Index = Field(description="Source axis of each canonical axis.")
    flips: tuple[bool, bool, bool] = Field(description="Whether it runs the other way.")
    straightened: bool = Field(description="Whether shear was resampled away.")
    resampled_shape: Shape
    resampled_affine: Matrix
    body: tuple[Index, Index] | None = Field(
        default=None,
        description="Start and stop on the resampled grid of what was kept; null: all of it.",
    )
    start: Index = Field(description="First voxel of the crop on the resampled grid.")
    shape: Shape
    affine: Matrix
    window: tuple[float, float] | None = Field(
        default=None, description="Low and high of this volume, in the recipe's window's place."
    )
    lost: float = Field(
        ge=0, le=1, description="Share that the crop cut off: of the body (HU) or of what is not 0."
    )


@dataclass(frozen=True)
class _Boxed:
    """A crop, where it starts on the resampled grid, and what the body crop had left."""

    volume: Volume
    start: Index
    body: tuple[Index, Index] | None
    lost: float


def normalize(volume: Volume, recipe: RecipeSpec) -> tuple[Volume, Record]:
    """Bring a volume onto its recipe's grid, in the numbers that a store holds.

    HU become int16 in [-1024, 3071], padded with -1024; 8-bit values uint8, padded with 0; MR
    int16 where the source is whole and fits, else float32, padded with its minimum or 0.

    Args:
        volume: In the recipe's domain, any orientation; a sheared grid (gantry tilt) is resampled
            upright.
        recipe: Spacing or size, then the body's box, then shape or letterbox and centre.

    Returns:
        The volume on canonical axes, and the record that `restore` needs.

    Raises:
        VolumeError: `WRONG_DOMAIN`, `SINGLE_SLICE`, `TOO_FEW_SLICES`, `TOO_LARGE`, `NOT_8_BIT`
            or `NO_CONTRAST`.
    """
    return _onto_grid(volume, recipe, storage(volume))


def place(volume: Volume, recipe: RecipeSpec) -> tuple[Volume, Record]:
    """Bring a volume onto its recipe's grid as float32, before `normalize` rounds and clips it.

    Args:
        volume: As for `normalize`.
        recipe: As for `normalize`.

    Returns:
        float32 on canonical axes, and the record of `normalize`.

    Raises:
        VolumeError: As `normalize`.
    """
    return _onto_grid(volume, recipe, Storage(None, storage(volume).fill))


def _onto_grid(volume: Volume, recipe: RecipeSpec, kept: Storage) -> tuple[Volume, Record]:
    """Do what `normalize` and `place` share."""
    check_domain(volume, recipe.domain)
    window = percentile_window(volume.array, recipe.percentiles)
    how = orientation(volume.affine)
    upright = reorient(volume, how)
    _check_slices(upright.shape[0], recipe.min_slices)
    sheared = shear(upright.affine) > _MAX_SHEAR
    straight = straighten(upright, fill=kept.fill) if sheared else _by_planes(upright)
    resampled = resize(
        straight, _size(straight, recipe), clip_first=recipe.clip_first, rounding=kept.rounding
    )
    boxed = _boxed(resampled, recipe, kept.fill)
    record = Record(
        source_shape=volume.shape,
        source_affine=_matrix(volume.affine),
        permutation=how.permutation,
        flips=how.flips,
        straightened=sheared,
        resampled_shape=resampled.shape,
        resampled_affine=_matrix(resampled.affine),
        body=boxed.body,
        start=boxed.start,
        shape=boxed.volume.shape,
        affine=_matrix(boxed.volume.affine),
        window=window,
        lost=boxed.lost,
    )
    return boxed.volume, record


def restore(
    volume: Volume, record: Record, *, fill: int | float = HU_MIN, nearest: bool = False
) -> Volume:
    """Put a volume of a store's grid back onto the exact grid of its source.

    Orientation, shear, spacing and crops are undone by one look-up through both affines, so values
    are interpolated once; what was padded takes no part in it.

    Args:
        volume: On the grid that `record` describes, values or labels.
        record: What `normalize` returned.
        fill: Value where the store holds nothing; see `validity`.
        nearest: Take the nearest voxel; for labels.

    Returns:
        The source's shape, affine and axis order, in the dtype of `volume`.

    Raises:
        ValueError: The volume has another shape than the record.
    """
    if volume.shape != record.shape:
        raise ValueError(
            f"the volume has shape {volume.shape}, its record {record.shape}; crop what was padded"
        )
    placed = Volume(volume.array, np.array(record.affine), volume.domain)
    start, shape = held_box(record)
    held = crop_or_pad(placed, start, shape=shape, fill=0)
    source = np.array(record.source_affine)
    back = resample_to(held, affine=source, shape=record.source_shape, fill=fill, nearest=nearest)
    if back.array.dtype == volume.array.dtype:
        return back
    whole = volume.array.dtype.kind in "iu"
    array = np.rint(back.array) if whole else back.array
    return Volume(array.astype(volume.array.dtype), back.affine, back.domain)


def validity(record: Record) -> Volume:
    """Return uint8 on the source's grid: 1 where the store holds data, 0 where it was cropped."""
    source = np.array(record.source_affine)
    start, shape = held_box(record)
    grid = shifted(np.array(record.affine), start)
    mask = covered(grid, shape, affine=source, shape=record.source_shape)
    return Volume(mask.astype(np.uint8), source, "uint8")


def held_box(record: Record) -> tuple[Index, Shape]:
    """Return where a store's volume holds data, not padding: start and shape on its own grid."""
    first, last = record.body or ((0, 0, 0), record.resampled_shape)
    sides = zip(record.start, record.shape, first, last, strict=True)
    d, h, w = ((max(low, a) - a, min(high, a + n) - a) for a, n, low, high in sides)
    return (d[0], h[0], w[0]), (d[1] - d[0], h[1] - h[0], w[1] - w[0])


def _check_slices(count: int, wanted: int) -> None:
    """Refuse scouts and stubs; a recipe that wants one slice, as of pictures, gets it."""
    if count == 1 < wanted:
        raise VolumeError(
            "SINGLE_SLICE", "the series has a single slice, no volume; drop it from the catalog"
        )
    if count < wanted:
        raise VolumeError(
            "TOO_FEW_SLICES",
            f"the series has {count} slices, need at least {wanted}; drop it from the catalog or "
            f"lower the recipe's min_slices",
        )


def _by_planes(volume: Volume) -> Volume:
    """Return a volume whose planes lie together in memory, as resampling reads them."""
    depth, height, width = map(abs, volume.array.strides)
    if depth >= height >= width:
        return volume
    return Volume(np.ascontiguousarray(volume.array), volume.affine, volume.domain)


def _size(volume: Volume, recipe: RecipeSpec) -> Shape:
    """Return the shape to resample to; without spacing and size the grid stays."""
    if recipe.spacing is not None:
        return check_target(resampled_shape(volume, recipe.spacing))
    if recipe.size is not None and recipe.letterbox:
        return _fitted(volume, recipe.size)
    return recipe.size or volume.shape


def _fitted(volume: Volume, size: Shape) -> Shape:
    """Return a size whose rows and columns fill the one given as far as square pixels can."""
    (_, *counts), (_, *spacing), (depth, *room) = volume.shape, volume.spacing, size
    lengths = [n * mm for n, mm in zip(counts, spacing, strict=True)]
    pixel = max(mm / n for mm, n in zip(lengths, room, strict=True))
    height, width = (max(1, round(mm / pixel)) for mm in lengths)
    return depth, height, width


def _boxed(volume: Volume, recipe: RecipeSpec, fill: int | float) -> _Boxed:
    """Crop to the body where the recipe says so, then crop and pad to its shape."""
    body, first = None, (0, 0, 0)
    if recipe.body_margin is not None:
        body = first, stop = body_box(volume, recipe.body_margin)
        d, h, w = (b - a for a, b in zip(first, stop, strict=True))
        volume = crop_or_pad(volume, first, shape=(d, h, w), fill=fill)
    shape = recipe.size if recipe.letterbox else recipe.shape
    if shape is None:
        return _Boxed(volume, first, body, 0.0)
    start = center_start(volume.shape, shape)
    if recipe.center == "body":
        start = _body_start(volume, start, shape)
    boxed = crop_or_pad(volume, start, shape=shape, fill=fill)
    d, h, w = (a + b for a, b in zip(first, start, strict=True))
    return _Boxed(boxed, (d, h, w), body, _lost(volume, boxed))


def _lost(volume: Volume, boxed: Volume) -> float:
    """Return the share of the body, or of what is not 0 outside of HU, that a crop cut off."""
    if all(kept >= n for kept, n in zip(boxed.shape, volume.shape, strict=True)):
        return 0.0
    count = count_body if volume.domain == "hu" else np.count_nonzero
    whole = int(count(volume.array))
    return (whole - int(count(boxed.array))) / whole if whole else 0.0


def _body_start(volume: Volume, start: Index, shape: Shape) -> Index:
    """Move a centred crop to the body; axes that are padded stay centred."""
    center = body_center(volume)
    d, h, w = (
        min(max(round(middle - (target - 1) / 2), 0), length - target) if length > target else old
        for middle, target, length, old in zip(center, shape, volume.shape, start, strict=True)
    )
    return d, h, w


def _matrix(affine: NDArray[np.float64]) -> Matrix:
    """Return an affine as nested tuples."""
    a, b, c, d = (tuple(row) for row in affine.tolist())
    return a, b, c, d
