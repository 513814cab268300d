import numpy as np
import pytest
from monai.metrics import compute_froc_curve_data, compute_froc_score

from ct3dlib.metrics.bootstrap import UndefinedScoreError
from ct3dlib.metrics.detection import (
    Box,
    Matches,
    find_boxes,
    froc,
    froc_with_intervals,
    match_boxes,
)

GRID = (6, 7, 8)
POINTS = (0.125, 0.25, 0.5, 1, 2, 4, 8)


def sensitivities(scores):
    return [scores[f"sensitivity_at_{point:g}"] for point in POINTS]


def box(start, stop, score):
    sides = np.subtract(stop, start)
    return Box(start, stop, score, int(sides.prod()))


def draw(*corners):
    """Draw lesions 1, 2, ... that fill boxes (start, stop)."""
    lesions = np.zeros(GRID, np.uint8)
    for number, (start, stop) in enumerate(corners, start=1):
        lesions[tuple(map(slice, start, stop))] = number
    return lesions


def flood(mask):
    """Find 26-connected components voxel by voxel."""
    left, parts = set(zip(*map(np.ndarray.tolist, np.nonzero(mask)), strict=True)), []
    while left:
        part, front = set(), [left.pop()]
        while front:
            voxel = front.pop()
            part.add(voxel)
            near = {v for v in left if max(abs(a - b) for a, b in zip(v, voxel, strict=True)) == 1}
            left -= near
            front.extend(near)
        parts.append(part)
    return parts


def test_boxes_by_hand():
    probabilities = np.zeros(GRID, np.float32)
    probabilities[0, 1, 2] = 0.5  # these two touch by a corner only
    probabilities[1, 2, 3] = 0.75
    probabilities[4, 4:6, 5:8] = 0.625
    probabilities[5, 0, 0] = 0.9375
    assert find_boxes(probabilities, threshold=0.5) == [
        Box((5, 0, 0), (6, 1, 1), 0.9375, 1),
        Box((0, 1, 2), (2, 3, 4), 0.75, 2),
        Box((4, 4, 5), (5, 6, 8), 0.625, 6),
    ]
    assert [found.voxels for found in find_boxes(probabilities, threshold=0.6)] == [1, 1, 6]
    assert [b.voxels for b in find_boxes(probabilities, threshold=0.5, min_voxels=2)] == [2, 6]
    assert find_boxes(probabilities, threshold=0.95) == []


def test_boxes_equal_a_flood():
    probabilities = np.random.default_rng(0).random((8, 9, 11))
    parts = flood(probabilities >= 0.9)
    expected = {
        (
            tuple(min(v[axis] for v in part) for axis in range(3)),
            tuple(max(v[axis] for v in part) + 1 for axis in range(3)),
            max(probabilities[v] for v in part),
            len(part),
        )
        for part in parts
    }
    found = find_boxes(probabilities, threshold=0.9)
    assert len(found) == len(parts) > 10
    assert {(b.start, b.stop, b.score, b.voxels) for b in found} == expected
    assert [b.score for b in found] == sorted((b.score for b in found), reverse=True)


def test_the_boxes_of_the_truth_find_every_lesion():
    lesions = draw(((0, 0, 0), (2, 2, 2)), ((3, 3, 4), (5, 7, 8)))
    boxes = find_boxes((lesions > 0).astype(np.float32), threshold=0.5)
    assert match_boxes(boxes, lesions) == Matches((1.0, 1.0), (), 2)


def test_a_box_meets_a_lesion_at_a_tenth_of_their_union():
    lesions = draw(((0, 0, 0), (1, 2, 4)))  # 8 voxels
    exactly = box((0, 1, 3), (3, 2, 4), 0.5)  # 3 voxels: 1 of both, 10 of either
    assert match_boxes([exactly], lesions) == Matches((0.5,), (), 1)
    less = box((0, 1, 2), (2, 3, 6), 0.5)  # 16 voxels: 2 of both, 22 of either
    assert match_boxes([less], lesions) == Matches((), (0.5,), 1)


def test_a_box_around_everything_finds_nothing():
    lesions = draw(((2, 3, 3), (4, 5, 5)))
    assert match_boxes([box((0, 0, 0), GRID, 0.9)], lesions) == Matches((), (0.9,), 1)


def test_further_boxes_on_a_found_lesion_count_as_nothing():
    lesions = draw(((0, 0, 0), (2, 2, 4)))
    halves = [box((0, 0, 0), (2, 2, 2), 0.4), box((0, 0, 2), (2, 2, 4), 0.8)]
    elsewhere = box((4, 4, 4), (5, 5, 5), 0.6)
    assert match_boxes([*halves, elsewhere], lesions) == Matches((0.8,), (0.6,), 1)


