"""Detection of lesions: boxes from a probability volume, their matches, and FROC.

Letters: D H W voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer
from numpy.typing import NDArray
from scipy import ndimage

from ct3dlib.metrics.bootstrap import ScoreTable, UndefinedScoreError, scores_with_intervals
from ct3dlib.metrics.classification import threshold_counts
from ct3dlib.scan.axes import Triple

LEAST_IOU = 0.1
FALSE_POSITIVES_PER_VOLUME = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)

_TOUCHING = ndimage.generate_binary_structure(3, 3)  # by a face, an edge or a corner: 26


@dataclass(frozen=True)
class Box:
    """A detected object.

    Args:
        start: First voxel (D, H, W).
        stop: One past the last voxel (D, H, W).
        score: The largest probability in the object.
        voxels: Of the object itself, which need not fill the box.
    """

    start: Triple
    stop: Triple
    score: float
    voxels: int


@dataclass(frozen=True)
class Matches:
    """What the boxes of one volume found.

    Args:
        hits: Score of the box that found each found lesion.
        false_positives: Score of each box that meets no lesion.
        lesions: In the volume, found or not.
    """

    hits: tuple[float, ...]
    false_positives: tuple[float, ...]
    lesions: int


def find_boxes(
    probabilities: Float[np.ndarray, "D H W"], *, threshold: float, min_voxels: int = 1
) -> list[Box]:
    """Return the objects of a probability volume, most probable first.

    An object is a 26-connected component of the voxels of `threshold` or more.

    Args:
        probabilities: In [0, 1].
        threshold: Least probability of an object's voxels. A low one keeps faint objects, which
            FROC ranks by score, but grows neighbours together.
        min_voxels: Smaller objects are left out.

    Raises:
        ValueError: A probability is NaN.
    """
    if missing := np.count_nonzero(np.isnan(probabilities)):
        raise ValueError(
            f"{missing} of {probabilities.size} probabilities are NaN; a box has no score there"
        )
    numbers = np.empty(probabilities.shape, np.int32)
    ndimage.label(probabilities >= threshold, _TOUCHING, output=numbers)
    boxes = []
    for number, where in enumerate(ndimage.find_objects(numbers), start=1):
        inside = probabilities[where][numbers[where] == number]
        if inside.size >= min_voxels:
            boxes.append(Box(*_corners(where), float(inside.max()), inside.size))
    return sorted(boxes, key=_rank)


def match_boxes(boxes: Sequence[Box], lesions: Integer[np.ndarray, "D H W"]) -> Matches:
    """Match the boxes of one volume to its lesions.

    A box meets a lesion when the intersection over union of it and the lesion's bounding box is
    0.1 or more: clinical use needs coarse localisation (Jaeger et al., "Retina U-Net", 2020;
    Baumgartner et al., "nnDetection", 2021, score 3D boxes so). LUNA16's rule for points, a centre
    within the nodule's radius, would accept a box of any size. Spacing does not change the ratio.

    Boxes choose by falling score. Each finds the lesion that it overlaps most, of those that it
    meets and that no box has found yet. A lesion is counted once: boxes that meet found lesions
    only are neither true nor false positives, as in LUNA16 (Setio et al. 2017).

    Args:
        boxes: On the grid of the lesions, in any order.
        lesions: Id of each voxel's lesion, 0 where there is none. Separate lesions have ids of
            their own.

    Raises:
        ValueError: An id is negative, or a box leaves the grid.
    """
    if lesions.min(initial=0) < 0:
        raise ValueError(f"lesion ids are 0 or more, found {lesions.min()}")
    targets = [_corners(where) for where in ndimage.find_objects(lesions) if where is not None]
    hits: dict[int, float] = {}
    false_positives: list[float] = []
    for box in sorted(boxes, key=_rank):
        if any(last > size for last, size in zip(box.stop, lesions.shape, strict=True)):
            raise ValueError(
                f"the box from {box.start} to {box.stop} leaves the lesions' grid "
                f"{lesions.shape}; find boxes and draw lesions on one grid"
            )
        overlap = {i: _iou((box.start, box.stop), target) for i, target in enumerate(targets)}
        met = [i for i, iou in overlap.items() if iou >= LEAST_IOU]
        free = [i for i in met if i not in hits]
        if free:
            hits[max(free, key=overlap.__getitem__)] = box.score
        elif not met:
            false_positives.append(box.score)
    return Matches(tuple(hits.values()), tuple(false_positives), len(targets))


def froc(matches: Sequence[Matches]) -> dict[str, float]:
    """Return the sensitivity for lesions at given numbers of false positives per volume.

    Keys are `sensitivity_at_0.125`, 0.25, 0.5, 1, 2, 4 and 8 false positives per volume, the points
    of LUNA16 (Setio et al. 2017), their mean `cpm` (competition performance metric, Niemeijer et
    al. 2011), and the counts `n_lesions` and `n_volumes`. The curve is linear between thresholds
    and stays level beyond the last box, as LUNA16 draws it.

    Args:
        matches: Of each volume, also of those without a lesion: their false positives count.

    Raises:
        UndefinedScoreError: No volume has a lesion.
    """
    return _sensitivities(matches) | {
        "n_lesions": sum(volume.lesions for volume in matches),
        "n_volumes": len(matches),
    }


def froc_with_intervals(
    matches: Sequence[Matches], *, patients: Sequence[str], resamples: int = 1000, seed: int
) -> ScoreTable:
    """Return the row of a detector: sensitivities and `cpm`, their 95 % intervals, and counts.

    The counts are `n` volumes, `n_patients`, `n_lesions`, and `undefined_resamples`.

    Args:
        matches: Of each volume.
        patients: The patient of each volume; patients are resampled, not volumes.
        resamples: Draws of patients.
        seed: Of the draws.

    Raises:
        UndefinedScoreError: No volume has a lesion.
        ValueError: Lengths differ, or there are fewer than 2 patients.
    """
    if len(matches) != len(patients):
        raise ValueError(
            f"one patient per volume is wanted: {len(matches)} volumes, {len(patients)} patients"
        )

    def score(volumes: NDArray[np.intp]) -> dict[str, float]:
        return _sensitivities([matches[i] for i in volumes])

    row = scores_with_intervals(score, patients, resamples=resamples, seed=seed)
    return row | {"n_lesions": sum(volume.lesions for volume in matches)}


def _sensitivities(matches: Sequence[Matches]) -> dict[str, float]:
    """Return the sensitivity at each number of false positives per volume, and their mean."""
    lesions = sum(volume.lesions for volume in matches)
    if not lesions:
        raise UndefinedScoreError(
            f"none of {len(matches)} volumes has a lesion: sensitivity needs 1 or more"
        )
    hits = [score for volume in matches for score in volume.hits]
    others = [score for volume in matches for score in volume.false_positives]
    is_hit = np.arange(len(hits) + len(others)) < len(hits)
    alarms, found = threshold_counts(np.array(hits + others, np.float64), is_hit)
    # where alarms repeat, interp takes the last: the largest sensitivity
    curve = np.interp(FALSE_POSITIVES_PER_VOLUME, alarms / len(matches), found / lesions)
    named = zip(FALSE_POSITIVES_PER_VOLUME, curve.tolist(), strict=True)
    scores = {f"sensitivity_at_{point:g}": sensitivity for point, sensitivity in named}
    return scores | {"cpm": float(curve.mean())}


def _rank(box: Box) -> tuple[float, Triple]:
    """Return what boxes are sorted by: the most probable first, ties by place."""
    return -box.score, box.start


def _corners(where: tuple[slice, ...]) -> tuple[Triple, Triple]:
    """Return the first voxel and one past the last."""
    d, h, w = where
    return (d.start, h.start, w.start), (d.stop, h.stop, w.stop)


def _iou(one: tuple[Triple, Triple], other: tuple[Triple, Triple]) -> float:
    """Return intersection over union of two boxes."""
    start, stop = np.maximum(one[0], other[0]), np.minimum(one[1], other[1])
    both = np.maximum(stop - start, 0).prod()
    sizes = [np.subtract(last, first).prod() for first, last in (one, other)]
    return float(both / (sum(sizes) - both))
