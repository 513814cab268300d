"""Findings told by asking: is a scan more like the sentence that has one, or the one that has not?

Nothing is trained on labels; thresholds alone are chosen, on the split `tune`.

Letters: N volumes, K findings, T templates, E channels of an embedding.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from ct3dlib.cohort.labels import LABELS
from ct3dlib.cohort.studies import Study
from ct3dlib.inference.embed_studies import ScanTable, Split, embed_stored
from ct3dlib.inference.evaluate_predictions import Predicted
from ct3dlib.inference.vlm import TrainedVlm
from ct3dlib.metrics.classification import (
    binary_scores,
    binary_scores_with_intervals,
    threshold_counts,
)
from ct3dlib.metrics.retrieval import interval_row
from ct3dlib.text.prompts import CLASS_SETS, ENSEMBLE, PAIR, prompts_of

_SEED = 0  # of the resamples
_FEWEST_PATIENTS = 2  # that an interval needs
_OF_PROBABILITIES = ("auroc", "average_precision")
_OF_THRESHOLDS = ("balanced_accuracy", "sensitivity", "specificity", "f1")


class Asked(NamedTuple):
    """Embeddings of what is asked of findings, K E each, of length 1."""

    positive: Float[np.ndarray, "K E"]
    negative: Float[np.ndarray, "K E"]


def ask(
    model: TrainedVlm, findings: Sequence[str], templates: tuple[tuple[str, str], ...]
) -> Asked:
    """Return the embeddings of findings' sentences: of several the mean, brought to length 1.

    Texts are encoded once, whatever number of scans is asked.
    """
    prompts = [prompts_of(finding, templates) for finding in findings]
    sides = ([p.positive for p in prompts], [p.negative for p in prompts])
    return Asked(*(_means(model, side) for side in sides))


def _means(model: TrainedVlm, sentences: Sequence[tuple[str, ...]]) -> Float[np.ndarray, "K E"]:
    """Return the mean embedding of each finding's sentences, of length 1."""
    found = model.embed_sentences([text for of_finding in sentences for text in of_finding])
    mean = found.reshape(len(sentences), -1, found.shape[1]).mean(1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def probabilities(
    scans: Float[np.ndarray, "N E"], asked: Asked, *, scale: float
) -> Float[np.ndarray, "N K"]:
    """Return softmax(scale <scan, positive>, scale <scan, negative>)[0], of each finding.

    Args:
        scans: L2-normalised.
        asked: Of the findings.
        scale: The model's inverse temperature.
    """
    gap = scans.astype(np.float64) @ (asked.positive - asked.negative).T.astype(np.float64)
    return 1 / (1 + np.exp(-scale * gap))


def score_findings(
    model: TrainedVlm, valid: Split, scans: ScanTable, *, tune: Split | None, resamples: int
) -> dict[str, Any]:
    """Return what asking tells of a split: `ensemble` and `pair` of prompts, {} without labels.

    The first volume of each study is asked. `classes` are the sets of findings over which means
    are taken.

    Args:
        model: On its device.
        valid: Studies that are reported.
        scans: Vectors of all their volumes, in order.
        tune: Studies that thresholds are chosen on; None: there are none.
        resamples: Draws of patients for intervals.
    """
    sets = {str(size): list(names) for size, names in CLASS_SETS.items()}
    found: dict[str, Any] = {"classes": sets, "ensemble": {}, "pair": {}}
    labelled = _labelled(valid)
    if not labelled:
        return found
    first = np.cumsum([0, *(len(study.volumes) for study in valid.studies)])[:-1]
    place = {study.name: first[k] for k, study in enumerate(valid.studies)}
    mine = scans.global_[[place[study.name] for study in labelled]]
    other = [] if tune is None else _labelled(tune)
    chosen = None
    if tune is not None and other:
        volumes = [study.volumes[0] for study in other]
        chosen = embed_stored(model, volumes, regions=tune.regions).global_
    for name, templates in (("ensemble", ENSEMBLE), ("pair", PAIR)):
        asked = ask(model, LABELS, templates)
        told = _predicted(valid, labelled, probabilities(mine, asked, scale=model.scale))
        on = None
        if tune is not None and chosen is not None:
            on = _predicted(tune, other, probabilities(chosen, asked, scale=model.scale))
        found[name] = zero_shot_scores(told, on, resamples=resamples)
    return found


def choose_threshold(
    told: Float[np.ndarray, " N"], true: NDArray[np.bool_], *, score: str
) -> float | None:
    """Return the probability from which on a finding is best told.

    Halfway between the last item that is told positive and the next one below it; of thresholds
    that are as good the highest. None where all items have the finding, or none.

    Args:
        told: Probabilities of a split that is not reported.
        true: Whether each item has the finding.
        score: "balanced_accuracy" or "f1".
    """
    if not len(true) or true.all() or not true.any():
        return None
    alarms, hits = (counts[1:] for counts in threshold_counts(told, true))
    if score == "f1":
        values = 2 * hits / (hits[-1] + hits + alarms)
    else:
        values = hits / hits[-1] - alarms / alarms[-1]
    best = int(values.argmax())
    levels = np.unique(told)[::-1]
    return float(levels[best : best + 2].mean())


def zero_shot_scores(
    valid: Predicted, tune: Predicted | None, *, resamples: int = 1000
) -> dict[str, Any]:
    """Return how well each finding is told, and means over sets of findings.

    Args:
        valid: Probabilities that are reported, and what is true.
        tune: Those that thresholds are chosen on; None: there are none, and scores that need one
            are None.
        resamples: Draws of patients.

    Returns:
        `findings`: of each `auroc` and `average_precision` (the area under the curve of precision
        and recall), `balanced_accuracy`, `sensitivity` and `specificity` at `threshold`, `f1` at
        `f1_threshold`, with intervals over patients; `prevalence`, `n`, `n_positive`. None where a
        score has no value. `macro`: of each set of `CLASS_SETS` the means over its findings,
        `auroc` with its interval, and the `findings` that have one.
    """
    rows = {
        name: _finding(valid, tune, k, resamples=resamples) for k, name in enumerate(valid.names)
    }
    macro = {
        str(size): _macro(valid, rows, names, resamples=resamples)
        for size, names in CLASS_SETS.items()
    }
    return {"findings": rows, "macro": macro}


def _finding(valid: Predicted, tune: Predicted | None, k: int, *, resamples: int) -> dict[str, Any]:
    """Return the row of one finding."""
    told, true = valid.outputs[:, k], valid.targets[:, k] > 0
    row: dict[str, Any] = {"prevalence": float(true.mean())}
    for score, threshold, kept in (
        ("balanced_accuracy", "threshold", (*_OF_PROBABILITIES, *_OF_THRESHOLDS[:-1])),
        ("f1", "f1_threshold", ("f1",)),
    ):
        chosen = None
        if tune is not None:
            chosen = choose_threshold(tune.outputs[:, k], tune.targets[:, k] > 0, score=score)
        found = _scored(told, true, valid.patients, threshold=chosen, resamples=resamples)
        row |= {key: found[key] for name in kept for key in (name, f"{name}_ci")}
        row[threshold] = chosen
    return {**row, "n": len(true), "n_positive": int(true.sum())}


def _scored(
    told: NDArray[np.float64],
    true: NDArray[np.bool_],
    patients: Sequence[str],
    *,
    threshold: float | None,
    resamples: int,
) -> dict[str, Any]:
    """Return the scores of a finding; None where they need what there is not."""
    names = (*_OF_PROBABILITIES, *_OF_THRESHOLDS)
    empty = {key: None for name in names for key in (name, f"{name}_ci")}
    if len(set(patients)) < _FEWEST_PATIENTS:
        return empty
    level = 0.5 if threshold is None else threshold
    row = binary_scores_with_intervals(
        told, true, patients=patients, threshold=level, resamples=resamples, seed=_SEED
    )
    if threshold is not None:
        return row
    return empty | {key: row[key] for name in _OF_PROBABILITIES for key in (name, f"{name}_ci")}


def _macro(
    valid: Predicted, rows: dict[str, dict[str, Any]], names: Sequence[str], *, resamples: int
) -> dict[str, Any]:
    """Return the means over the findings of a set that have a score."""
    known = [name for name in names if name in rows and rows[name]["auroc"] is not None]
    columns = [valid.names.index(name) for name in known]
    means = {
        score: float(np.mean(found)) if (found := _known(rows, known, score)) else None
        for score in (*_OF_PROBABILITIES, *_OF_THRESHOLDS)
    }

    def score(items: NDArray[np.intp]) -> dict[str, float]:
        return {"auroc": float(np.mean([_auroc(valid, items, k) for k in columns]))}

    interval = (
        interval_row(score, valid.patients, resamples=resamples, seed=_SEED)["auroc_ci"]
        if known
        else None
    )
    return {**means, "auroc_ci": interval, "findings": known}


def _known(rows: dict[str, dict[str, Any]], names: Sequence[str], score: str) -> list[float]:
    """Return a score of those findings that have it."""
    return [rows[name][score] for name in names if rows[name][score] is not None]


def _auroc(valid: Predicted, items: NDArray[np.intp], k: int) -> float:
    """Return the AUROC of a finding over items."""
    return binary_scores(valid.outputs[items, k], valid.targets[items, k] > 0)["auroc"]


def _labelled(split: Split) -> list[Study]:
    """Return the studies whose first volume has labels."""
    return [study for study in split.studies if study.volumes[0].volume in split.labels]


def _predicted(split: Split, studies: Sequence[Study], told: Float[np.ndarray, "N K"]) -> Predicted:
    """Return probabilities with what is true."""
    true = [split.labels[study.volumes[0].volume] for study in studies]
    patients = tuple(study.patient for study in studies)
    return Predicted(LABELS, told, np.array(true, np.float64), patients)
