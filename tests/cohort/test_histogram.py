"""Intensities in a few numbers: exact for a volume, pooled for many."""

import math

import numpy as np
import pytest

from ct3dlib.cohort.histogram import pool, summarize


def test_summary_of_a_volume_worked_out_by_hand():
    array = np.array([-1000, 0, 0, 40, 40, 40, 40, 200], dtype=np.int16).reshape(2, 2, 2)
    found = summarize(array)
    assert found["voxels"] == 8
    assert found["mean"] == -80
    assert math.isclose(found["std"], math.sqrt((920**2 + 2 * 80**2 + 4 * 120**2 + 280**2) / 8))
    assert (found["min"], found["p0.5"], found["p50"]) == (-1000, -1000, 40)
    assert (found["p99.5"], found["max"]) == (200, 200)
    # 1200 HU over 64 bins: 32 HU each; -1000 lies in bin -32, 0 in 0, 40 in 1, 200 in 6.
    assert found["histogram"]["first"] == -32
    assert found["histogram"]["width"] == 32
    counts = found["histogram"]["counts"]
    assert {i - 32: n for i, n in enumerate(counts) if n} == {-32: 1, 0: 2, 1: 4, 6: 1}


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(np.int16, -1024, 3072), (np.uint8, 0, 256), (np.float32, -3, 9), (np.int16, -32768, 32767)],
    ids=["hu", "uint8", "float", "int16"],
)
def test_summary_agrees_with_numpy(dtype, low, high):
    rng = np.random.default_rng(0)
    array = (rng.random((5, 11, 13)) * (high - low) + low).astype(dtype)
    found = summarize(array)
    assert math.isclose(found["mean"], array.mean(dtype=np.float64))
    assert math.isclose(found["std"], array.std(dtype=np.float64))
    for percent in (0.5, 50, 99.5):
        wanted = np.percentile(array.astype(np.float64), percent, method="inverted_cdf")
        assert found[f"p{percent:g}"] == wanted
    histogram = found["histogram"]
    assert len(histogram["counts"]) <= 65
    assert sum(histogram["counts"]) == array.size
    edges = (histogram["first"] + np.arange(len(histogram["counts"]) + 1)) * histogram["width"]
    assert histogram["counts"] == np.histogram(array, edges)[0].tolist()


def test_summary_of_a_constant_volume():
    found = summarize(np.full((2, 3, 4), -1024, dtype=np.int16))
    assert (found["mean"], found["std"], found["p50"]) == (-1024, 0, -1024)
    assert found["histogram"] == {"first": -1024, "width": 1, "counts": [24]}


def test_pooled_volumes_are_as_one():
    rng = np.random.default_rng(0)
    parts = [
        rng.normal(mean, std, (4, 5, n)).astype(np.int16)
        for mean, std, n in ((0, 3, 6), (-800, 200, 20), (40, 500, 9))
    ]
    pooled = pool([summarize(part) for part in parts])
    whole = np.concatenate([part.ravel() for part in parts]).reshape(1, 1, -1)
    wanted = summarize(whole)
    for name in ("voxels", "mean", "std", "min", "max"):
        assert math.isclose(pooled[name], wanted[name], abs_tol=1e-9)
    width = pooled["histogram"]["width"]
    assert sum(pooled["histogram"]["counts"]) == whole.size
    for percent in ("p0.5", "p50", "p99.5"):
        assert abs(pooled[percent] - wanted[percent]) <= width


def test_pooling_a_volume_with_itself_changes_no_share():
    one = summarize(np.arange(4096, dtype=np.int16).reshape(16, 16, 16) - 1024)
    two = pool([one, one])
    assert two["histogram"]["counts"] == [2 * n for n in one["histogram"]["counts"]]
    assert two["p50"] == 1024  # half of the 64 bins of 64


def test_nothing_pooled_is_nothing():
    assert pool([]) == {"voxels": 0}
