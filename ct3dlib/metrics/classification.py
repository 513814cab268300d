"""How well findings, classes and numbers are told. Letters: N items, L labels, K classes.

Scores are counted in numpy: a bootstrap takes thousands of them, and scikit-learn spends a
millisecond on each to check its input. The tests hold every score to scikit-learn's.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from ct3dlib.metrics.bootstrap import ScoreTable, UndefinedScoreError, scores_with_intervals

BINARY_SCORES = (
    "auroc",
    "average_precision",
    "f1",
    "sensitivity",
    "specificity",
    "accuracy",
    "balanced_accuracy",
    "brier",
)


def balanced_accuracy(told: Bool[Tensor, "N L"], true: Bool[Tensor, "N L"]) -> list[float | None]:
    """Return the mean of sensitivity and specificity of each label, in [0, 1].

    Whoever tells every item the same, or tosses a coin, has 0.5 however rare a label is. None
    where a label is present in all items, or in none.
    """
    found: list[float | None] = []
    for said, is_so in zip(told.T, true.T, strict=True):
        if is_so.all() or not is_so.any():
            found.append(None)
            continue
        sensitivity = said[is_so].double().mean()
        specificity = (~said[~is_so]).double().mean()
        found.append(float((sensitivity + specificity) / 2))
    return found


def threshold_counts(
    scores: NDArray[np.floating], true: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Count false and true positives at each threshold that tells items apart.

    Thresholds fall from above all scores, where both counts are 0, to the lowest score, where
    every item is told positive. Items of equal score come in together.
    """
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    hits = np.cumsum(true[order], dtype=np.intp)[last_of_tie]
    alarms = last_of_tie + 1 - hits
    return np.concatenate([[0], alarms]), np.concatenate([[0], hits])


