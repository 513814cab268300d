"""Overlap of two label masks: Dice and volume error per id and for unions of ids."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Overlap:
    """Voxels of one object in two masks.

    Args:
        predicted: In the mask that is scored.
        truth: In the true one.
        both: In both at once.
    """

    predicted: int
    truth: int
    both: int

    @property
    def dice(self) -> float:
        """2 |A and B| / (|A| + |B|) (Dice 1945); NaN where neither mask holds it."""
        total = self.predicted + self.truth
        return 2 * self.both / total if total else math.nan

    @property
    def volume_error(self) -> float:
        """Signed, as a share of the true volume: (|A| - |B|) / |B|; NaN without truth."""
        return (self.predicted - self.truth) / self.truth if self.truth else math.nan


def overlaps(
    predicted: NDArray[np.integer], truth: NDArray[np.integer], ids: Sequence[int]
) -> dict[int, Overlap]:
    """Return the voxels of each id in one mask, in the other, and in both.

    Args:
        predicted: Ids, any shape.
        truth: Ids, same shape.
        ids: Which to count.

    Raises:
        ValueError: The shapes differ, or an id is negative.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"masks of one shape are wanted: {predicted.shape} and {truth.shape}")
    if any(i < 0 for i in ids):
        raise ValueError(f"ids are 0 or more: {list(ids)}")
    size = max(ids, default=0) + 1
    agreed = predicted[predicted == truth]
    counts = [
        np.bincount(mask.ravel(), minlength=size).tolist() for mask in (predicted, truth, agreed)
    ]
    return {i: Overlap(*(count[i] for count in counts)) for i in ids}


def union_overlap(
    predicted: NDArray[np.integer], truth: NDArray[np.integer], ids: Sequence[int]
) -> Overlap:
    """Return the voxels of several ids taken as one object, as the lungs are of their lobes.

    Raises:
        ValueError: The shapes differ.
    """
    ours, theirs = (np.isin(mask, ids).astype(np.uint8) for mask in (predicted, truth))
    return overlaps(ours, theirs, [1])[1]


def dice(
    predicted: NDArray[np.integer], truth: NDArray[np.integer], ids: Sequence[int]
) -> dict[int, float]:
    """Return the Dice coefficient of each id: 2 |A and B| / (|A| + |B|) (Dice 1945).

    An id that neither mask holds has no Dice: NaN, so that a mean over volumes leaves it out.

    Raises:
        ValueError: The shapes differ, or an id is negative.
    """
    return {i: found.dice for i, found in overlaps(predicted, truth, ids).items()}


def union_dice(
    predicted: NDArray[np.integer], truth: NDArray[np.integer], ids: Sequence[int]
) -> float:
    """Return the Dice coefficient of several ids taken as one object.

    Raises:
        ValueError: The shapes differ.
    """
    return union_overlap(predicted, truth, ids).dice


def volume_error(
    predicted: NDArray[np.integer], truth: NDArray[np.integer], ids: Sequence[int]
) -> dict[int, float]:
    """Return the signed relative volume error of each id: (|A| - |B|) / |B|; NaN without truth.

    Raises:
        ValueError: The shapes differ, or an id is negative.
    """
    return {i: found.volume_error for i, found in overlaps(predicted, truth, ids).items()}
