"""Statistics of a store: worked out by hand on eight volumes."""

import json
import logging
import math

import numpy as np
import pandas as pd
import pytest

from ct3dlib.cohort.catalog import Row, to_frame
from ct3dlib.cohort.histogram import summarize
from ct3dlib.cohort.shard import COLUMNS
from ct3dlib.cohort.statistics import measure
from ct3dlib.cohort.store import create_store, write_node, write_table
from ct3dlib.errors import DatasetError, StoreError

# Volume -> split, patient, fill value, share lost, source hash, facts; None is rejected.
VOLUMES = {
    "a1": ("train", "a", 0, 0.0, "s1", {"tilt": 0.0, "LossyImageCompression": "00"}),
    "a2": ("train", "a", 100, 0.02, "s2", {"tilt": -5.0, "interpolated": [3]}),
    "b1": ("train", "b", 0, 0.3, "s3", {"LossyImageCompression": "01"}),
    "c1": ("tune", "c", 50, 0.1, "s1", {"interpolated": []}),
    "d1": ("valid", "d", -200, 0.0, "s5", {}),
    "d2": ("valid", "d", None, 0.0, "", {}),
}
SHAPE = (4, 5, 6)


@pytest.fixture
def catalog() -> pd.DataFrame:
    rows = [
        Row(
            volume=volume,
            dataset="folder",
            patient=patient,
            study=volume,
            split=split,
            shard=0,
            kind="nifti",
            sources=(f"{volume}.nii",),
            size=1,
            mtime_ns=1,
            shape=(10, 20, 30) if split == "train" else None,
        )
        for volume, (split, patient, *_) in VOLUMES.items()
    ]
    return to_frame(rows)


@pytest.fixture
def tables(tmp_path):
    """Return the status tables of a store with the volumes."""
    written = []
    for split in ("train", "tune", "valid"):
        table = tmp_path / split / "0000.parquet"
        table.parent.mkdir()
        create_store(table.with_suffix(".zarr"), "volumes")
        rows = [
            status_row(table.with_suffix(".zarr"), volume, *facts)
            for volume, (of, _, *facts) in VOLUMES.items()
            if of == split
        ]
        write_table(pd.DataFrame(rows, columns=list(COLUMNS)), table)
        written.append(table)
    return written


def status_row(store, volume, fill, lost, source, facts):
    """Store a constant volume, or reject it, and return its row."""
    if fill is None:
        empty = dict.fromkeys(COLUMNS, "")
        rejected = {"status": "rejected", "reason": "NAN_VOXELS", "shape": None, "spacing": None}
        return {**empty, **rejected, "volume": volume, "lost": math.nan}
    array = np.full(SHAPE, fill, dtype=np.int16)
    sha256 = write_node(store, f"{volume}@1", array, attributes={})
    return {
        "volume": volume,
        "status": "stored",
        "reason": "",
        "message": "",
        "node": f"{volume}@1",
        "sha256": sha256,
        "source_sha256": source,
        "shape": list(SHAPE),
        "spacing": [2.0, 1.0, 1.0],
        "hu_state": "hu",
        "lost": lost,
        "facts": json.dumps(facts),
        "intensity": json.dumps(summarize(array)),
    }


def test_counts_of_each_split(catalog, tables):
    splits = measure(catalog, tables)["splits"]
    counts = {
        name: tuple(part[k] for k in ("series", "stored", "rejected", "patients"))
        for name, part in splits.items()
    }
    assert counts == {
        "all": (6, 5, 1, 4),
        "train": (3, 3, 0, 2),
        "tune": (1, 1, 0, 1),
        "valid": (2, 1, 1, 1),
    }
    assert splits["valid"]["reasons"] == {"NAN_VOXELS": 1}
    assert splits["all"]["hu_state"] == {"hu": 5}
    facts = splits["all"]["facts"]
    assert {name: n for name, n in facts.items() if n} == {
        "tilted": 1,
        "interpolated": 1,
        "lossy": 1,
    }


