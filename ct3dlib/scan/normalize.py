"""The recipe: a volume in HU onto the grid that a store holds, and back.

Orientation, shear, spacing or size, crop or pad, rounding: in this order, each once.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from ct3dlib.config import RecipeSpec, Shape
from ct3dlib.errors import VolumeError
from ct3dlib.scan.geometry import (
    Index,
    center_start,
    crop_or_pad,
    orientation,
    reorient,
    shear,
)
from ct3dlib.scan.intensity import HU_MAX, HU_MIN
from ct3dlib.scan.resample import covered, resample, resample_to, resize, straighten
from ct3dlib.scan.volume import Volume

_MAX_SHEAR = 1e-3
_BODY_ABOVE = -500  # HU
_BODY_GRID = 4.0  # mm: coarse enough that the opening takes the table off the body

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
    start: Index = Field(description="First voxel of the crop on the resampled grid.")
    shape: Shape
    affine: Matrix
    lost: float = Field(ge=0, le=1, description="Share of body voxels that the crop cut off.")


def normalize(volume: Volume, recipe: RecipeSpec) -> tuple[Volume, Record]:
    """Bring a volume onto its recipe's grid.

    Args:
        volume: HU, any orientation; a sheared grid (gantry tilt) is resampled upright.
        recipe: Spacing or size, then shape and centre.

    Returns:
        int16 HU in [-1024, 3071], canonical axes, and the record that `restore` needs. What is
        padded is -1024.

    Raises:
        VolumeError: `SINGLE_SLICE` or `TOO_FEW_SLICES`.
        ValueError: The values are not HU.
    """
    if volume.domain != "hu":
        raise ValueError(f"a recipe normalises HU, not values of domain {volume.domain!r}")
    how = orientation(volume.affine)
    upright = reorient(volume, how)
    _check_slices(upright.shape[0], recipe.min_slices)
    sheared = shear(upright.affine) > _MAX_SHEAR
    straight = straighten(upright, fill=HU_MIN) if sheared else upright
    resampled = _resampled(straight, recipe)
    boxed, start, lost = _boxed(resampled, recipe)
    array = np.clip(np.rint(boxed.array), HU_MIN, HU_MAX).astype(np.int16)
    record = Record(
        source_shape=volume.shape,
        source_affine=_matrix(volume.affine),
        permutation=how.permutation,
        flips=how.flips,
        straightened=sheared,
        resampled_shape=resampled.shape,
        resampled_affine=_matrix(resampled.affine),
        start=start,
        shape=boxed.shape,
        affine=_matrix(boxed.affine),
        lost=lost,
    )
    return Volume(array, boxed.affine, "hu"), record


def restore(
    volume: Volume, record: Record, *, fill: int | float = HU_MIN, nearest: bool = False
) -> Volume:
    """Put a volume of a store's grid back onto the exact grid of its source.

    Orientation, shear, spacing and crop are undone by one look-up through both affines, so values
    are interpolated once.

    Args:
        volume: On the grid that `record` describes, HU or labels.
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
    source = np.array(record.source_affine)
    back = resample_to(placed, affine=source, shape=record.source_shape, fill=fill, nearest=nearest)
    if back.array.dtype == volume.array.dtype:
        return back
    whole = volume.array.dtype.kind in "iu"
    array = np.rint(back.array) if whole else back.array
    return Volume(array.astype(volume.array.dtype), back.affine, back.domain)


def validity(record: Record) -> Volume:
    """Return uint8 on the source's grid: 1 where the store holds data, 0 where it was cropped."""
    source = np.array(record.source_affine)
    mask = covered(np.array(record.affine), record.shape, affine=source, shape=record.source_shape)
    return Volume(mask.astype(np.uint8), source, "uint8")


def _check_slices(count: int, wanted: int) -> None:
    """Refuse scouts and stubs."""
    if count == 1:
        raise VolumeError(
            "SINGLE_SLICE", "the series has a single slice, no volume; drop it from the catalog"
        )
    if count < wanted:
        raise VolumeError(
            "TOO_FEW_SLICES",
            f"the series has {count} slices, need at least {wanted}; drop it from the catalog or "
            f"lower the recipe's min_slices",
        )


def _resampled(volume: Volume, recipe: RecipeSpec) -> Volume:
    """Resample as the recipe says; without spacing and size the grid stays."""
    if recipe.spacing is not None:
        return resample(volume, recipe.spacing)
    return volume if recipe.size is None else resize(volume, recipe.size)


def _boxed(volume: Volume, recipe: RecipeSpec) -> tuple[Volume, Index, float]:
    """Crop and pad to the recipe's shape; returns the start and the lost share of the body too."""
    if recipe.shape is None:
        return volume, (0, 0, 0), 0.0
    start = center_start(volume.shape, recipe.shape)
    if recipe.center == "body":
        start = _body_start(volume, start, recipe.shape)
    boxed = crop_or_pad(volume, start, shape=recipe.shape, fill=HU_MIN)
    body = np.count_nonzero(_dense(volume.array))
    kept = np.count_nonzero(_dense(boxed.array))
    return boxed, start, (body - kept) / body if body else 0.0


def _body_start(volume: Volume, start: Index, shape: Shape) -> Index:
    """Move a centred crop to the body; axes that are padded stay centred."""
    center = body_center(volume)
    d, h, w = (
        min(max(round(middle - (target - 1) / 2), 0), length - target) if length > target else old
        for middle, target, length, old in zip(center, shape, volume.shape, start, strict=True)
    )
    return d, h, w


def body_center(volume: Volume) -> tuple[float, float, float]:
    """Return the middle of the body's bounding box in voxels, D H W.

    The body is the largest connected part above -500 HU on a grid of about 4 mm, after an opening
    that takes the table off; without one the middle of the volume is returned.
    """
    steps = [max(1, round(_BODY_GRID / spacing)) for spacing in volume.spacing]
    mask = _dense(volume.array[tuple(slice(None, None, step) for step in steps)])
    opened = np.asarray(ndimage.binary_opening(mask), dtype=np.bool_)
    parts, count = _label(opened if opened.any() else mask)
    box = [slice(0, length) for length in mask.shape]
    if count:
        largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
        box = ndimage.find_objects(parts, max_label=largest)[largest - 1]
    d, h, w = (
        (part.start + part.stop - 1) / 2 * step for part, step in zip(box, steps, strict=True)
    )
    return d, h, w


def _dense(array: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Return where a volume is denser than air and lung."""
    return np.greater(array, _BODY_ABOVE)


def _label(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Number the connected parts of a mask."""
    parts = np.zeros(mask.shape, dtype=np.int32)
    count = ndimage.label(mask, output=parts)
    return parts, int(count)  # pyright: ignore[reportArgumentType]


def _matrix(affine: NDArray[np.float64]) -> Matrix:
    """Return an affine as nested tuples."""
    a, b, c, d = (tuple(row) for row in affine.tolist())
    return a, b, c, d
