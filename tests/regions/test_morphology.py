import itertools

import numpy as np
import pytest
from scipy.spatial import Delaunay

from ct3dlib.regions.morphology import (
    closing,
    components,
    dilate,
    distance_to,
    erode,
    fill_slices,
    grow,
    hull_slices,
    largest,
    number,
    occupied,
    opening,
    track,
)

SPACING = (3.0, 1.5, 2.0)


@pytest.fixture
def blobs() -> np.ndarray:
    return np.random.default_rng(0).random((9, 14, 11)) > 0.8


def slow_distance(mask: np.ndarray) -> np.ndarray:
    places = np.argwhere(mask) * SPACING
    everywhere = np.argwhere(np.ones_like(mask)) * SPACING
    return np.linalg.norm(everywhere[:, None] - places, axis=-1).min(axis=1).reshape(mask.shape)


def test_distance_is_that_of_a_slow_search(blobs):
    np.testing.assert_allclose(distance_to(blobs, SPACING), slow_distance(blobs), atol=1e-4)


def test_distance_to_nothing_is_infinite():
    assert np.isinf(distance_to(np.zeros((2, 3, 4), bool), SPACING)).all()


def test_dilate_and_erode_are_thresholds_of_the_distance():
    mask = np.zeros((9, 14, 11), bool)
    mask[2:6, 4:11, 3:9] = True
    np.testing.assert_array_equal(dilate(mask, 3.2, SPACING), slow_distance(mask) <= 3.2)
    np.testing.assert_array_equal(erode(mask, 2.5, SPACING), slow_distance(~mask) > 2.5)


def test_erode_keeps_a_face_that_the_volume_cuts():
    mask = np.zeros((4, 5, 6), bool)
    mask[:2] = True
    assert erode(mask, 3.0, SPACING)[0].all()
    assert not erode(mask, 3.0, SPACING)[1].any()


def test_empty_masks_stay_empty():
    nothing = np.zeros((3, 4, 5), bool)
    for result in (dilate(nothing, 5.0, SPACING), erode(nothing, 5.0, SPACING), largest(nothing)):
        assert not result.any()
    assert components(nothing) == []


def test_opening_and_closing_are_idempotent_and_bound_the_mask(blobs):
    mask = dilate(blobs, 1.6, SPACING)
    opened, closed = opening(mask, 2.1, SPACING), closing(mask, 2.1, SPACING)
    assert not (opened & ~mask).any()
    assert not (mask & ~closed).any()
    np.testing.assert_array_equal(opening(opened, 2.1, SPACING), opened)


def test_components_are_sorted_and_filtered():
    mask = np.zeros((1, 1, 12), bool)
    mask[0, 0, [0, 2, 3, 5, 6, 7]] = True
    assert [int(part.sum()) for part in components(mask)] == [3, 2, 1]
    assert [int(part.sum()) for part in components(mask, 2)] == [3, 2]
    assert np.flatnonzero(largest(mask)).tolist() == [5, 6, 7]
    assert not largest(mask, 4).any()
    assert number(mask)[0, 0].tolist() == [1, 0, 2, 2, 0, 3, 3, 3, 0, 0, 0, 0]


def test_grow_stays_inside_and_counts_steps():
    within = np.ones((1, 1, 9), bool)
    within[0, 0, 6] = False
    seed = np.zeros_like(within)
    seed[0, 0, 1] = True
    assert np.flatnonzero(grow(seed, within, steps=2)).tolist() == [0, 1, 2, 3]
    assert np.flatnonzero(grow(seed, within)).tolist() == [0, 1, 2, 3, 4, 5]


def test_fill_slices_fills_holes_within_a_slice_only():
    mask = np.zeros((2, 5, 5), bool)
    mask[0, 1:4, 1:4] = True
    mask[0, 2, 2] = False
    mask[1] = mask[0]
    mask[1, 1, 2] = False  # opens the second ring
    filled = fill_slices(mask)
    assert filled[0, 2, 2]
    assert not filled[1, 2, 2]
    assert occupied(mask).tolist() == [0, 1]


def test_hull_is_that_of_a_triangulation():
    rng = np.random.default_rng(1)
    mask = np.zeros((3, 30, 40), bool)
    for plane in mask[:2]:
        plane[rng.integers(3, 27, 12), rng.integers(3, 37, 12)] = True
    hull = hull_slices(mask)
    for plane, ours in zip(mask[:2], hull[:2], strict=True):
        grid = np.argwhere(np.ones_like(plane))
        inside = Delaunay(np.argwhere(plane)).find_simplex(grid) >= 0
        theirs = inside.reshape(plane.shape)
        assert not (theirs & ~ours).any()
        assert (ours & ~theirs).sum() <= 0.05 * theirs.sum()
    assert not hull[2].any()


def test_track_finds_the_best_of_all_paths():
    score = np.random.default_rng(2).normal(size=(4, 3, 3)).astype(np.float32)
    cells = list(itertools.product(range(3), range(3)))
    best, value = None, -np.inf
    for path in itertools.product(cells, repeat=4):
        steps = np.abs(np.diff(path, axis=0)).max()
        total = sum(float(score[d][cell]) for d, cell in enumerate(path))
        if steps <= 1 and total > value:
            best, value = path, total
    np.testing.assert_array_equal(track(score, 1), best)
