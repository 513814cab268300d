"""The report's section on regions."""

import json
from typing import Any

import numpy as np
import pytest

from ct3dlib.cohort.store import read_status, stored_volumes, write_table
from ct3dlib.config import RecipeSpec
from ct3dlib.regions.label_map import COLORS, REGIONS
from ct3dlib.report.page import Figure, Legend, Table, Text, render
from ct3dlib.report.regions import region_table, regions_section
from tests.inference.region_stores import write_region_store, write_store

MEASURED = {
    "dice": {"heart": 0.87654, "lungs": 0.95},
    "volume_error": {"heart": -0.123, "lungs": None},
    "missed": {"heart": 1, "lungs": 0},
    "invented": {"heart": 0, "lungs": 2},
    "n_by_region": {"heart": 4, "lungs": 3},
    "spacing": [6.0, 4.0, 4.0],
}


def _row(*, heart: dict[str, Any], skipped: list[dict[str, str]]) -> dict[str, Any]:
    """Return a row of a status table: the heart as said, the rest absent."""
    absent = {"status": "absent", "source": "classical", "agreement": None}
    said = [{"name": name, **absent, **(heart if name == "heart" else {})} for name in REGIONS[1:]]
    return {"status": "stored", "regions": json.dumps(said), "skipped": json.dumps(skipped)}


ROWS = [
    _row(heart={"status": "ok", "source": "labelmap+medsam2", "agreement": 0.9}, skipped=[]),
    _row(heart={"status": "ok", "source": "labelmap", "agreement": 0.5}, skipped=[]),
    _row(heart={"status": "approximate", "source": "classical", "agreement": None}, skipped=[]),
    _row(heart={"source": None}, skipped=[]),
]


def test_a_region_stands_with_its_truth_and_its_store():
    table = region_table(ROWS, MEASURED).set_index("region")
    assert table.loc["heart"].to_dict() == {
        "Dice": "0.877",
        "volumes": "4",
        "volume error": "-12%",
        "missed": "1",
        "invented": "0",
        "ok": "50%",
        "approximate": "25%",
        "absent": "25%",
        "by": "labelmap+medsam2 1, labelmap 1, classical 1",
        "agreement": "0.70 (2)",
    }
    assert table.loc["aorta", ["Dice", "absent", "by", "agreement"]].tolist() == [
        *("", "100%", "classical", "")
    ]
    assert table.index[-1] == "lungs"
    assert table.loc["lungs", ["Dice", "volume error", "ok", "by"]].tolist() == [
        "0.950",
        "",
        "",
        "",
    ]


def test_without_truth_and_medsam2_there_are_no_columns_of_them():
    table = region_table(ROWS[2:], None)
    assert table.columns.tolist() == ["region", "ok", "approximate", "absent", "by"]
    assert len(table) == 20


def _store(folder, mask):
    """Return the tables of a region store and the examples of its volume store."""
    hu = np.random.default_rng(0).integers(-1000, 400, mask.shape).astype(np.int16)
    volumes = write_store(folder / "v/0000.parquet", "volumes", {"a": (hu, {}), "b": (hu, {})})
    table = write_region_store(folder / "r/0000.parquet", {"a": mask}, {})
    skips = [{"provider": "labelmap", "reason": "NO_LABEL_MAP", "message": "a: no label map"}]
    frame = read_status(table)
    (stored,) = stored_volumes([table])
    regions = json.dumps(stored.array.attributes["ct3d"]["regions"])
    write_table(frame.assign(regions=regions, skipped=json.dumps(skips)), table)
    return [table], stored_volumes([volumes])


@pytest.fixture
def section(tmp_path):
    mask = np.zeros((6, 8, 10), np.uint8)
    mask[:, 2:6, 2:8] = 8
    mask[0, 0, 0] = 15  # in no picture
    tables, examples = _store(tmp_path, mask)
    return regions_section(tables, examples, measured=None, recipe=RecipeSpec())


def test_providers_that_said_nothing_are_listed(section):
    _, skipped = (block for block in section.blocks if isinstance(block, Table))
    assert skipped.frame.to_dict("records") == [
        {
            "provider": "labelmap",
            "reason": "NO_LABEL_MAP",
            "volumes": 1,
            "the first of them": "a: no label map",
        }
    ]


def test_agreement_is_explained_where_something_was_drawn_anew(tmp_path, section):
    tables, examples = _store(tmp_path / "drawn", np.zeros((6, 8, 10), np.uint8))
    frame = read_status(tables[0]).assign(**ROWS[0])
    write_table(frame, tables[0])
    drawn = regions_section(tables, examples, measured=None, recipe=RecipeSpec())
    told = [block.caption for s in (section, drawn) for block in s.blocks[:1]]
    assert ["Agreement: mean Dice" in caption for caption in told] == [False, True]


def test_the_legend_names_what_the_pictures_show(section):
    figures = [block for block in section.blocks if isinstance(block, Figure)]
    assert [figure.caption for figure in figures] == ["a and its regions"]  # b has none
    assert section.blocks[-1] == Legend((("heart", COLORS[8]),))
    assert "background:rgb(" in render("title", [section])


def test_a_store_without_regions_says_why(tmp_path):
    mask = np.zeros((6, 8, 10), np.uint8)
    tables, examples = _store(tmp_path, mask)
    frame = read_status(tables[0]).assign(status="rejected", reason="WRONG_DOMAIN")
    write_table(frame, tables[0])
    section = regions_section(tables, examples, measured=None, recipe=RecipeSpec())
    assert section.blocks == (Text("None of 1 volumes has regions: WRONG_DOMAIN 1."),)
