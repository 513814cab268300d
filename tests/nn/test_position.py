import itertools
import math

import numpy as np
import pytest
import torch

from ct3dlib.nn.position import (
    grid_positions,
    resize_table,
    rotary_angles,
    rotate,
    sincos_3d,
    sincos_table,
)

CPU = torch.device("cpu")


def test_grid_positions_run_along_w_first():
    positions = grid_positions((2, 3, 4), CPU)
    assert positions.shape == (24, 3)
    assert positions[1].tolist() == [0, 0, 1]
    assert positions[4].tolist() == [0, 1, 0]
    assert positions[23].tolist() == [1, 2, 3]


def test_grid_positions_of_one_token_per_axis():
    assert grid_positions((1, 1, 1), CPU).tolist() == [[0, 0, 0]]


def test_sincos_of_six_channels_by_hand():
    rows = sincos_3d(torch.tensor([[1.0, 2.0, 3.0]]), 7)
    waves = [f(x) for x in (1, 2, 3) for f in (math.sin, math.cos)]
    torch.testing.assert_close(rows, torch.tensor([[*waves, 0.0]]))


def test_sincos_rows_are_bounded_and_unique():
    rows = sincos_3d(grid_positions((5, 6, 30), CPU), 48)
    assert rows.abs().max() <= 1
    distances = torch.cdist(rows, rows).fill_diagonal_(1.0)
    assert distances.min() > 0.1


def test_sincos_needs_six_channels():
    with pytest.raises(ValueError, match="at least 6 channels, not 4"):
        sincos_3d(torch.zeros(1, 3), 4)


@pytest.mark.parametrize("head_size", [4, 7])
def test_rotary_angles_refuse_a_head_they_cannot_turn(head_size):
    with pytest.raises(ValueError, match=f"even head of at least 6 channels, not {head_size}"):
        rotary_angles(torch.zeros(1, 3), head_size)


def test_rotary_angles_give_each_axis_a_third_and_leave_the_rest():
    angles = rotary_angles(torch.tensor([[1.0, 2.0, 3.0]]), 16)
    # two pairs per axis at frequencies 1 and 1/10, two pairs that stay
    expected = torch.tensor([[1, 0.1, 2, 0.2, 3, 0.3, 0, 0]])
    torch.testing.assert_close(angles, expected)


def test_rotate_is_multiplication_by_complex_numbers():
    heads = torch.randn(2, 3, 5, 12)
    angles = torch.randn(5, 6)
    oracle = torch.complex(*heads.chunk(2, dim=-1)) * torch.exp(1j * angles)
    expected = torch.cat((oracle.real, oracle.imag), dim=-1)
    torch.testing.assert_close(rotate(heads, angles), expected)


def test_rotated_products_depend_on_the_offset_only():
    query, key = torch.randn(2, 1, 1, 1, 12, dtype=torch.float64)
    at = torch.tensor([[1.0, 2.0, 3.0], [2.0, 5.0, 4.0]])
    products = []
    for shift in (torch.zeros(3), torch.tensor([4.0, -1.0, 7.0])):
        angles = rotary_angles(at + shift, 12).double()
        products.append((rotate(query, angles[:1]) * rotate(key, angles[1:])).sum())
    torch.testing.assert_close(products[0], products[1], rtol=1e-5, atol=1e-5)
    unturned = (query * key).sum()
    assert abs(products[0] - unturned) > 1e-3


def test_sincos_of_many_grids_are_those_of_each():
    positions = grid_positions((2, 3, 4), CPU)
    moved = torch.stack([positions, positions + torch.tensor([5.0, 0, 0])])
    rows = sincos_3d(moved, 20)
    assert rows.shape == (2, 24, 20)
    assert torch.equal(rows[0], sincos_3d(positions, 20))
    assert torch.equal(rows[1], sincos_3d(moved[1], 20))
    assert torch.equal(rows[0, :, 6:], rows[1, :, 6:])  # of H and W


