"""Regions and their texts, worked out by hand and planted."""

import numpy as np
import pytest

from ct3dlib.metrics.region_retrieval import RegionPairs, region_accuracy, region_retrieval


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def pairs_of(scans, texts, valid, **changes):
    b, r = valid.shape
    given = {
        "present": np.ones((b, r), bool),
        "normal": np.zeros((b, r), bool),
        "text_ids": np.arange(b * r).reshape(b, r),
        "patients": [f"p{i:03d}" for i in range(b)],
    }
    return RegionPairs(scans, texts, valid=valid, **(given | changes))


def test_accuracy_by_hand():
    # Regions 0, 1, 2 lie on the axes in both scans; region 2 is not present in the second.
    scans = np.stack([np.eye(3), np.eye(3)])
    texts = np.zeros((2, 3, 3))
    texts[0] = np.eye(3)[[0, 2, 2]]  # the text of region 1 is like region 2: wrong
    texts[1, 0] = unit(np.array([0.6, 0.6, 0.9]))  # most like region 2, which is not there; tie
    texts[1, 1] = unit(np.array([0.1, 0.5, 0.9]))  # of those present most like its own
    present = np.array([[True, True, True], [True, True, False]])
    found = region_accuracy(pairs_of(scans, texts, present, present=present), seed=0)
    assert found["n"] == 5
    assert found["micro"] == pytest.approx(3 / 5)  # 0 and 2 of the first, 1 of the second
    assert found["by_region"] == [0.5, 0.5, 1.0]
    assert found["macro"] == pytest.approx(2 / 3)
    assert found["chance"] == pytest.approx((3 / 3 + 2 / 2) / 5)
    assert found["chance_macro"] == pytest.approx((5 / 12 + 5 / 12 + 1 / 3) / 3)
    assert found["n_by_region"] == [2, 2, 1]
    assert found["micro_ci"][0] <= 3 / 5 <= found["micro_ci"][1]


def test_constant_embeddings_are_never_right():
    same = np.repeat(np.repeat(unit(np.ones((1, 1, 8))), 6, 0), 5, 1)
    valid = np.ones((6, 5), bool)
    assert region_accuracy(pairs_of(same, same, valid), seed=0)["micro"] == 0
    found = region_retrieval(pairs_of(same, same, valid), seed=0)
    assert (found["r1"], found["chance_r1"]) == (0, pytest.approx(1 / 6))


def test_random_embeddings_have_chance_in_their_interval():
    rng = np.random.default_rng(1)
    scans, texts = unit(rng.normal(size=(60, 5, 16))), unit(rng.normal(size=(60, 5, 16)))
    present = rng.random((60, 5)) < 0.8
    valid = present & (rng.random((60, 5)) < 0.7)
    pairs = pairs_of(scans, texts, valid, present=present)
    found = region_accuracy(pairs, seed=0)
    assert found["micro_ci"][0] <= found["chance"] <= found["micro_ci"][1]
    retrieved = region_retrieval(pairs, seed=0)
    assert retrieved["r5_ci"][0] <= retrieved["chance_r5"] <= retrieved["r5_ci"][1]


def test_knowing_the_region_alone_solves_accuracy_and_not_retrieval():
    regions = unit(np.random.default_rng(0).normal(size=(1, 4, 32)))
    scans = np.repeat(regions, 30, 0)
    pairs = pairs_of(scans, scans, np.ones((30, 4), bool))
    assert region_accuracy(pairs, seed=0)["micro"] == 1
    found = region_retrieval(pairs, seed=0)
    assert found["r1"] == 0 < found["chance_r1"]


def test_retrieval_by_hand():
    # One region; three patients, the first with two studies, of which the first asks.
    scans = np.eye(4)[[0, 0, 1, 2]][:, None]
    texts = np.eye(4)[[0, 3, 2, 1]][:, None]
    valid = np.ones((4, 1), bool)
    found = region_retrieval(pairs_of(scans, texts, valid, patients=["a", "a", "b", "c"]), seed=0)
    # a finds its own; b and c find each other's. Wrong texts as similar as the own one come first.
    assert (found["r1"], found["n"], found["n_regions"]) == (pytest.approx(1 / 3), 6, 1)
    assert (found["chance_r1"], found["chance_r5"]) == (pytest.approx(1 / 3), 1.0)
    # Where b and c are both normal, each may find the other's text.
    normal = np.array([False, True, True, True])[:, None]
    both = pairs_of(scans, texts, valid, patients=["a", "a", "b", "c"], normal=normal)
    found = region_retrieval(both, seed=0)
    assert found["r1"] == 1
    assert found["chance_r1"] == pytest.approx((1 / 3 + 2 / 3 + 2 / 3) / 3)
    # As where what is written is the same.
    equal = np.array([0, 1, 2, 2])[:, None]
    same = pairs_of(scans, texts, valid, patients=["a", "a", "b", "c"], text_ids=equal)
    assert region_retrieval(same, seed=0)["r1"] == 1


def test_scores_are_means_over_regions_and_rare_ones_are_left_out():
    rng = np.random.default_rng(0)
    scans = unit(rng.normal(size=(20, 3, 8)))
    texts = scans.copy()
    texts[:, 1] = np.roll(scans[:, 1], 1, axis=0)  # another patient's
    valid = np.zeros((20, 3), bool)
    valid[:10, 0], valid[:, 1], valid[:1, 2] = True, True, True
    found = region_retrieval(pairs_of(scans, texts, valid), seed=0)
    assert found["r1_by_region"] == [1.0, 0.0, None]
    assert found["r1"] == 0.5
    assert found["chance_r1_by_region"] == [pytest.approx(0.1), pytest.approx(0.05), None]
    assert found["chance_r1"] == pytest.approx(0.075)
    assert (found["n"], found["n_regions"]) == (60, 2)


def test_no_valid_pair_has_no_score():
    scans = unit(np.random.default_rng(0).normal(size=(3, 2, 4)))
    pairs = pairs_of(scans, scans, np.zeros((3, 2), bool))
    accuracy, retrieval = region_accuracy(pairs, seed=0), region_retrieval(pairs, seed=0)
    assert accuracy["micro"] is accuracy["macro"] is accuracy["chance"] is None
    assert accuracy["by_region"] == [None, None]
    assert retrieval["r1"] is retrieval["r1_ci"] is retrieval["chance_r1"] is None
    assert (accuracy["n"], retrieval["n"], retrieval["n_regions"]) == (0, 0, 0)


def test_a_valid_pair_must_be_present():
    scans = unit(np.ones((1, 2, 4)))
    with pytest.raises(ValueError, match="study 0, region 1: valid, and not present"):
        pairs_of(scans, scans, np.array([[True, True]]), present=np.array([[True, False]]))
