import numpy as np
import pytest
import torch
from sklearn import metrics as oracle

from ct3dlib.metrics.bootstrap import UndefinedScoreError
from ct3dlib.metrics.classification import (
    BINARY_SCORES,
    balanced_accuracy,
    binary_scores,
    binary_scores_with_intervals,
    multiclass_scores,
    regression_scores,
    roc_curve,
    threshold_counts,
)

# pairs of a positive (0.9, 0.5, 0.2) and a negative (0.5, 0.1): 4 won, 1 lost, 1 tied
PROBABILITIES = np.array([0.9, 0.5, 0.2, 0.5, 0.1])
TRUE = np.array([True, True, True, False, False])


def distributions(rng, shape):
    raw = rng.random(shape) ** 3
    return raw / raw.sum(1, keepdims=True)


def test_by_hand():
    true = torch.tensor([[1, 0], [1, 0], [1, 1], [0, 1]]).bool()
    told = torch.tensor([[1, 0], [0, 0], [1, 1], [1, 1]]).bool()
    assert balanced_accuracy(told, true) == [(2 / 3 + 0) / 2, 1.0]


def test_who_always_tells_the_same_has_a_half_however_rare_a_label_is():
    true = torch.zeros(100, 1, dtype=torch.bool)
    true[:3] = True
    assert balanced_accuracy(torch.zeros_like(true), true) == [0.5]
    assert balanced_accuracy(torch.ones_like(true), true) == [0.5]


def test_a_label_that_all_or_none_have_is_left_open():
    true = torch.tensor([[1, 0], [1, 0]]).bool()
    assert balanced_accuracy(true, true) == [None, None]
    assert balanced_accuracy(true[:0], true[:0]) == [None, None]


def test_binary_scores_with_a_tie_by_hand():
    assert binary_scores(PROBABILITIES, TRUE) == {
        "auroc": pytest.approx(4.5 / 6),
        # thresholds 0.9, 0.5, 0.2 gain a third of the recall at precision 1, 2/3 and 3/4
        "average_precision": pytest.approx((1 + 2 / 3 + 3 / 4) / 3),
        "f1": pytest.approx(2 * 2 / (3 + 3)),
        "sensitivity": pytest.approx(2 / 3),
        "specificity": pytest.approx(1 / 2),
        "accuracy": pytest.approx(3 / 5),
        "balanced_accuracy": pytest.approx((2 / 3 + 1 / 2) / 2),
        "brier": pytest.approx((0.1**2 + 0.5**2 + 0.8**2 + 0.5**2 + 0.1**2) / 5),
    }


def test_threshold_counts_by_hand():
    alarms, hits = threshold_counts(PROBABILITIES, TRUE)
    assert alarms.tolist() == [0, 0, 1, 1, 2]
    assert hits.tolist() == [0, 1, 2, 3, 3]
    assert [counts.tolist() for counts in threshold_counts(np.zeros(0), TRUE[:0])] == [[0], [0]]


def test_roc_curve_by_hand():
    false_positive_rate, true_positive_rate = roc_curve(PROBABILITIES, TRUE)
    np.testing.assert_allclose(false_positive_rate, [0, 0, 0.5, 0.5, 1])
    np.testing.assert_allclose(true_positive_rate, [0, 1 / 3, 2 / 3, 1, 1])


def test_all_the_same_probability_is_worth_a_coin():
    scores = binary_scores(np.full(5, 0.5), TRUE)
    assert scores["auroc"] == scores["balanced_accuracy"] == 0.5
    assert scores["average_precision"] == pytest.approx(3 / 5)


