"""Resampling of volumes. Linear for HU, nearest for labels; the field of view is kept."""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ct3dlib.config import Shape, Triple
from ct3dlib.scan.geometry import check_target
from ct3dlib.scan.volume import Volume

# A spacing that went through a float32 header or a rotation is off by 1e-7 of itself; without
# this share of a voxel 100 slices of 1.5 mm would become 99.
_SLACK = 1e-4


class Rounding(NamedTuple):
    """How interpolated values are kept as whole numbers.

    Args:
        dtype: Of the result.
        low: What lies under it becomes it.
        high: What lies over it becomes it.
    """

    dtype: type[np.integer]
    low: int
    high: int


def resample(volume: Volume, spacing: Triple) -> Volume:
    """Resample a volume to another spacing.

    The field of view is kept, so the spacing that comes out differs a little from the target and
    the origin moves.

    Args:
        volume: HU, any spacing.
        spacing: Target (D, H, W), mm.

    Raises:
        ValueError: A spacing is not positive.
    """
    return resize(volume, resampled_shape(volume, spacing))


def resampled_shape(volume: Volume, spacing: Triple) -> Shape:
    """Return a volume's shape at another spacing: `int(n * (spacing / target))`, at least 1.

    The size is cut off, not rounded, as BTB3D does.

    Args:
        volume: Any spacing.
        spacing: Target (D, H, W), mm.

    Raises:
        ValueError: A spacing is not positive.
    """
    if not all(math.isfinite(target) and target > 0 for target in spacing):
        raise ValueError(f"spacing must be positive, in mm: {spacing}")
    d, h, w = (
        max(1, int(n * (given / target) + _SLACK))
        for n, given, target in zip(volume.shape, volume.spacing, spacing, strict=True)
    )
    return d, h, w


def resize(
    volume: Volume,
    size: Shape,
    *,
    clip_first: tuple[float, float] | None = None,
    rounding: Rounding | None = None,
) -> Volume:
    """Resample a volume to a number of voxels over the same field of view.

    Trilinear without antialiasing, `align_corners=False`: voxel centres of the result lie at
    `(i + 0.5) * n / size - 0.5`, clamped to the outer centres.

    Args:
        volume: HU, any size.
        size: Voxels along (D, H, W).
        clip_first: Low and high that values are clipped to before they are interpolated.
        rounding: Whole numbers to round the result to; null: keep it as it is.

    Returns:
        The new grid; float32, or the integers of `rounding`.
    """
    array = np.empty(size, dtype=rounding.dtype if rounding else np.float32)
    for kept, plane in zip(array, _planes(volume.array, size, clip_first), strict=True):
        if rounding:
            kept[...] = plane.round().clamp_(rounding.low, rounding.high).numpy()
        else:
            kept[...] = plane.numpy()
    ratio = np.array(volume.shape) / np.array(size)
    affine = volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, :3] * ratio
    affine[:3, 3] += volume.affine[:3, :3] @ ((ratio - 1) / 2)
    return Volume(array, affine, volume.domain)


class _Taps(NamedTuple):
    """Between which two values of a line each new one lies, and how near to the second."""

    low: Int[Tensor, " N"]
    high: Int[Tensor, " N"]
    share: Float[Tensor, " N"]


def _taps(count: int, size: int) -> _Taps:
    """Return where the values of a resized line lie; exact to float32 at any length."""
    places = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
    low = np.floor(places)
    high, share = np.ceil(places), (places - low).astype(np.float32)
    return _Taps(
        torch.from_numpy(low.astype(np.int64)),
        torch.from_numpy(high.astype(np.int64)),
        torch.from_numpy(share),
    )


def _planes(
    array: NDArray[np.generic], size: Shape, clip_first: tuple[float, float] | None
) -> Iterator[Float[Tensor, "H W"]]:
    """Yield the planes of a resized array one by one.

    Trilinear is bilinear within the planes, then linear between two of them: floats exist only
    for those two, so a whole scan never does in float32, and what is worked on stays in cache.
    """
    depth, rows, columns = (_taps(n, m) for n, m in zip(array.shape, size, strict=True))
    held: dict[int, Float[Tensor, "H W"]] = {}
    for low, high, share in zip(*(part.tolist() for part in depth), strict=True):
        held = {
            d: held[d] if d in held else _plane(array[d], rows, columns, clip_first=clip_first)
            for d in (low, high)
        }
        yield torch.lerp(held[low], held[high], share)


