"""The sheet of a shard: planes at their proportions, flags, and no more than it can hold."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import tensorstore
from PIL import Image

from ct3dlib.cohort.histogram import summarize
from ct3dlib.cohort.shard import COLUMNS
from ct3dlib.cohort.store import create_store, write_node, write_table
from ct3dlib.report import contact_sheet
from ct3dlib.report.contact_sheet import draw_sheet

WINDOW = (-1000.0, 1000.0)
RED, ORANGE, VIOLET = (255, 90, 80), (255, 180, 60), (200, 140, 255)


@pytest.fixture
def write(tmp_path):
    """Return a function that makes a shard of arrays with their loss and facts."""

    def shard(volumes, spacing=(1.0, 1.0, 1.0)):
        table = tmp_path / "chest/train/0000.parquet"
        table.parent.mkdir(parents=True)
        store = table.with_suffix(".zarr")
        create_store(store, "volumes")
        rows = []
        for name, (array, lost, facts) in volumes.items():
            affine = np.diag([*spacing, 1.0]).tolist()
            node = f"{name}@1"
            attributes = {"ct3d": {"affine": affine}}
            row = {
                "volume": name,
                "status": "stored",
                "node": node,
                "sha256": write_node(store, node, array, attributes=attributes),
                "shape": list(array.shape),
                "lost": lost,
                "facts": json.dumps(facts),
                "intensity": json.dumps(summarize(array)),
            }
            rows.append({**dict.fromkeys(COLUMNS, ""), **row})
        write_table(pd.DataFrame(rows, columns=list(COLUMNS)), table)
        return table

    return shard


def open_sheet(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def halves() -> np.ndarray:
    """Return a volume whose upper, back and left parts are denser."""
    array = np.full((20, 40, 40), -1000, dtype=np.int16)
    array[10:] += 500
    array[:, 20:] += 300
    array[:, :, 20:] += 700
    return array


def has(sheet: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((sheet == color).all(axis=-1).any())


def test_planes_lie_as_a_radiologist_sees_them(write):
    sheet = open_sheet(
        draw_sheet(write({"a": (halves(), 0.0, {})}, spacing=(2.0, 1.0, 1.0)), WINDOW)
    )
    axial, coronal, sagittal = (
        sheet[32 : 32 + 112, 4 + i * 116 : 4 + i * 116 + 112, 0].astype(int) for i in range(3)
    )

    def gray(hu: float) -> float:
        return (hu + 1000) / 2000 * 255

    # 20 x 40 x 40 voxels of 2 x 1 x 1 mm make a cube: every plane fills its square.
    assert axial[28, 28] == pytest.approx(gray(-500), abs=1)  # front, the patient's right
    assert axial[84, 84] == pytest.approx(gray(500), abs=1)  # back, the patient's left
    assert coronal[28, 28] == pytest.approx(gray(-200), abs=1)  # head, right
    assert coronal[84, 84] == pytest.approx(gray(0), abs=1)  # foot, left
    assert sagittal[28, 28] == pytest.approx(gray(200), abs=1)  # head, front
    assert sagittal[84, 84] == pytest.approx(gray(0), abs=1)  # foot, back


def test_thin_slices_keep_their_proportions(write):
    table = write({"a": (np.full((20, 40, 40), 1000, np.int16), 0.0, {})}, spacing=(0.5, 1.0, 1.0))
    sheet = open_sheet(draw_sheet(table, WINDOW))
    coronal = sheet[32 : 32 + 112, 4 + 116 : 4 + 116 + 112, 0]
    rows = np.flatnonzero((coronal == 255).any(axis=1))
    assert len(rows) == 28  # 10 mm of 40 mm, which take 112 pixels
    assert rows[0] == 42


@pytest.mark.parametrize(
    ("array", "lost", "facts", "color"),
    [
        (halves(), 0.11, {}, RED),
        (halves(), 0.0, {"interpolated": [4]}, ORANGE),
        (halves(), 0.0, {"tilt": 12.5}, ORANGE),
        (np.full((9, 9, 9), -1000, np.int16), 0.0, {}, VIOLET),
    ],
    ids=["lost", "interpolated", "tilt", "low contrast"],
)
def test_what_is_odd_is_flagged_in_colour(write, array, lost, facts, color):
    sheet = open_sheet(draw_sheet(write({"a": (array, lost, facts)}), WINDOW))
    assert [has(sheet, c) for c in (RED, ORANGE, VIOLET)] == [
        c == color for c in (RED, ORANGE, VIOLET)
    ]


def test_a_whole_volume_has_no_flag(write):
    sheet = open_sheet(draw_sheet(write({"a": (halves(), 0.1, {"tilt": 0.0})}), WINDOW))
    assert not any(has(sheet, color) for color in (RED, ORANGE, VIOLET))


def test_of_too_many_volumes_the_flagged_ones_are_shown(write, monkeypatch):
    monkeypatch.setattr(contact_sheet, "MAX_TILES", 2)
    volumes = {name: (halves(), 0.5 if name == "c" else 0.0, {}) for name in "abc"}
    sheet = open_sheet(draw_sheet(write(volumes), WINDOW))
    assert sheet.shape[1] == 4 * (3 * 116) + 4
    assert sheet.shape[0] == 32 + 148
    assert has(sheet[:, :352], RED)


def test_without_a_window_each_volume_shows_its_own_range(write):
    array = np.full((9, 9, 9), 100, np.uint8)
    array[:, 5:] = 120
    sheet = open_sheet(draw_sheet(write({"a": (array, 0.0, {})}), None))
    axial = sheet[32 : 32 + 112, 4 : 4 + 112, 0]
    assert (axial.min(), axial.max()) == (0, 255)


def test_a_shard_without_volumes_has_a_sheet(write):
    assert open_sheet(draw_sheet(write({}), WINDOW)).shape == (32, 1396, 3)


def test_the_same_shard_gives_the_same_bytes(write):
    table = write({"a": (halves(), 0.0, {})})
    assert draw_sheet(table, WINDOW) == draw_sheet(table, WINDOW)


def test_only_the_chunks_of_the_planes_are_read(write):
    rng = np.random.default_rng(0)
    array = rng.integers(-1024, 3071, (160, 320, 320), dtype=np.int16)  # 5 x 5 x 5 chunks
    table = write({"a": (array, 0.0, {})})
    name = "/tensorstore/kvstore/file/bytes_read"

    def bytes_read() -> int:
        (metric,) = tensorstore.experimental_collect_matching_metrics(
            name, include_zero_metrics=True
        )
        return metric["values"][0]["value"]

    before = bytes_read()
    draw_sheet(table, WINDOW)
    size = next(table.parent.glob("0000.zarr/a@1/0/c*")).stat().st_size
    assert bytes_read() - before < 0.65 * size  # 3 planes of 25 chunks of 125