@pytest.mark.parametrize("decimals", [1, 16], ids=["ties", "no_ties"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_binary_scores_equal_scikit_learn(decimals, dtype):
    rng = np.random.default_rng(0)
    for threshold in (0.25, 0.5, 1.0):
        probabilities = np.round(rng.random(64), decimals).astype(dtype)
        true = rng.random(64) < 0.3
        told = probabilities >= threshold
        expected = {
            "auroc": oracle.roc_auc_score(true, probabilities),
            "average_precision": oracle.average_precision_score(true, probabilities),
            "f1": oracle.f1_score(true, told),
            "sensitivity": oracle.recall_score(true, told),
            "specificity": oracle.recall_score(true, told, pos_label=0),
            "accuracy": oracle.accuracy_score(true, told),
            "balanced_accuracy": oracle.balanced_accuracy_score(true, told),
            "brier": oracle.brier_score_loss(true, probabilities.astype(np.float64)),
        }
        found = binary_scores(probabilities, true, threshold=threshold)
        assert tuple(found) == BINARY_SCORES
        assert found == pytest.approx(expected, abs=1e-12)
        curve = oracle.roc_curve(true, probabilities, drop_intermediate=False)
        np.testing.assert_allclose(roc_curve(probabilities, true), curve[:2], atol=1e-12)


def test_area_is_the_share_of_pairs_told_apart():
    rng = np.random.default_rng(1)
    probabilities, true = np.round(rng.random(40), 1), rng.random(40) < 0.5
    wins = [
        (one > other) + (one == other) / 2
        for one in probabilities[true]
        for other in probabilities[~true]
    ]
    assert binary_scores(probabilities, true)["auroc"] == pytest.approx(np.mean(wins), abs=1e-12)


def test_area_turns_over_with_the_classes():
    rng = np.random.default_rng(2)
    probabilities, true = np.round(rng.random(40), 1), rng.random(40) < 0.3
    area = binary_scores(probabilities, true)["auroc"]
    assert binary_scores(1 - probabilities, ~true)["auroc"] == pytest.approx(area)
    assert binary_scores(probabilities, ~true)["auroc"] == pytest.approx(1 - area)
    assert binary_scores(probabilities**3, true)["auroc"] == area


def test_row_of_a_finding():
    rng = np.random.default_rng(0)
    true = rng.random(64) < 0.3
    probabilities = np.clip(0.3 * true + 0.7 * rng.random(64), 0, 1)
    patients = [f"p{number}" for number in range(32) for _ in range(2)]
    row = binary_scores_with_intervals(
        probabilities, true, patients=patients, threshold=0.4, resamples=200, seed=0
    )
    scores = binary_scores(probabilities, true, threshold=0.4)
    assert {name: row[name] for name in BINARY_SCORES} == scores
    for name in BINARY_SCORES:
        low, high = row[f"{name}_ci"]
        assert 0 <= low < scores[name] < high <= 1
    counts = {"n": 64, "n_patients": 32, "n_positive": int(true.sum()), "undefined_resamples": 0}
    assert {name: row[name] for name in counts} == counts
    assert len(row) == 2 * len(BINARY_SCORES) + len(counts)


def test_row_of_a_finding_that_nobody_has_keeps_its_columns():
    patients = ["a", "b", "c", "d", "e"]
    row = binary_scores_with_intervals(PROBABILITIES, TRUE, patients=patients, resamples=9, seed=0)
    empty = binary_scores_with_intervals(
        PROBABILITIES, np.zeros(5, bool), patients=patients, resamples=9, seed=0
    )
    assert empty.keys() == row.keys()
    counts = {"n": 5, "n_patients": 5, "n_positive": 0, "undefined_resamples": 9}
    assert empty == dict.fromkeys(row) | counts


def test_multiclass_by_hand():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]])
    scores = multiclass_scores(probabilities, np.array([0, 0, 1, 2]))
    assert scores == {
        # class 0 and 2 are told from the rest; class 1 ties once and wins twice
        "auroc": pytest.approx((1 + 2.5 / 3 + 1) / 3),
        "accuracy": pytest.approx(3 / 4),
        "balanced_accuracy": pytest.approx((1 / 2 + 1 + 1) / 3),
        "f1": pytest.approx((2 / 3 + 2 / 3 + 1) / 3),
    }


@pytest.mark.parametrize("classes", [2, 3, 20])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64], ids=["uint8", "int64"])
def test_multiclass_scores_equal_scikit_learn(classes, dtype):
    rng = np.random.default_rng(classes)
    true = np.concatenate([np.arange(classes), rng.integers(0, classes, 60)]).astype(dtype)
    probabilities = distributions(rng, (len(true), classes))
    told = probabilities.argmax(1)
    areas = [oracle.roc_auc_score(true == k, probabilities[:, k]) for k in range(classes)]
    if classes > 2:  # scikit-learn takes a vector for 2
        area = oracle.roc_auc_score(true, probabilities, multi_class="ovr", average="macro")
        assert area == pytest.approx(np.mean(areas))
    assert multiclass_scores(probabilities, true) == pytest.approx(
        {
            "auroc": np.mean(areas),
            "accuracy": oracle.accuracy_score(true, told),
            "balanced_accuracy": oracle.balanced_accuracy_score(true, told),
            "f1": oracle.f1_score(true, told, average="macro"),
        },
        abs=1e-12,
    )


