import math

import numpy as np
import pytest

from ct3dlib.metrics.overlap import (
    Overlap,
    dice,
    overlaps,
    union_dice,
    union_overlap,
    volume_error,
)

TRUTH = np.array([[1, 1, 1, 2], [0, 0, 2, 2]])
PREDICTED = np.array([[1, 1, 2, 2], [1, 0, 0, 2]])


def test_dice_by_hand():
    scores = dice(PREDICTED, TRUTH, [1, 2])
    assert scores == {1: pytest.approx(2 * 2 / 6), 2: pytest.approx(2 * 2 / 6)}


def test_dice_against_sets():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 5, (2, 6, 7, 8)).astype(np.uint8)
    for i, score in dice(one, other, range(5)).items():
        a, b = set(np.flatnonzero(one == i)), set(np.flatnonzero(other == i))
        assert score == pytest.approx(2 * len(a & b) / (len(a) + len(b)))


def test_dice_bounds():
    assert dice(TRUTH, TRUTH, [0, 1, 2]) == {0: 1.0, 1: 1.0, 2: 1.0}
    assert dice(np.full((2, 4), 3), TRUTH, [1, 3]) == {1: 0.0, 3: 0.0}


def test_dice_of_an_id_that_is_nowhere_is_nan():
    assert math.isnan(dice(TRUTH, TRUTH, [7])[7])


def test_union_forgives_confusion_inside_it():
    swapped = np.select([TRUTH == 1, TRUTH == 2], [2, 1])
    assert dice(swapped, TRUTH, [1])[1] == 0
    assert union_dice(swapped, TRUTH, [1, 2]) == 1
    assert union_dice(PREDICTED, TRUTH, [1, 2]) == pytest.approx(2 * 5 / 12)


def test_volume_error_is_signed():
    error = volume_error(np.array([1, 1, 1, 0, 2]), np.array([1, 1, 2, 2, 2]), [1, 2, 3])
    assert error[1] == pytest.approx(0.5)
    assert error[2] == pytest.approx(-2 / 3)
    assert math.isnan(error[3])


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"one shape are wanted: \(2,\) and \(3,\)"):
        dice(np.zeros(2, int), np.zeros(3, int), [1])


def test_ids_must_not_be_negative():
    with pytest.raises(ValueError, match=r"ids are 0 or more: \[-1\]"):
        volume_error(np.zeros(2, int), np.zeros(2, int), [-1])


def test_overlaps_by_hand():
    found = overlaps(PREDICTED, TRUTH, [2, 7])
    assert found == {2: Overlap(predicted=3, truth=3, both=2), 7: Overlap(0, 0, 0)}
    assert union_overlap(PREDICTED, TRUTH, [1, 2]) == Overlap(predicted=6, truth=6, both=5)
