"""Axes of a volume: orientation, flips, crops. Every function returns the grid's new affine."""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct3dlib.scan.volume import Volume

Index = tuple[int, int, int]
Affine = NDArray[np.float64]

# World axis (row of the affine) that D, H and W follow in the canonical orientation: +z, +y, +x.
_CANONICAL_WORLD = (2, 1, 0)


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
    """Permute and flip a volume's axes; every voxel keeps its place in the world."""
    array = volume.array.transpose(how.permutation)
    step = np.zeros((4, 4))
    step[3, 3] = 1
    for new, (old, flip) in enumerate(zip(how.permutation, how.flips, strict=True)):
        step[old, new] = -1 if flip else 1
        step[old, 3] = volume.shape[old] - 1 if flip else 0
    array = array[tuple(slice(None, None, -1 if flip else 1) for flip in how.flips)]
    return Volume(np.ascontiguousarray(array), volume.affine @ step, volume.domain)


def canonical(volume: Volume) -> Volume:
    """Return a volume whose D runs to superior, H to posterior and W to the patient's left."""
    return reorient(volume, orientation(volume.affine))


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
