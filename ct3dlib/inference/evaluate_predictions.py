"""How good the predictions of held-out volumes are, with intervals over patients.

Letters: N volumes, K outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from ct3dlib.config import Task
from ct3dlib.datasets.targets import Targets
from ct3dlib.errors import StoreError
from ct3dlib.metrics.bootstrap import UndefinedScoreError, scores_with_intervals
from ct3dlib.metrics.classification import (
    BINARY_SCORES,
    binary_scores_with_intervals,
    multiclass_scores,
    regression_scores,
    roc_curve,
)

_SEED = 0  # of the resamples
_CURVE_POINTS = 100
_FEWEST_PATIENTS = 2  # that an interval needs


@dataclass(frozen=True, eq=False)
class Predicted:
    """Predictions of volumes, and what is true of them.

    Args:
        names: Of the outputs.
        outputs: Probabilities, or numbers.
        targets: As of `Targets`; NaN where one is not known.
        patients: Of each volume.
    """

    names: tuple[str, ...]
    outputs: Float[np.ndarray, "N K"]
    targets: Float[np.ndarray, "N K"]
    patients: tuple[str, ...]


@dataclass(frozen=True)
class Curve:
    """A ROC curve to draw, of at most 100 points, from (0, 0) to (1, 1)."""

    false_positive_rate: tuple[float, ...]
    true_positive_rate: tuple[float, ...]


def join_targets(predictions: pd.DataFrame, targets: Targets) -> Predicted:
    """Return the volumes that have predictions and targets.

    Args:
        predictions: Columns `volume`, `patient`, `status`, and `prob_NAME` or `pred_NAME`.
        targets: By volume.

    Raises:
        StoreError: There is none.
    """
    has = predictions["volume"].isin(list(targets.values)) & (predictions["status"] == "predicted")
    kept = predictions.loc[has]
    if kept.empty:
        raise StoreError(
            f"none of {len(predictions)} volumes has both a prediction and a label; see the "
            f"messages in the predictions and the labels of the split"
        )
    columns = [_column(predictions, name) for name in targets.names]
    return Predicted(
        names=targets.names,
        outputs=kept.loc[:, columns].to_numpy(np.float64),
        targets=np.stack([targets.values[volume] for volume in kept["volume"]]),
        patients=tuple(kept["patient"]),
    )


def _column(predictions: pd.DataFrame, name: str) -> str:
    """Return the column of an output.

    Raises:
        StoreError: There is none.
    """
    for column in (f"prob_{name}", f"pred_{name}"):
        if column in predictions.columns:
            return column
    raise StoreError(
        f"the predictions have no column prob_{name} or pred_{name}; predict with a model of these "
        f"labels"
    )


def evaluate_predictions(found: Predicted, task: Task) -> dict[str, Any]:
    """Return the scores of predictions.

    Of findings `auroc` by name (None where all volumes have it, or none), and all scores with their
    intervals in `findings`; of classes `classes`, of numbers `regression` by name. `n` counts
    volumes.
    """
    match task:
        case "binary" | "multilabel":
            scores = _of_findings(found)
        case "multiclass":
            scores = _of_classes(found)
        case "regression":
            scores = {"regression": {name: _of_numbers(found, k) for k, name in _named(found)}}
    return {**scores, "task": task, "n": len(found.patients)}


def _named(found: Predicted) -> Sequence[tuple[int, str]]:
    """Return the outputs with their names."""
    return list(enumerate(found.names))


def roc_curves(found: Predicted) -> dict[str, Curve]:
    """Return the curve of each finding that some volumes have and others not."""
    curves = {}
    for k, name in _named(found):
        outputs, true, _ = _known(found, k)
        if true.any() and not true.all():
            alarms, hits = roc_curve(outputs, true)
            kept = np.unique(np.linspace(0, len(alarms) - 1, _CURVE_POINTS).round().astype(int))
            curves[name] = Curve(tuple(alarms[kept].tolist()), tuple(hits[kept].tolist()))
    return curves


def _of_findings(found: Predicted) -> dict[str, Any]:
    """Return the scores of findings of which a volume has any number."""
    rows = {}
    for k, name in _named(found):
        outputs, true, patients = _known(found, k)
        if len(set(patients)) < _FEWEST_PATIENTS:
            rows[name] = _unscored(true, patients)
        else:
            rows[name] = binary_scores_with_intervals(outputs, true, patients=patients, seed=_SEED)
    return {"auroc": {name: row["auroc"] for name, row in rows.items()}, "findings": rows}


def _unscored(true: NDArray[np.bool_], patients: Sequence[str]) -> dict[str, Any]:
    """Return the row of a finding that is known of too few patients."""
    names = (key for name in BINARY_SCORES for key in (name, f"{name}_ci"))
    counts = {"n": len(true), "n_patients": len(set(patients)), "n_positive": int(true.sum())}
    return {**dict.fromkeys(names), **counts}


def _known(found: Predicted, k: int) -> tuple[NDArray[np.float64], NDArray[np.bool_], list[str]]:
    """Return outputs, truth and patients of the volumes of which an output is known."""
    known = ~np.isnan(found.targets[:, k])
    patients = [p for p, is_known in zip(found.patients, known, strict=True) if is_known]
    return found.outputs[known, k], found.targets[known, k] > 0, patients


def _of_classes(found: Predicted) -> dict[str, Any]:
    """Return the scores of classes of which a volume has one; None where they have no value."""
    true = found.targets.argmax(1)

    def score(items: np.ndarray) -> dict[str, float]:
        return multiclass_scores(found.outputs[items], true[items])

    try:
        return {"classes": scores_with_intervals(score, found.patients, seed=_SEED)}
    except UndefinedScoreError as error:
        return {"classes": None, "classes_missing": str(error)}


def _of_numbers(found: Predicted, k: int) -> dict[str, Any] | None:
    """Return the scores of one number; None where all volumes have the same, or too few one."""
    known = ~np.isnan(found.targets[:, k])
    outputs, true = found.outputs[known, k], found.targets[known, k].astype(np.float64)
    patients = [p for p, is_known in zip(found.patients, known, strict=True) if is_known]
    if len(set(patients)) < _FEWEST_PATIENTS:
        return None

    def score(items: np.ndarray) -> dict[str, float]:
        return regression_scores(outputs[items], true[items])

    try:
        return scores_with_intervals(score, patients, seed=_SEED)
    except UndefinedScoreError:
        return None