def test_grids_losses_and_intensities(catalog, tables):
    whole = measure(catalog, tables)["splits"]
    assert whole["all"]["source"]["shape"]["n"] == 3
    assert whole["all"]["source"]["shape"]["p50"] == [10, 20, 30]
    assert whole["all"]["source"]["spacing"] == {"n": 0}
    assert whole["all"]["grid"]["spacing"]["max"] == [2, 1, 1]
    lost = whole["all"]["lost"]
    assert lost["n"] == 5
    assert lost["mean"] == pytest.approx(0.42 / 5)
    assert (lost["p50"], lost["max"]) == (0.02, 0.3)
    assert lost["p95"] == pytest.approx(0.1 + 0.8 * 0.2)  # 4 intervals, 3.8 of the way
    assert (lost["over_1_percent"], lost["over_10_percent"]) == (3, 1)
    train = whole["train"]["intensity"]
    assert train["voxels"] == 3 * 120
    assert train["mean"] == pytest.approx(100 / 3)
    assert train["std"] == pytest.approx(math.sqrt(100**2 * 2 / 9))
    assert whole["all"]["intensity"]["min"] == -200


def test_duplicates_across_splits_come_first(catalog, tables):
    assert measure(catalog, tables)["duplicates"] == [
        {"same": "source", "volumes": ["a1", "c1"], "splits": ["train", "tune"]},
        {"same": "voxels", "volumes": ["a1", "b1"], "splits": ["train"]},
    ]


def test_places_of_one_file_are_no_duplicates(catalog, tables):
    found = measure(catalog.assign(item=range(len(catalog))), tables)["duplicates"]
    assert [group["same"] for group in found] == ["voxels"]


def test_disk_is_what_the_groups_take(catalog, tables, tmp_path):
    files = [p for p in tmp_path.rglob("*@1/**/*") if p.is_file()]
    size = sum(p.stat().st_size for p in files)
    disk = measure(catalog, tables)["disk"]
    assert disk["files_per_volume"] == 3  # group, array, voxels
    assert (disk["volumes"], disk["files"], disk["bytes"]) == (5, 15, size)
    assert disk["bytes_per_voxel"] == size / (5 * 120)


def test_the_same_store_gives_the_same_json(catalog, tables):
    first, second = (json.dumps(measure(catalog, order)) for order in (tables, tables[::-1]))
    assert first == second
    assert "NaN" not in first


def test_a_patient_in_two_splits_raises(catalog, tables):
    mixed = catalog.assign(patient=["a", "a", "b", "a", "d", "d"])
    with pytest.raises(DatasetError, match="patient a is in train and in tune"):
        measure(mixed, tables)


def test_tables_that_do_not_fit_the_catalog_are_named(catalog, tables):
    with pytest.raises(StoreError, match="volume c1 is in no status table; run the volumes'"):
        measure(catalog, [tables[0], tables[2]])
    with pytest.raises(StoreError, match="volume a1 is not in the catalog; run the volumes'"):
        measure(catalog.iloc[1:], tables)
    with pytest.raises(StoreError, match=r"0000\.parquet: volume a1 is in another table too"):
        measure(catalog, [*tables, tables[0]])


def test_a_shard_left_behind_is_reported_and_stays(catalog, tables, caplog):
    stale = tables[0].with_name("0007.zarr")
    stale.mkdir()
    with caplog.at_level(logging.WARNING):
        measure(catalog, tables)
    assert f"{stale}: no shard of the catalog; delete it with its status table" in caplog.text
    assert stale.exists()


def test_an_empty_store_has_statistics(catalog, tables):
    rows = pd.concat([pd.read_parquet(t) for t in tables]).assign(status="rejected", reason="X")
    write_table(rows, tables[0])
    found = measure(catalog, tables[:1])
    assert found["splits"]["all"]["lost"] == {"n": 0}
    assert found["splits"]["all"]["intensity"] == {"voxels": 0}
    assert found["disk"] == {"volumes": 0, "files": 0, "bytes": 0}
