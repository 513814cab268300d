"""The data section of the report."""

import pytest

from ct3dlib.report.cohort import cohort_section
from ct3dlib.report.page import Table, Text, render


def part(**values):
    """Return the statistics of a split."""
    counts = {"series": 5, "stored": 4, "rejected": 1, "patients": 3}
    lost = {"n": 4, "mean": 0.0456, "p50": 0.0, "p95": 0.2, "max": 0.31, "over_10_percent": 2}
    return {
        **counts,
        "facts": {"interpolated": 1, "tilted": 0},
        "lost": lost,
        "intensity": {"voxels": 8, "mean": -612.34, "std": 480.01},
        **values,
    }


@pytest.fixture
def statistics():
    empty = part(series=0, stored=0, lost={"n": 0}, intensity={"voxels": 0})
    return {
        "chest": {
            "splits": {"all": part(), "train": part(), "valid": empty},
            "duplicates": [
                {"same": "source", "volumes": ["a", "<b>"], "splits": ["train", "tune"]}
            ],
            "disk": {"volumes": 4, "bytes": 2_500_000, "bytes_per_voxel": 0.8349},
        }
    }


def test_a_line_per_split_with_what_was_lost(statistics):
    table, _ = cohort_section(statistics).blocks
    assert isinstance(table, Table)
    rows = table.frame.to_dict("records")
    assert [row["split"] for row in rows] == ["all", "train", "valid"]
    assert (rows[0]["lost mean"], rows[0]["lost max"], rows[0]["lost > 10 %"]) == (
        "4.6%",
        "31.0%",
        2,
    )
    assert (rows[0]["mean"], rows[0]["std"]) == (-612.3, 480.0)
    assert "2.5 MB on disk, 0.83 bytes a voxel" in table.caption


def test_duplicates_are_listed(statistics):
    _, table = cohort_section(statistics).blocks
    assert isinstance(table, Table)
    assert table.frame.to_dict("records") == [
        {"the same": "source", "volumes": "a, <b>", "splits": "train, tune"}
    ]
    assert "1 groups" in table.caption
    assert "1 of them in several splits" in table.caption
    assert "<b>" not in render("t", [cohort_section(statistics)]).split("<main>")[1]


def test_without_duplicates_that_is_said(statistics):
    statistics["chest"]["duplicates"] = []
    _, text = cohort_section(statistics).blocks
    assert text == Text("Recipe chest: no volume is there twice.")