def test_a_box_finds_one_lesion_the_one_it_overlaps_most_that_is_left():
    lesions = draw(((0, 0, 0), (2, 2, 3)), ((0, 0, 3), (2, 2, 8)))
    wide = ((0, 0, 0), (2, 2, 8))  # 3/8 of the first, 5/8 of the second
    assert match_boxes([box(*wide, 0.9)], lesions) == Matches((0.9,), (), 2)
    first = box((0, 0, 0), (2, 2, 3), 0.5)
    assert match_boxes([first, box(*wide, 0.9)], lesions) == Matches((0.9, 0.5), (), 2)
    second = box((0, 0, 3), (2, 2, 8), 0.5)  # the wide box was first: nothing is left
    assert match_boxes([second, box(*wide, 0.9)], lesions) == Matches((0.9,), (), 2)


def test_ids_of_lesions_may_have_gaps_and_any_integer_type():
    lesions = draw(((0, 0, 0), (2, 2, 2)))
    for dtype in (np.uint8, np.int16, np.int32, np.int64, np.uint16):
        assert match_boxes([], 7 * lesions.astype(dtype)) == Matches((), (), 1)
    assert match_boxes([box((0, 0, 0), (1, 1, 1), 0.3)], draw()) == Matches((), (0.3,), 0)


def test_froc_by_hand():
    # 2 volumes, 4 lesions; falling: hit 0.9, alarm 0.8, hit 0.7, alarm 0.6, alarm 0.5, hit 0.4
    matches = [Matches((0.9, 0.4), (0.8,), 3), Matches((0.7,), (0.6, 0.5), 1)]
    scores = froc(matches)
    # 0, 0.5, 1 and 1.5 false positives per volume reach 1/4, 2/4, 2/4 and 3/4
    assert sensitivities(scores) == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 0.75]
    assert scores["cpm"] == pytest.approx(3.75 / 7)
    assert (scores["n_lesions"], scores["n_volumes"]) == (4, 2)
    assert len(scores) == 10


def test_froc_is_linear_through_a_tie():
    # at the one threshold 1 false positive per volume and the only lesion come in together
    scores = froc([Matches((0.5,), (0.5,), 1)])
    assert sensitivities(scores) == [0.125, 0.25, 0.5, 1, 1, 1, 1]


def test_froc_bounds():
    assert froc([Matches((), (), 2)])["cpm"] == 0
    assert froc([Matches((), (0.9,), 2)])["cpm"] == 0
    assert froc([Matches((0.2, 0.1), (), 2)])["cpm"] == 1


def test_froc_equals_monai():
    rng = np.random.default_rng(0)
    matches = [
        Matches(tuple(rng.random(rng.integers(0, 4))), tuple(rng.random(12)), 4) for _ in range(8)
    ]
    hits = np.concatenate([m.hits for m in matches])
    alarms = np.concatenate([m.false_positives for m in matches])
    # MONAI's curve ends before its lowest score, where 12 per volume are beyond every point
    curve = compute_froc_curve_data(alarms, hits, num_targets=32, num_images=8)
    scores = froc(matches)
    assert scores["cpm"] == pytest.approx(compute_froc_score(*curve, POINTS), abs=1e-12)
    for point, value in zip(POINTS, sensitivities(scores), strict=True):
        assert value == pytest.approx(compute_froc_score(*curve, (point,)), abs=1e-12)


def test_volumes_without_lesions_lower_the_rate_of_false_positives():
    one = Matches((0.5,), (0.9, 0.8), 1)
    assert sensitivities(froc([one])) == [0, 0, 0, 0, 1, 1, 1]
    assert sensitivities(froc([one, Matches((), (), 0)])) == [0, 0, 0, 1, 1, 1, 1]


def test_row_of_a_detector():
    matches = [Matches((0.5,), (), 2), Matches((), (0.9,), 0), Matches((0.8,), (), 1)]
    row = froc_with_intervals(matches, patients=["a", "a", "b"], resamples=100, seed=0)
    scores = froc(matches)
    # a alone has 1 of 2 lesions found, after 1/2 false positive per volume; b alone 1 of 1 at once
    assert row["cpm"] == scores["cpm"]
    assert row["cpm_ci"] == pytest.approx([5 / 7 * 0.5, 1.0])
    counts = {"n": 3, "n_patients": 2, "n_lesions": 3, "undefined_resamples": 0}
    assert {name: row[name] for name in counts} == counts


def test_froc_without_lesions_is_refused():
    with pytest.raises(UndefinedScoreError, match=r"none of 1 volumes has a lesion: sensitivity"):
        froc([Matches((), (0.5,), 0)])
    with pytest.raises(ValueError, match=r"none of 0 volumes has a lesion"):
        froc([])


def test_probabilities_that_are_nan_are_refused():
    with pytest.raises(ValueError, match=r"336 of 336 probabilities are NaN"):
        find_boxes(np.full(GRID, np.nan), threshold=0.5)


def test_lesions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="lesion ids are 0 or more, found -1"):
        match_boxes([], np.full(GRID, -1))
    with pytest.raises(
        ValueError, match=r"box from \(0, 0, 0\) to \(1, 1, 9\) leaves .* \(6, 7, 8"
    ):
        match_boxes([box((0, 0, 0), (1, 1, 9), 0.5)], draw())
    with pytest.raises(ValueError, match="one patient per volume is wanted: 1 volumes, 2 patients"):
        froc_with_intervals([Matches((), (), 1)], patients=["a", "b"], seed=0)
