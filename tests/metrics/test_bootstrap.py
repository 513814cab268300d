import numpy as np
import pytest

from ct3dlib.metrics.bootstrap import (
    Intervals,
    UndefinedScoreError,
    bootstrap_interval,
    scores_with_intervals,
)
from ct3dlib.metrics.classification import binary_scores


def mean_of(values):
    return lambda items: {"mean": float(values[items].mean())}


def ids(patients):
    return [f"p{number:03d}" for number in patients]


def bounds(values, groups, **settings):
    found = bootstrap_interval(mean_of(values), groups, **settings).bounds
    assert found is not None
    return found["mean"]


def test_two_patients_by_hand():
    # draws of patients a, b: aa, ab, ba, bb; the mean is 0, 3/4 (3 of 4 items), 3/4, 1
    values = np.array([0.0, 1.0, 1.0, 1.0])
    seen = set()

    def score(items):
        seen.add(tuple(sorted(items.tolist())))
        return {"mean": float(values[items].mean())}

    found = bootstrap_interval(score, ["a", "b", "b", "b"], resamples=200, seed=0)
    assert seen == {(0, 0), (0, 1, 2, 3), (1, 1, 2, 2, 3, 3)}
    assert found == Intervals({"mean": (0.0, 1.0)}, undefined=0)


def test_limits_are_quantiles_of_the_draws_of_patients():
    values = np.random.default_rng(0).normal(size=30)
    rng = np.random.default_rng(5)
    means = [values[rng.integers(30, size=30)].mean() for _ in range(99)]
    expected = np.quantile(means, [0.1, 0.9])
    found = bounds(values, ids(range(30)), resamples=99, level=0.8, seed=5)
    assert found == pytest.approx(tuple(expected), abs=1e-12)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values, groups = np.random.default_rng(0).normal(size=20), ids(range(20))
    assert bounds(values, groups, seed=1) == bounds(values, groups, seed=1)
    assert bounds(values, groups, seed=1) != bounds(values, groups, seed=2)


def test_a_mean_is_covered_as_often_as_the_level_says():
    rng = np.random.default_rng(0)
    groups, covered = ids(range(50)), 0
    for trial in range(300):
        low, high = bounds(rng.normal(2, 1, 50), groups, resamples=200, seed=trial)
        covered += low <= 2 <= high
    # 95 %, less what percentiles lose on 50 patients; 3 standard errors are 0.04
    assert 0.90 < covered / 300 < 0.98


def test_five_equal_items_of_a_patient_count_as_one():
    # the standard error is sd / sqrt(40) over patients, and would be sd / sqrt(200) over items
    values, patients = np.random.default_rng(0).normal(size=40), np.repeat(np.arange(40), 5)
    low, high = bounds(values[patients], ids(patients), resamples=4000, seed=0)
    too_low, too_high = bounds(values[patients], ids(range(200)), resamples=4000, seed=0)
    assert (high - low) / (too_high - too_low) == pytest.approx(5**0.5, rel=0.06)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 40**0.5, rel=0.06)
    assert (low, high) == pytest.approx(bounds(values, ids(range(40)), resamples=4000, seed=0))


def test_every_item_twice_within_its_patient_changes_nothing():
    rng = np.random.default_rng(3)
    probabilities, true = rng.random(24), rng.random(24) < 0.4
    patients = rng.integers(0, 10, 24)
    once = bootstrap_interval(
        lambda items: binary_scores(probabilities[items], true[items]), ids(patients), seed=0
    )
    double = np.concatenate([np.arange(24), np.arange(24)[::-1]])
    twice = bootstrap_interval(
        lambda items: binary_scores(probabilities[double[items]], true[double[items]]),
        ids(patients[double]),
        seed=0,
    )
    assert once.undefined == twice.undefined
    assert once.bounds is not None
    assert twice.bounds is not None
    for key, limits in once.bounds.items():
        assert twice.bounds[key] == pytest.approx(limits, abs=1e-12), key


def test_undefined_resamples_are_left_out_and_counted():
    # 1 of 4 patients is positive: (3/4)^4 = 32 % of draws leave it out, (1/4)^4 draw no other
    true = np.array([True, False, False, False])

    def score(items):
        if true[items].all() or not true[items].any():
            raise UndefinedScoreError("one class")
        return {"positives": float(true[items].mean())}

    found = bootstrap_interval(score, ids(range(4)), resamples=4000, seed=0)
    assert found.undefined / 4000 == pytest.approx((3**4 + 1) / 4**4, abs=0.03)
    assert found.bounds == {"positives": (0.25, 0.75)}


def test_an_interval_is_left_open_when_most_resamples_are_undefined():
    def score(items):
        if len(set(items.tolist())) < 10:
            raise UndefinedScoreError("10 different items are wanted")
        return {"one": 1.0}

    assert bootstrap_interval(score, ids(range(10)), resamples=50, seed=0) == Intervals(None, 50)
    row = scores_with_intervals(score, ids(range(10)), resamples=50, seed=0)
    assert row == {"one": 1.0, "one_ci": None, "n": 10, "n_patients": 10, "undefined_resamples": 50}


def test_other_errors_of_a_score_are_not_swallowed():
    def score(items):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        bootstrap_interval(score, ["a", "b"], seed=0)


def test_row_holds_scores_intervals_and_counts():
    values, groups = np.array([1.0, 2.0, 3.0, 6.0]), ["a", "b", "b", "c"]
    row = scores_with_intervals(mean_of(values), groups, resamples=100, seed=4)
    low, high = bounds(values, groups, resamples=100, seed=4)
    assert row == {
        "mean": 3.0,
        "mean_ci": [low, high],
        "n": 4,
        "n_patients": 3,
        "undefined_resamples": 0,
    }


@pytest.mark.parametrize("groups", [["a", "a", "a"], []], ids=["one", "none"])
def test_fewer_than_two_patients_are_refused(groups):
    with pytest.raises(ValueError, match=r"items of [01] patients: an interval needs 2 patients"):
        bootstrap_interval(mean_of(np.ones(3)), groups, seed=0)


@pytest.mark.parametrize(("resamples", "level"), [(0, 0.95), (10, 1.0)], ids=["none", "level"])
def test_settings_out_of_range_are_refused(resamples, level):
    with pytest.raises(ValueError, match=rf"1 resample or more and a level .*: {resamples} and"):
        bootstrap_interval(
            mean_of(np.ones(2)), ["a", "b"], resamples=resamples, level=level, seed=0
        )
