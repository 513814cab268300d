"""Axes of a volume: orientation, flips, crops. Every function returns the grid's new affine."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct3dlib.errors import VolumeError
from ct3dlib.scan.reading import MAX_VOXELS
from ct3dlib.scan.volume import Volume

Index = tuple[int, int, int]
Affine = NDArray[np.float64]

# World axis (row of the affine) that D, H and W follow in the canonical orientation: +z, +y, +x.
_CANONICAL_WORLD = (2, 1, 0)
FINEST, _COARSEST = 0.01, 100.0  # mm; beyond lie other units and damaged headers
_FLATTEST = 0.02  # volume of a voxel over that of a box of its edges; a tilt of 60 degrees has 0.5


@dataclass(frozen=True)
class Orientation:
    """Where a grid's axes come from.

    Args:
        permutation: Source axis of each new axis.
        flips: Whether the new axis runs against its source axis.
    """

    permutation: Index
    flips: tuple[bool, bool, bool]


def orientation(affine: Affine) -> Orientation:
    """Return how to permute and flip a grid's axes to those nearest to +z, +y, +x LPS.

    Of all six permutations the one with the largest sum of direction cosines is taken, so that
    oblique grids never lose an axis.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    best = max(
        itertools.permutations(range(3)),
        key=lambda axes: sum(
            abs(directions[world, axis]) for world, axis in zip(_CANONICAL_WORLD, axes, strict=True)
        ),
    )
    d, h, w = (
        bool(directions[world, axis] < 0)
        for world, axis in zip(_CANONICAL_WORLD, best, strict=True)
    )
    return Orientation((best[0], best[1], best[2]), (d, h, w))


def reorient(volume: Volume, how: Orientation) -> Volume:
    """Permute and flip a volume's axes; every voxel keeps its place in the world.

    The array is a view of the old one: no voxel is copied.
    """
    array = volume.array.transpose(how.permutation)
    step = np.zeros((4, 4))
    step[3, 3] = 1
    for new, (old, flip) in enumerate(zip(how.permutation, how.flips, strict=True)):
        step[old, new] = -1 if flip else 1
        step[old, 3] = volume.shape[old] - 1 if flip else 0
    array = array[tuple(slice(None, None, -1 if flip else 1) for flip in how.flips)]
    return Volume(array, volume.affine @ step, volume.domain)


def canonical(volume: Volume) -> Volume:
    """Return a volume whose D runs to superior, H to posterior and W to the patient's left."""
    turned = reorient(volume, orientation(volume.affine))
    return Volume(np.ascontiguousarray(turned.array), turned.affine, turned.domain)


def check_grid(name: object, affine: Affine) -> None:
    """Refuse an affine that is no grid of a scan: it would ask for any amount of memory.

    Args:
        name: What messages call the volume.
        affine: Voxel (d, h, w, 1) to LPS mm.

    Raises:
        VolumeError: `BAD_GEOMETRY` where it is not finite or singular, or where voxels lie nearer
            than 0.01 mm or farther than 100 mm.
    """
    axes = affine[:3, :3]
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or not lengths.all():
        what = "is singular or not finite"
    elif abs(np.linalg.det(axes / lengths)) < _FLATTEST:
        what = "is singular"
    elif lengths.min() < FINEST or lengths.max() > _COARSEST:
        spacing = " x ".join(f"{length:g}" for length in lengths)
        what = f"has voxels {spacing} mm apart, wanted {FINEST:g} to {_COARSEST:g} mm"
    else:
        return
    raise VolumeError(
        "BAD_GEOMETRY",
        f"{name}: its affine {what}: {affine[:3].tolist()}; write the header anew",
    )


def check_target(shape: Index) -> Index:
    """Return the shape of a grid to resample to, unless no memory holds it.

    Raises:
        VolumeError: `TOO_LARGE`.
    """
    voxels = math.prod(shape)
    if voxels > MAX_VOXELS:
        raise VolumeError(
            "TOO_LARGE",
            f"{voxels} voxels {shape} on the recipe's grid, at most {MAX_VOXELS} are stored; mend "
            f"the spacing in the header, or use a coarser recipe",
        )
    return shape


def shear(affine: Affine) -> float:
    """Return the largest cosine between two axes of a grid; 0 where all are at right angles."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(directions.T @ directions - np.eye(3)).max())


def shifted(affine: Affine, start: Index) -> Affine:
    """Return the affine of a grid whose first voxel lies at `start` of the old one."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.asarray(start, dtype=np.float64)
    return moved


def center_start(shape: Index, target: Index) -> Index:
    """Return where a centred box of `target` voxels starts; negative where it is larger.

    An odd voxel is cropped, or padded, at the end: `(n - t) // 2` and `(t - n) // 2`, as BTB3D.
    """
    d, h, w = (
        (n - t) // 2 if n > t else -((t - n) // 2) for n, t in zip(shape, target, strict=True)
    )
    return d, h, w


def crop_or_pad(volume: Volume, start: Index, *, shape: Index, fill: int | float) -> Volume:
    """Cut a box out of a volume; what lies outside the volume becomes `fill`.

    Args:
        volume: Any volume.
        start: First voxel of the box, D H W; may be negative.
        shape: Voxels of the box.
        fill: Value of what is padded.
    """
    array = np.full(shape, fill, dtype=volume.array.dtype)
    stop = tuple(s + n for s, n in zip(start, shape, strict=True))
    inside = tuple(
        slice(max(a, 0), max(min(b, n), 0))
        for a, b, n in zip(start, stop, volume.shape, strict=True)
    )
    part = volume.array[inside]
    to = tuple(slice(max(-a, 0), max(-a, 0) + n) for a, n in zip(start, part.shape, strict=True))
    if part.size:
        array[to] = part
    return Volume(array, shifted(volume.affine, start), volume.domain)