def test_the_table_of_positions_is_three_parts_of_sines_and_cosines():
    """By the formula, channel by channel, for the two widths of the published weights."""
    for width, parts in ((1024, (341, 341, 342)), (512, (170, 171, 171))):
        table = sincos_table((3, 4, 5), width).double()
        assert table.shape == (61, width)
        assert not table[0].any()
        rows = list(itertools.product(range(3), range(4), range(5)))
        for row, at in ((1, rows[0]), (24, rows[23]), (60, rows[59])):
            wanted = []
            for place, size in zip(at, parts, strict=True):
                half = size // 2
                angles = [place * 10000 ** (-k / half) for k in range(half)]
                wanted += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
                wanted += [math.sin(place / 10000)] * (size % 2)
            torch.testing.assert_close(
                table[row], torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-6
            )


def test_the_table_of_positions_knows_grids_that_are_no_cubes():
    table = sincos_table((8, 16, 12), 48)[1:].unflatten(0, (8, 16, 12))
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        part = table[..., 16 * axis : 16 * (axis + 1)]
        assert part.std(dim=others).max() < 1e-6
        assert part.std(dim=axis).max() > 0.1


def test_positions_stretched_onto_another_grid_stay_where_they_were():
    table = sincos_table((8, 8, 8), 48)
    assert torch.equal(resize_table(table, (8, 8, 8), to=(8, 8, 8)), table)
    half = resize_table(table, (8, 8, 8), to=(4, 4, 4))
    assert torch.equal(half[0], table[0])
    # A patch of the coarse grid lies in the middle of eight fine ones: trilinear gives their mean.
    fine = table[1:].unflatten(0, (4, 2, 4, 2, 4, 2)).mean(dim=(1, 3, 5)).flatten(0, 2)
    torch.testing.assert_close(half[1:], fine)
    other = resize_table(table, (8, 8, 8), to=(6, 8, 12))[1:].unflatten(0, (6, 8, 12))
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        assert other[..., 16 * axis : 16 * (axis + 1)].std(dim=others).max() < 1e-6


@pytest.mark.parametrize("grid", [(8, 8, 8), (12, 16, 16), (24, 16, 16)])
def test_stretched_positions_are_interpolated_along_each_axis(grid):
    """Against matrices of half-voxel linear interpolation, written out."""
    table = sincos_table((16, 16, 16), 48)
    found = resize_table(table, (16, 16, 16), to=grid)[1:].unflatten(0, grid)
    wanted = table[1:].unflatten(0, (16, 16, 16))
    for axis, size in enumerate(grid):
        moved = torch.tensordot(lerp_matrix(size, 16), wanted.movedim(axis, 0), 1)
        wanted = moved.movedim(0, axis)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def lerp_matrix(size: int, old: int) -> torch.Tensor:
    """Return what each of `size` places takes of `old` ones whose outer edges are theirs."""
    matrix = torch.zeros(size, old)
    for i in range(size):
        at = min(max((i + 0.5) * old / size - 0.5, 0), old - 1)
        low = min(int(at), old - 2)
        matrix[i, low], matrix[i, low + 1] = 1 - (at - low), at - low
    return matrix


@pytest.mark.parametrize(("width", "parts"), [(1024, (341, 341, 342)), (512, (170, 171, 171))])
def test_the_published_table_of_positions_row_by_row(width, parts):
    rows = np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"), -1).reshape(-1, 3)
    columns = []
    for axis, size in enumerate(parts):
        half = size // 2
        angles = rows[:, axis : axis + 1] / 10000 ** (np.arange(half) / half)
        extra = [np.sin(rows[:, axis : axis + 1] / 10000)] * (size % 2)
        columns += [np.sin(angles), np.cos(angles), *extra]
    found = sincos_table((16, 16, 16), width)[1:].numpy()
    np.testing.assert_allclose(found, np.concatenate(columns, axis=1), rtol=0, atol=1e-6)
