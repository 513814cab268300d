"""The order in which a Halton sequence in three dimensions first visits the cells of a grid."""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from ct3dlib.config import Shape

_BASES = (2, 3, 5)


@lru_cache(maxsize=16)
def halton_order(grid: Shape) -> Int64[Tensor, " N"]:
    """Return the cells of a grid, each once, by the first point of the sequence that falls in it.

    Any first cells of the order lie spread over the grid, so positions that are drawn together
    tell little about each other (Besnier et al., arXiv:2503.17076, section 3.2, here in 3D).
    Halton (Numerische Mathematik 2, 1960): bases 2, 3 and 5, from the point (0, 0, 0) on; about 4
    points a cell reach all.

    Args:
        grid: Cells along (D, H, W).

    Returns:
        Numbers of cells, W fastest.
    """
    depth, height, width = grid
    num_points = 2 * depth * height * width
    while True:
        numbers = np.arange(num_points)
        d, h, w = (
            (_radical_inverse(numbers, base) * side).astype(np.int64)
            for base, side in zip(_BASES, grid, strict=True)
        )
        cells, first = np.unique((d * height + h) * width + w, return_index=True)
        if len(cells) == depth * height * width:
            return torch.from_numpy(cells[first.argsort()])
        num_points *= 2


def _radical_inverse(numbers: NDArray[np.int64], base: int) -> NDArray[np.float64]:
    """Return the digits of each number mirrored at the point, in [0, 1)."""
    left, inverse, weight = numbers.copy(), np.zeros(len(numbers)), 1.0
    while left.any():
        weight /= base
        left, digits = np.divmod(left, base)
        inverse += weight * digits
    return inverse