def roc_curve(
    probabilities: NDArray[np.floating], true: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return false and true positive rates, both rising from 0 to 1, as a ROC curve is drawn.

    Raises:
        ValueError: As `binary_scores`.
    """
    _check_binary(probabilities, true)
    alarms, hits = threshold_counts(probabilities, true)
    return alarms / alarms[-1], hits / hits[-1]


def binary_scores(
    probabilities: NDArray[np.floating], true: NDArray[np.bool_], *, threshold: float = 0.5
) -> dict[str, float]:
    """Score the probabilities of one finding: a value for each name of `BINARY_SCORES`.

    `auroc` is the share of pairs of a positive and a negative item in which the positive one has
    the larger probability, ties counting half (Hanley and McNeil 1982). `average_precision` is
    the sum of precision times gain in recall over the thresholds, not interpolated. `brier` is
    the mean squared error of the probabilities (Brier 1950): less is better. The others are of
    the items with a probability of `threshold` or more, told positive.

    Args:
        probabilities: In [0, 1], one per item.
        true: Whether each item has the finding.
        threshold: Least probability that is told positive.

    Raises:
        UndefinedScoreError: All items are of one class.
        ValueError: Lengths differ, there are no items, or a probability is NaN or out of range.
    """
    _check_binary(probabilities, true)
    alarms, hits = threshold_counts(probabilities, true)
    told = probabilities >= threshold
    right = np.count_nonzero(told & true)
    wrong = np.count_nonzero(told) - right
    sensitivity = right / hits[-1]
    specificity = 1 - wrong / alarms[-1]
    scores = {
        "auroc": _area(alarms, hits),
        "average_precision": np.sum(np.diff(hits) * hits[1:] / (hits + alarms)[1:]) / hits[-1],
        "f1": 2 * right / (hits[-1] + right + wrong),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "accuracy": np.mean(told == true),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "brier": np.mean(np.square(probabilities.astype(np.float64) - true)),
    }
    return {name: float(scores[name]) for name in BINARY_SCORES}


def binary_scores_with_intervals(
    probabilities: NDArray[np.floating],
    true: NDArray[np.bool_],
    *,
    patients: Sequence[str],
    threshold: float = 0.5,
    resamples: int = 1000,
    seed: int,
) -> ScoreTable:
    """Return the row of one finding: `binary_scores`, their 95 % intervals, and counts.

    The counts are `n` items, `n_patients`, `n_positive` items, and `undefined_resamples`. A
    finding that all items have, or none, keeps its row: its scores and intervals are None.

    Args:
        probabilities: In [0, 1], one per item.
        true: Whether each item has the finding.
        patients: The patient of each item; patients are resampled, not items.
        threshold: Least probability that is told positive.
        resamples: Draws of patients.
        seed: Of the draws; findings of one seed and the same patients share their draws.

    Raises:
        ValueError: Lengths differ, a probability is NaN or out of range, or there are fewer than
            2 patients.
    """
    _check_items(probabilities, true, patients)

    def score(items: NDArray[np.intp]) -> dict[str, float]:
        return binary_scores(probabilities[items], true[items], threshold=threshold)

    positive = {"n_positive": int(true.sum())}
    try:
        row = scores_with_intervals(score, patients, resamples=resamples, seed=seed)
    except UndefinedScoreError:
        row = dict.fromkeys(key for name in BINARY_SCORES for key in (name, f"{name}_ci"))
        row |= {"n": len(true), "n_patients": len(set(patients)), "undefined_resamples": resamples}
    return row | positive


def multiclass_scores(
    probabilities: Float[np.ndarray, "N K"], true: NDArray[np.integer]
) -> dict[str, float]:
    """Score the probabilities of classes that exclude each other; every class weighs the same.

    `auroc` is the mean over classes of one class against the rest, `balanced_accuracy` the mean
    recall, `f1` the mean F1. The most probable class is told; the first one where several are.

    Args:
        probabilities: Each row sums to 1.
        true: The class of each item, in [0, K).

    Raises:
        UndefinedScoreError: A class has no item.
        ValueError: Lengths differ, there are no items, a class is out of range, or a row is no
            distribution.
    """
    classes = probabilities.shape[1]
    _check_classes(probabilities, true)
    pairs = np.bincount(
        true.astype(np.intp) * classes + probabilities.argmax(1), minlength=classes**2
    )
    confusion = pairs.reshape(classes, classes)  # true told
    support, right = confusion.sum(1), confusion.diagonal()
    areas = [_area(*threshold_counts(probabilities[:, k], true == k)) for k in range(classes)]
    return {
        "auroc": float(np.mean(areas)),
        "accuracy": float(right.sum() / len(true)),
        "balanced_accuracy": float(np.mean(right / support)),
        "f1": float(np.mean(2 * right / (support + confusion.sum(0)))),
    }


def regression_scores(
    predicted: NDArray[np.floating], true: NDArray[np.floating]
) -> dict[str, float]:
    """Score predicted numbers: `mae` and `rmse` in their unit, `r2` and `pearson` without one.

    `r2` is 1 - squared error / squared deviation of the truth from its mean: 0 for whoever always
    predicts that mean, below 0 for worse.

    Raises:
        UndefinedScoreError: All true or all predicted numbers are the same.
        ValueError: Lengths differ, there are no items, or a number is not finite.
    """
    _check_items(predicted, true)
    _check_finite("predicted", predicted)
    _check_finite("true", true)
    for name, numbers, missing in (("true", true, "R2"), ("predicted", predicted, "Pearson's r")):
        if np.ptp(numbers) == 0:
            raise UndefinedScoreError(
                f"all {len(numbers)} {name} numbers are {numbers[0]:g}: {missing} needs two "
                f"different ones"
            )
    error = predicted.astype(np.float64) - true
    spread = true - true.mean(dtype=np.float64)
    return {
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt(np.square(error).mean())),
        "r2": float(1 - np.square(error).sum() / np.square(spread).sum()),
        "pearson": float(np.corrcoef(predicted, true, dtype=np.float64)[0, 1]),
    }


def _area(alarms: NDArray[np.intp], hits: NDArray[np.intp]) -> float:
    """Return the area under the ROC curve; trapezoids give ties their half."""
    return float(np.trapezoid(hits, alarms) / (hits[-1] * alarms[-1]))


def _check_items(found: NDArray[np.generic], *others: Sequence[str] | NDArray[np.generic]) -> None:
    lengths = [len(found), *map(len, others)]
    if len(set(lengths)) > 1:
        raise ValueError(f"one value per item is wanted, lengths are {lengths}")
    if not len(found):
        raise ValueError("there are no items to score")


def _check_finite(name: str, numbers: NDArray[np.floating]) -> None:
    if not (finite := np.isfinite(numbers)).all():
        raise ValueError(
            f"{np.count_nonzero(~finite)} of {numbers.size} {name} numbers are not finite; look "
            f"for NaN in the model's output or in the labels"
        )


def _check_probabilities(probabilities: NDArray[np.floating]) -> None:
    _check_finite("predicted", probabilities)
    low, high = probabilities.min(), probabilities.max()
    if low < 0 or high > 1:
        raise ValueError(
            f"probabilities are within 0 and 1, these span {low:g} to {high:g}; take the sigmoid "
            f"or softmax of logits first"
        )


def _check_binary(probabilities: NDArray[np.floating], true: NDArray[np.bool_]) -> None:
    _check_items(probabilities, true)
    _check_probabilities(probabilities)
    if true.all() or not true.any():
        raise UndefinedScoreError(
            f"all {len(true)} items are {'positive' if true[0] else 'negative'}: AUROC needs both "
            f"positive and negative items"
        )


def _check_classes(probabilities: NDArray[np.floating], true: NDArray[np.integer]) -> None:
    _check_items(probabilities, true)
    _check_probabilities(probabilities)
    classes = probabilities.shape[1]
    if (off := np.abs(probabilities.sum(1, dtype=np.float64) - 1).max()) > 1e-3:
        raise ValueError(
            f"the probabilities of an item sum to 1, these miss it by {off:g}; take the softmax "
            f"of logits first"
        )
    if true.min() < 0 or true.max() >= classes:
        raise ValueError(f"true classes are 0 to {classes - 1}, found {true.min()} to {true.max()}")
    if len(absent := np.setdiff1d(np.arange(classes), true)):
        raise UndefinedScoreError(
            f"no item of {len(true)} is of class {absent.tolist()}: AUROC needs items of all "
            f"{classes} classes; leave the class out and renormalise"
        )