def test_regression_by_hand():
    scores = regression_scores(np.array([1.0, 2.0, 5.0]), np.array([1.0, 3.0, 5.0]))
    assert scores == {
        "mae": pytest.approx(1 / 3),
        "rmse": pytest.approx((1 / 3) ** 0.5),
        "r2": pytest.approx(1 - 1 / 8),
        "pearson": pytest.approx(8 / (8 * 26 / 3) ** 0.5),
    }


def test_regression_scores_equal_scikit_learn():
    rng = np.random.default_rng(0)
    true = rng.normal(60, 15, 64)
    predicted = (0.7 * true + rng.normal(20, 5, 64)).astype(np.float32)
    assert regression_scores(predicted, true) == pytest.approx(
        {
            "mae": oracle.mean_absolute_error(true, predicted),
            "rmse": oracle.root_mean_squared_error(true, predicted),
            "r2": oracle.r2_score(true, predicted),
            "pearson": np.corrcoef(true, predicted)[0, 1],
        },
        abs=1e-12,
    )


@pytest.mark.parametrize(("has", "word"), [(False, "negative"), (True, "positive")])
def test_one_class_is_refused(has, word):
    true = np.full(12, has)
    with pytest.raises(UndefinedScoreError, match=f"all 12 items are {word}: AUROC needs both"):
        binary_scores(np.full(12, 0.5), true)
    with pytest.raises(ValueError, match=f"all 12 items are {word}"):
        roc_curve(np.full(12, 0.5), true)


def test_probabilities_that_are_none_are_refused():
    with pytest.raises(ValueError, match="1 of 5 predicted numbers are not finite; look for NaN"):
        binary_scores(np.where(PROBABILITIES == 0.9, np.nan, PROBABILITIES), TRUE)
    with pytest.raises(ValueError, match=r"within 0 and 1, these span 1.1 to 1.9; take the sigm"):
        binary_scores(1 + PROBABILITIES, TRUE)
    with pytest.raises(ValueError, match=r"an item sum to 1, these miss it by 0.5; take the soft"):
        multiclass_scores(np.full((2, 2), 0.25), np.array([0, 1]))


def test_lengths_that_differ_and_no_items_are_refused():
    with pytest.raises(ValueError, match=r"one value per item is wanted, lengths are \[5, 4\]"):
        binary_scores(PROBABILITIES, TRUE[:4])
    with pytest.raises(ValueError, match=r"one value per item is wanted, lengths are \[5, 5, 1\]"):
        binary_scores_with_intervals(PROBABILITIES, TRUE, patients=["a"], seed=0)
    with pytest.raises(ValueError, match="there are no items to score"):
        binary_scores(PROBABILITIES[:0], TRUE[:0])


def test_absent_and_unknown_classes_are_refused():
    thirds = np.full((4, 3), 1 / 3)
    with pytest.raises(
        UndefinedScoreError, match=r"no item of 4 is of class \[0, 2\]: AUROC needs"
    ):
        multiclass_scores(thirds, np.ones(4, int))
    with pytest.raises(ValueError, match=r"true classes are 0 to 2, found -1 to 3"):
        multiclass_scores(thirds, np.array([-1, 0, 1, 3]))


def test_numbers_that_do_not_vary_or_are_none_are_refused():
    one, two = np.array([3.5, 3.5]), np.array([1.0, 2.0])
    with pytest.raises(UndefinedScoreError, match=r"all 2 true numbers are 3.5: R2 needs two"):
        regression_scores(two, one)
    with pytest.raises(UndefinedScoreError, match=r"all 2 predicted numbers are 3.5: Pearson's r"):
        regression_scores(one, two)
    with pytest.raises(ValueError, match="1 of 2 true numbers are not finite"):
        regression_scores(two, np.array([1.0, np.nan]))
