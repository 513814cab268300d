"""How sure a score is: percentile intervals by resampling patients.

A score is any function of item indices that returns a dict of numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Score = Callable[[NDArray[np.intp]], dict[str, float]]
ScoreTable = dict[str, float | int | list[float] | None]


class UndefinedScoreError(ValueError):
    """A score has no value on these items, as AUROC has none on items of one class."""


@dataclass(frozen=True)
class Intervals:
    """Where scores lie when other patients are drawn.

    Args:
        bounds: (low, high) of each score; None where it was undefined in most resamples.
        undefined: Resamples that were left out because a score was undefined in them.
    """

    bounds: dict[str, tuple[float, float]] | None
    undefined: int


def bootstrap_interval(
    score: Score,
    groups: Sequence[str],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int,
) -> Intervals:
    """Return the percentile interval of each score under resampling of patients.

    Patients are drawn with replacement, as many as there are, and all items of a patient enter as
    often as the patient was drawn: items of one patient are alike, and drawing them one by one
    makes intervals too narrow (Field and Welsh, "Bootstrapping clustered data", 2007). Limits are
    the (1 - level) / 2 and (1 + level) / 2 quantiles of the resampled scores (Efron and Tibshirani,
    "An introduction to the bootstrap", 1993, chapter 13). Scores of the same patients and seed see
    the same draws, so they can be compared.

    Args:
        score: Scores the items at these indices, which repeat; raises `UndefinedScoreError` where
            it has no value.
        groups: The patient of each item.
        resamples: Draws.
        level: Share of the resampled scores within the interval.
        seed: Of the draws.

    Raises:
        ValueError: There are fewer than 2 patients, or resamples or level are out of range.
    """
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"an interval needs 1 resample or more and a level between 0 and 1: "
            f"{resamples} and {level}"
        )
    members = _items_of_patients(groups)
    rng = np.random.default_rng(seed)
    found: list[dict[str, float]] = []
    for _ in range(resamples):
        drawn = rng.integers(len(members), size=len(members))
        try:
            found.append(score(np.concatenate([members[patient] for patient in drawn])))
        except UndefinedScoreError:
            continue
    undefined = resamples - len(found)
    if 2 * undefined > resamples:
        return Intervals(None, undefined)
    bounds = {key: _middle([scores[key] for scores in found], level) for key in found[0]}
    return Intervals(bounds, undefined)


def scores_with_intervals(
    score: Score, groups: Sequence[str], *, resamples: int = 1000, seed: int
) -> ScoreTable:
    """Return scores of all items, each with its 95 % interval, as one flat row for JSON.

    Next to `auroc` stands `auroc_ci`, [low, high] or None; then `n` items, `n_patients` and
    `undefined_resamples`.

    Args:
        score: As `bootstrap_interval` takes it.
        groups: The patient of each item.
        resamples: Draws.
        seed: Of the draws.

    Raises:
        UndefinedScoreError: The score has no value on all items.
        ValueError: There are fewer than 2 patients, or no resamples.
    """
    row: ScoreTable = {}
    scores = score(np.arange(len(groups)))
    intervals = bootstrap_interval(score, groups, resamples=resamples, seed=seed)
    for key, value in scores.items():
        row[key] = value
        row[f"{key}_ci"] = list(intervals.bounds[key]) if intervals.bounds else None
    counts = {"n": len(groups), "n_patients": len(set(groups))}
    return row | counts | {"undefined_resamples": intervals.undefined}


def _items_of_patients(groups: Sequence[str]) -> list[NDArray[np.intp]]:
    """Return the item indices of each patient, patients in order of their ids."""
    _, patient, items = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    if len(items) < 2:
        raise ValueError(
            f"{len(groups)} items of {len(items)} patients: an interval needs 2 patients or more; "
            f"score without one"
        )
    return np.split(np.argsort(patient, kind="stable"), np.cumsum(items)[:-1])


def _middle(values: list[float], level: float) -> tuple[float, float]:
    """Return the limits of the middle share of values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high