def _plane(
    values: NDArray[np.generic],
    rows: _Taps,
    columns: _Taps,
    *,
    clip_first: tuple[float, float] | None,
) -> Float[Tensor, "H W"]:
    """Return one plane at another size, bilinear."""
    plane = np.array(values, dtype=np.float32, order="C")
    if clip_first is not None:
        np.clip(plane, *clip_first, out=plane)
    resized = torch.from_numpy(plane)
    for axis, taps in ((0, rows), (1, columns)):
        if len(taps.low) == plane.shape[axis]:
            continue
        low, high = resized.index_select(axis, taps.low), resized.index_select(axis, taps.high)
        resized = torch.lerp(low, high, taps.share[:, None] if axis == 0 else taps.share)
    return resized


def resample_to(
    volume: Volume,
    *,
    affine: NDArray[np.float64],
    shape: Shape,
    fill: int | float,
    nearest: bool = False,
) -> Volume:
    """Resample a volume onto any grid, sheared or oblique as it may be.

    Args:
        volume: Values to look up.
        affine: Of the new grid, voxel (d, h, w, 1) to LPS mm.
        shape: Voxels of the new grid.
        fill: Value outside the volume's outer voxel edges.
        nearest: Take the nearest voxel instead of interpolating; for labels.

    Returns:
        The volume's dtype where `nearest`, else float32.
    """
    to_voxel = np.linalg.inv(volume.affine) @ affine
    array = ndimage.affine_transform(
        volume.array,
        to_voxel,
        output_shape=shape,
        output=volume.array.dtype if nearest else np.float32,
        order=0 if nearest else 1,
        mode="nearest",
    )
    array[~covered(volume.affine, volume.shape, affine=affine, shape=shape)] = fill
    return Volume(array, affine, volume.domain)


def straighten(volume: Volume, *, fill: int | float) -> Volume:
    """Resample a sheared volume onto upright axes: +z, +y, +x.

    The new grid spans the sheared one; W and H keep their spacing, D gets the distance of slices
    along their normal.

    Args:
        volume: Canonical axes, any shear.
        fill: Value of the corners that the sheared volume does not reach.

    Raises:
        VolumeError: `TOO_LARGE`.
    """
    columns = volume.affine[:3, :3]
    normal = np.cross(columns[:, 1], columns[:, 2])
    slices = abs(columns[:, 0] @ normal) / np.linalg.norm(normal)
    spacing = np.array([slices, *volume.spacing[1:]])
    ends = [(-0.5, length - 0.5) for length in volume.shape]
    corners = np.array(list(itertools.product(*ends))) @ columns.T + volume.affine[:3, 3]
    low, high = corners.min(axis=0)[::-1], corners.max(axis=0)[::-1]  # z y x
    d, h, w = np.maximum(np.ceil((high - low) / spacing - _SLACK), 1).astype(int).tolist()
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = spacing
    affine[:3, 3] = (low + spacing / 2)[::-1]
    affine[3, 3] = 1
    return resample_to(volume, affine=affine, shape=check_target((d, h, w)), fill=fill)


def covered(
    source: NDArray[np.float64],
    source_shape: Shape,
    *,
    affine: NDArray[np.float64],
    shape: Shape,
) -> NDArray[np.bool_]:
    """Return which voxel centres of a grid lie within another grid's outer voxel edges.

    Args:
        source: Affine of the grid that covers.
        source_shape: Its voxels.
        affine: Of the grid that is asked about.
        shape: Its voxels.
    """
    to_voxel = np.linalg.inv(source) @ affine
    inside = np.ones(shape, dtype=np.bool_)
    for axis, length in enumerate(source_shape):
        place = np.full((1, 1, 1), to_voxel[axis, 3], dtype=np.float64)
        for along, count in enumerate(shape):
            # A grid that is only shifted or scaled stays one-dimensional per axis: no full array.
            if abs(to_voxel[axis, along]) * count > _SLACK:
                line = [1, 1, 1]
                line[along] = count
                place = place + (to_voxel[axis, along] * np.arange(count)).reshape(line)
        inside &= (place >= -0.5 - _SLACK) & (place <= length - 0.5 + _SLACK)
    return inside
