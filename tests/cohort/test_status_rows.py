"""Rows of status tables: what stands in the store, or why there is nothing."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ct3dlib.cohort.hashes import array_sha256
from ct3dlib.cohort.status_rows import FIRST_COLUMNS, rejected_row, stored_row
from ct3dlib.cohort.store import create_store, write_node
from ct3dlib.cohort.stored_array import StoredArray
from ct3dlib.errors import StoreError, VolumeError

NAMES = ["volume", "status", "reason", "message", "node", "sha256", "shape"]


def test_a_stored_volume_s_row_is_what_the_store_holds(tmp_path: Path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    create_store(tmp_path / "0000.zarr", "regions")
    write_node(tmp_path / "0000.zarr", "a@1", array, attributes={"ct3d": {"volume": "other"}})
    row = stored_row("a", StoredArray(tmp_path / "0000.zarr", "a@1"))
    assert row == {
        "volume": "a",
        "status": "stored",
        "reason": "",
        "message": "",
        "node": "a@1",
        "sha256": array_sha256(array),
        "shape": [2, 3, 4],
    }
    with pytest.raises(StoreError, match=r"b@1/zarr.json: damaged or out of reach"):
        stored_row("b", StoredArray(tmp_path / "0000.zarr", "b@1"))


def test_a_rejected_volume_s_row_says_why_in_the_words_it_is_given():
    error = VolumeError("FILE_MISSING", "/secret/a.nii.gz: gone")
    assert rejected_row("a", error, message="p1: gone") == {
        **dict.fromkeys(NAMES, ""),
        "volume": "a",
        "status": "rejected",
        "reason": "FILE_MISSING",
        "message": "p1: gone",
        "shape": None,
    }


def test_rows_fill_the_first_columns():
    assert list(FIRST_COLUMNS) == NAMES
    row = rejected_row("a", VolumeError("EMPTY", "a: empty"), message="a: empty")
    frame = pd.DataFrame([row], columns=NAMES).astype(FIRST_COLUMNS)
    assert frame.loc[0, "shape"] is None
    assert frame["node"].tolist() == [""]
