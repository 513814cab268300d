import numpy as np
import pytest
import torch

from ct3dlib.inference.halton import halton_order


@pytest.mark.parametrize(
    "grid", [(1, 1, 1), (4, 4, 4), (8, 8, 8), (8, 16, 16), (16, 16, 16), (3, 5, 7)]
)
def test_every_cell_comes_once(grid):
    order = halton_order(grid)
    assert torch.equal(order.sort().values, torch.arange(order.numel()))
    assert order.numel() == np.prod(grid)


def _inverse(number: int, base: int) -> float:
    """Return the radical inverse digit by digit."""
    inverse, weight = 0.0, 1 / base
    while number:
        number, digit = divmod(number, base)
        inverse, weight = inverse + digit * weight, weight / base
    return inverse


def test_cells_follow_the_points_of_the_sequence():
    wanted: list[int] = []
    number = 0
    while len(wanted) < 512:
        d, h, w = (int(_inverse(number, base) * 8) for base in (2, 3, 5))
        cell = (d * 8 + h) * 8 + w
        wanted += [cell] if cell not in wanted else []
        number += 1
    assert halton_order((8, 8, 8)).tolist() == wanted
    assert number == 1553  # points until the last of 8 x 8 x 8 cells is reached


def test_the_first_cells_lie_in_every_octant():
    order = halton_order((8, 8, 8))[:64]
    d, h, w = order // 64, order // 8 % 8, order % 8
    counts = torch.bincount(4 * (d >= 4) + 2 * (h >= 4) + (w >= 4), minlength=8)
    assert 6 <= counts.min() <= counts.max() <= 9
