"""The intensities of a volume in a few numbers, and of many volumes pooled from those."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (0.5, 50.0, 99.5)
_BINS = 64

Summary = Mapping[str, Any]


def summarize(array: NDArray[np.generic]) -> dict[str, Any]:
    """Return the intensities of a volume in a few numbers; what is padded counts too.

    `mean`, `std` (of the population), `min`, `max` and the percentiles `p0.5`, `p50` and `p99.5`
    (the smallest value that so many percent do not exceed) are exact. `histogram` has at most 65
    bins, `[(first + i) * width, (first + i + 1) * width)` with a power of two as width, so that
    those of other volumes fit onto it.

    Args:
        array: D H W, values of one domain, at least one.
    """
    values, counts = _counted(array)
    voxels = int(counts.sum())
    mean = float((values * counts).sum()) / voxels
    std = math.sqrt(float(((values - mean) ** 2 * counts).sum()) / voxels)
    reached = np.cumsum(counts)
    ranks = [min(voxels, max(1, math.ceil(p / 100 * voxels))) for p in PERCENTILES]
    places = np.searchsorted(reached, ranks)
    spread = float(values[-1] - values[0])
    width = 2.0 ** math.ceil(math.log2(spread / _BINS)) if spread > 0 else 1.0
    bins = np.floor(values / width).astype(np.int64)
    binned = np.bincount(bins - bins[0], weights=counts)
    return {
        "voxels": voxels,
        "mean": mean,
        "std": std,
        "min": float(values[0]),
        "max": float(values[-1]),
        **{f"p{p:g}": float(values[i]) for p, i in zip(PERCENTILES, places, strict=True)},
        "histogram": {
            "first": int(bins[0]),
            "width": width,
            "counts": binned.astype(np.int64).tolist(),
        },
    }


def pool(summaries: Sequence[Summary]) -> dict[str, Any]:
    """Return the summary of all voxels of several volumes, as if they were one.

    All is exact but the percentiles, which come from the joined histogram and are right to the
    width of a bin. None of anything where there is no volume.
    """
    if not summaries:
        return {"voxels": 0}
    voxels = np.array([s["voxels"] for s in summaries], dtype=np.float64)
    means = np.array([s["mean"] for s in summaries])
    stds = np.array([s["std"] for s in summaries])
    mean = float((means * voxels).sum() / voxels.sum())
    variance = float(((stds**2 + (means - mean) ** 2) * voxels).sum() / voxels.sum())
    histogram = _joined([s["histogram"] for s in summaries])
    return {
        "voxels": sum(s["voxels"] for s in summaries),
        "mean": mean,
        "std": math.sqrt(variance),
        "min": min(s["min"] for s in summaries),
        "max": max(s["max"] for s in summaries),
        **{f"p{p:g}": _percentile(histogram, p) for p in PERCENTILES},
        "histogram": histogram,
    }


def _counted(array: NDArray[np.generic]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the distinct values, rising, and how often each occurs."""
    if array.dtype.kind not in "iu":
        values, counts = np.unique(np.asarray(array, dtype=np.float64), return_counts=True)
        return values, counts.astype(np.float64)
    low, high = int(array.min()), int(array.max())
    counts = np.zeros(high - low + 1, dtype=np.int64)
    for plane in array:  # one at a time: bincount widens what it counts to 64 bits
        shifted = np.subtract(plane, low, dtype=np.int64)
        counts += np.bincount(shifted.ravel(), minlength=counts.size)
    found = np.flatnonzero(counts)
    return (found + low).astype(np.float64), counts[found].astype(np.float64)


def _joined(histograms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sum of histograms in the widest of their bins."""
    width = max(h["width"] for h in histograms)
    totals: dict[int, int] = {}
    for histogram in histograms:
        factor = round(width / histogram["width"])
        for i, count in enumerate(histogram["counts"], start=histogram["first"]):
            totals[i // factor] = totals.get(i // factor, 0) + count
    first, last = min(totals), max(totals)
    counts = [totals.get(i, 0) for i in range(first, last + 1)]
    return {"first": first, "width": width, "counts": counts}


def _percentile(histogram: Mapping[str, Any], percent: float) -> float:
    """Return the value that a percentage of voxels stays under, linear within its bin."""
    counts = np.array(histogram["counts"], dtype=np.float64)
    reached = np.concatenate([[0], np.cumsum(counts)])
    edges = (histogram["first"] + np.arange(counts.size + 1)) * histogram["width"]
    return float(np.interp(percent / 100 * reached[-1], reached, edges))
