"""A trained segmenter against the masks of held-out volumes, and against an atlas.

Letters: D H W voxels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ct3dlib.errors import CheckpointError, StoreError
from ct3dlib.inference.contract import check_volumes
from ct3dlib.inference.segmenter import LEAST_PROBABILITY, TrainedSegmenter
from ct3dlib.metrics.bootstrap import UndefinedScoreError
from ct3dlib.metrics.detection import Matches, find_boxes, froc, match_boxes
from ct3dlib.metrics.overlap import dice, union_dice
from ct3dlib.progress import progress
from ct3dlib.regions.classes import MaskedVolume, class_names
from ct3dlib.regions.label_map import LUNGS, REGIONS

Scores = Mapping[str, float]


def evaluate_segmenter(
    segmenter: TrainedSegmenter, held_out: Sequence[MaskedVolume], *, train: Sequence[MaskedVolume]
) -> dict[str, Any]:
    """Return how well classes are told on held-out volumes.

    Args:
        segmenter: Trained on others.
        held_out: With masks of the kinds that it tells.
        train: What it was trained on; their masks make the atlas.

    Returns:
        `dice`: of each class the mean over the volumes where either mask holds it, and of the
        `lungs` as one; `baseline_dice`: the same of the atlas, which a network that sees the scan
        must beat; `froc` of lesions, where there are any (`ct3dlib.metrics.detection`); `n`.

    Raises:
        StoreError: There are no held-out volumes, or none to make the atlas of.
        CheckpointError: The volumes are of another recipe than the segmenter's, or the masks of
            other classes.
    """
    _check(segmenter, held_out, train)
    guess = atlas(train, num_classes=len(segmenter.classes))
    told: list[Scores] = []
    guessed: list[Scores] = []
    matches: list[Matches] = []
    for one in progress(held_out, name="segmenter against masks", unit="volume"):
        window = one.volume.own_window or segmenter.recipe.window
        found = segmenter.segment(one.volume.read_checked(), window)
        truth = one.read_classes()
        told.append(class_dice(found.classes, truth, segmenter.classes))
        guessed.append(class_dice(guess, truth, segmenter.classes))
        if found.lesions is not None:
            boxes = find_boxes(found.lesions, threshold=LEAST_PROBABILITY)
            matches.append(match_boxes(boxes, one.read_lesions()))
    scores = {"dice": _means(told), "baseline_dice": _means(guessed), "n": len(held_out)}
    try:
        return {**scores, "froc": froc(matches)}
    except UndefinedScoreError:
        return scores


def _check(
    segmenter: TrainedSegmenter, held_out: Sequence[MaskedVolume], train: Sequence[MaskedVolume]
) -> None:
    """Refuse volumes that a segmenter cannot be scored on."""
    if not held_out or not train:
        raise StoreError(
            f"{len(held_out)} held-out and {len(train)} training volumes have masks; each must be "
            f"1 or more: see the status tables of their splits"
        )
    classes = class_names(tuple(held_out[0].masks))
    if classes != segmenter.classes:
        raise CheckpointError(
            f"the segmenter tells {', '.join(segmenter.classes[1:])}, the masks hold "
            f"{', '.join(classes[1:])}; give masks of the kinds that it was trained on"
        )
    check_volumes(segmenter.recipe, [one.volume for one in held_out], model="the segmenter")


def atlas(train: Sequence[MaskedVolume], *, num_classes: int) -> UInt8[np.ndarray, "D H W"]:
    """Return the class that most masks have at each voxel; of several the first."""
    counts = np.zeros((num_classes, *train[0].volume.shape), np.uint32)
    for one in progress(train, name="atlas", unit="volume"):
        classes = one.read_classes()
        for i in np.unique(classes):
            counts[i] += classes == i
    return counts.argmax(axis=0).astype(np.uint8)


def class_dice(
    told: UInt8[np.ndarray, "D H W"], truth: UInt8[np.ndarray, "D H W"], classes: Sequence[str]
) -> dict[str, float]:
    """Return the Dice of each class but the background, and of the lungs where lobes are told.

    NaN where neither mask holds it.
    """
    scores = {classes[i]: d for i, d in dice(told, truth, range(1, len(classes))).items()}
    if classes[LUNGS[0]] == REGIONS[LUNGS[0]]:
        scores["lungs"] = union_dice(told, truth, LUNGS)
    return scores


def _means(scores: Sequence[Scores]) -> dict[str, float]:
    """Return the mean of each score over the volumes where it is known, if there are any."""
    columns = {name: [row[name] for row in scores] for name in scores[0]}
    known = {name: [x for x in column if x == x] for name, column in columns.items()}
    return {name: float(np.mean(column)) for name, column in known.items() if column}
