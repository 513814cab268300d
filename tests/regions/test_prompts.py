"""Prompts of regions whose places are known."""

import numpy as np
import pytest

from ct3dlib.regions.prompts import prompts_of, slices_of


def boxed(shape=(12, 40, 60), **boxes):
    mask = np.zeros(shape, bool)
    for d, h, w in boxes.values():
        mask[slice(*d), slice(*h), slice(*w)] = True
    return mask


def ask(mask, kind="box", margin=0.0, reach=0, size=120):
    return prompts_of(mask, size=size, kind=kind, margin=margin, reach=reach)


def test_a_box_lies_edge_to_edge_in_the_networks_pixels_on_the_largest_slice():
    mask = boxed(a=((2, 7), (10, 20), (30, 45)), b=((5, 6), (8, 22), (30, 45)))
    (prompt,) = ask(mask)
    assert (prompt.key, prompt.start, prompt.stop) == (5, 2, 7)
    assert prompt.box == (60.0, 24.0, 90.0, 66.0)  # x times 120 / 60, y times 120 / 40
    assert prompt.mask is None


def test_margin_and_reach_stop_at_the_volumes_edges():
    mask = boxed(a=((1, 11), (0, 10), (40, 60)))
    (prompt,) = ask(mask, margin=0.1, reach=3)
    assert (prompt.start, prompt.stop) == (0, 12)
    assert prompt.box == pytest.approx((76.0, 0.0, 120.0, 33.0))


def test_each_large_part_has_its_own_prompt_and_a_speck_has_none():
    mask = boxed(
        left=((0, 4), (5, 15), (5, 15)),
        right=((6, 12), (5, 15), (40, 50)),
        speck=((0, 1), (30, 32), (30, 32)),
    )
    right, left = ask(mask)
    assert (right.start, right.stop, left.start, left.stop) == (6, 12, 0, 4)
    assert right.box[0] == 80.0
    assert left.box[0] == 10.0


def test_spots_of_one_part_have_a_prompt_each_where_they_are_apart():
    legs = {"one": ((0, 8), (5, 15), (5, 15)), "other": ((0, 8), (5, 15), (40, 50))}
    mask = boxed(arch=((8, 9), (8, 9), (5, 50)), **legs)
    prompts = ask(mask)
    assert {prompt.key for prompt in prompts} == {0}
    assert sorted(prompt.box[0] for prompt in prompts) == [10.0, 80.0]
    assert {(prompt.start, prompt.stop) for prompt in prompts} == {(0, 9)}


def test_a_mask_is_the_spot_itself_at_the_networks_size():
    mask = boxed(a=((2, 7), (10, 20), (30, 45)))
    (prompt,) = ask(mask, kind="mask")
    assert prompt.box is None
    rows, columns = np.nonzero(prompt.mask.numpy())
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (30, 59, 60, 89)
    assert len(rows) == 30 * 30


def test_fine_slices_keep_exact_boxes():
    mask = boxed((3, 512, 700), a=((0, 3), (101, 303), (207, 611)))
    (prompt,) = ask(mask, size=512)
    assert prompt.box == pytest.approx((207 * 512 / 700, 101.0, 611 * 512 / 700, 303.0))


def test_what_is_not_there_is_not_asked_for():
    assert ask(np.zeros((3, 8, 8), bool)) == []


def test_slices_of_prompts_are_the_union():
    mask = boxed(a=((0, 3), (5, 15), (5, 15)), b=((8, 11), (5, 15), (40, 50)))
    assert slices_of(ask(mask, reach=1)) == [0, 1, 2, 3, 7, 8, 9, 10, 11]


def test_a_mask_thinner_than_the_networks_pixels_is_not_lost():
    mask = boxed((4, 1024, 1024), a=((1, 2), (80, 81), (80, 100)))
    (prompt,) = ask(mask, kind="mask", size=512)
    rows, columns = np.nonzero(prompt.mask.numpy())
    assert set(rows) == {40}
    assert (columns.min(), columns.max()) == (40, 49)
