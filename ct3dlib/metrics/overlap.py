"""Overlap of two label masks: Dice and volume error per id and for unions of ids."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def dice(
    predicted: NDArray[np.integer], truth: NDArray[np.integer], ids: Sequence[int]
) -> dict[int, float]:
    """Return the Dice coefficient of each id: 2 |A and B| / (|A| + |B|) (Dice 1945).

    An id that neither mask holds has no Dice: NaN, so that a mean over volumes leaves it out.

    Args:
        predicted: Ids, any shape.
        truth: Ids, same shape.
        ids: Which to score.

    Raises:
        ValueError: The shapes differ, or an id is negative.
    """
    ours, theirs, both = _counts(predicted, truth, ids)
    total = ours + theirs
    return {
        i: float(2 * both[n] / total[n]) if total[n] else float("nan") for n, i in enumerate(ids)
    }


def union_dice(
    predicted: NDArray[np.integer], truth: NDArray[np.integer], ids: Sequence[int]
) -> float:
    """Return the Dice coefficient of several ids taken as one, as the lungs are of their lobes.

    Raises:
        ValueError: The shapes differ.
    """
    union = (np.isin(mask, ids).astype(np.uint8) for mask in (predicted, truth))
    return dice(*union, ids=[1])[1]


def volume_error(
    predicted: NDArray[np.integer], truth: NDArray[np.integer], ids: Sequence[int]
) -> dict[int, float]:
    """Return the signed relative volume error of each id: (|A| - |B|) / |B|; NaN without truth.

    Raises:
        ValueError: The shapes differ, or an id is negative.
    """
    ours, theirs, _ = _counts(predicted, truth, ids)
    return {
        i: float((ours[n] - theirs[n]) / theirs[n]) if theirs[n] else float("nan")
        for n, i in enumerate(ids)
    }


def _counts(
    predicted: NDArray[np.integer], truth: NDArray[np.integer], ids: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the voxels of each id in one mask, in the other, and in both."""
    if predicted.shape != truth.shape:
        raise ValueError(f"masks of one shape are wanted: {predicted.shape} and {truth.shape}")
    if any(i < 0 for i in ids):
        raise ValueError(f"ids are 0 or more: {list(ids)}")
    size = max(ids, default=0) + 1
    agreed = predicted[predicted == truth]
    first, second, both = (
        np.bincount(mask.ravel(), minlength=size)[list(ids)] for mask in (predicted, truth, agreed)
    )
    return first, second, both
