"""Boxes of stored volumes as models see them: windowed, padded, at places drawn or given.

Letters: N patches, D H W voxels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ct3dlib.cohort.store import StoredVolume
from ct3dlib.config import Axes, Shape
from ct3dlib.scan.axes import swapped, to_model
from ct3dlib.scan.intensity import apply_window
from ct3dlib.training.draws import seed_of

Interval = tuple[float, float]


def read_box(
    volume: StoredVolume,
    start: tuple[int, int, int],
    shape: Shape,
    *,
    window: Interval,
    value_range: Interval,
    axes: Axes = "dhw",
) -> NDArray[np.float32]:
    """Return a box of a stored volume in `value_range`, its axes as a model sees them.

    Only the chunks that the box touches are read. What lies behind the volume's far end holds the
    low end of the range.

    Args:
        volume: Any domain; a volume with a window of its own (MR) keeps it.
        start: First voxel, within the volume, in the order of `axes`.
        shape: Voxels of the box, in the order of `axes`.
        window: Values that map to `value_range`; beyond it they are clipped.
        value_range: What models see.
        axes: The order in which they see it.
    """
    first, count = swapped(start, axes), swapped(shape, axes)
    stop = [min(a + n, size) for a, n, size in zip(first, count, volume.shape, strict=True)]
    stored = to_model(volume.read(first, stop), axes)
    values = apply_window(stored, volume.own_window or window, onto=value_range)
    if values.shape == tuple(shape):
        return values
    pad = [(0, n - got) for n, got in zip(shape, values.shape, strict=True)]
    return np.pad(values, pad, constant_values=value_range[0])


def draw_start(size: Shape, shape: Shape, rng: np.random.Generator) -> tuple[int, int, int]:
    """Return the first voxel of a box, drawn among all places where it fits; 0 where none does."""
    d, h, w = (int(rng.integers(max(0, n - m) + 1)) for n, m in zip(size, shape, strict=True))
    return d, h, w


def sample_patches(
    volumes: Sequence[StoredVolume],
    n: int,
    shape: Shape,
    *,
    seed: int,
    window: Interval,
    value_range: Interval,
) -> Float[Tensor, "N 1 D H W"]:
    """Return patches of volumes drawn at random, for tests, figures and statistics.

    The i-th patch depends on the seed and i alone. Every volume is as likely as any other, every
    place where a patch fits too; a smaller volume is padded at the far end as in training.

    Args:
        volumes: At least one.
        n: Number of patches, at least 1.
        shape: Voxels of a patch, any number.
        seed: Of the draw.
        window: HU that map to `value_range`; MR keeps the windows of its volumes.
        value_range: What models see.

    Raises:
        ValueError: There are no volumes, or `n` is not positive.
    """
    if not volumes:
        raise ValueError("no volumes to sample patches from; see the status tables of the store")
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    patches = []
    for i in range(n):
        rng = np.random.default_rng(seed_of("patch", seed, i))
        volume = volumes[int(rng.integers(len(volumes)))]
        start = draw_start(volume.shape, shape, rng)
        patches.append(read_box(volume, start, shape, window=window, value_range=value_range))
    return torch.from_numpy(np.stack(patches)[:, None])
