"""The store: whole or not there, read back exactly, damage found."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest
import zarr

from ct3dlib.cohort.store import (
    array_sha256,
    create_store,
    has_node,
    key_of,
    prune,
    read_status,
    records,
    stored_volumes,
    write_node,
    write_table,
)
from ct3dlib.cohort.verify import verify_table
from ct3dlib.errors import StoreError


@pytest.fixture
def array():
    return np.random.default_rng(0).integers(-1024, 3071, (33, 70, 65), dtype=np.int16)


@pytest.fixture
def store(tmp_path, array):
    path = tmp_path / "0000.zarr"
    create_store(path, "volumes")
    sha256 = write_node(path, "a@1", array, attributes={"ct3d": {"affine": np.eye(4).tolist()}})
    row = {"volume": "a", "status": "stored", "reason": "", "message": "", "node": "a@1"}
    frame = pd.DataFrame([{**row, "sha256": sha256, "shape": list(array.shape)}])
    write_table(frame, tmp_path / "0000.parquet")
    return path


def test_what_was_written_is_read_back(store, array):
    (volume,) = stored_volumes([store.with_suffix(".parquet")])
    assert np.array_equal(volume.read(), array)
    assert np.array_equal(volume.read((3, 5, 7), (9, 66, 20)), array[3:9, 5:66, 7:20])
    assert volume.shape == array.shape
    assert volume.sha256 == array_sha256(array)


def test_plain_zarr_reads_the_store(store, array):
    group = zarr.open_group(store, mode="r")
    assert np.array_equal(group["a@1/0"][...], array)
    assert sorted(p.name for p in (store / "a@1/0").iterdir()) == ["c.0.0.0", "zarr.json"]


def test_a_reader_travels_to_another_process_without_its_handle(store, array):
    (volume,) = stored_volumes([store.with_suffix(".parquet")])
    volume.read()
    assert np.array_equal(pickle.loads(pickle.dumps(volume)).read(), array)


def test_bytes_on_disk_are_the_same_every_time(tmp_path, array):
    files = []
    for name in ("x", "y"):
        path = tmp_path / name
        create_store(path, "volumes")
        write_node(path, "a@1", array, attributes={})
        files.append((path / "a@1/0/c.0.0.0").read_bytes())
    assert files[0] == files[1]


def test_what_a_killed_writer_left_is_never_visible_and_cleared(store):
    (store / "b@1.partial").mkdir()
    assert not has_node(store, "b@1")
    create_store(store, "volumes")
    assert not (store / "b@1.partial").exists()
    assert has_node(store, "a@1")


def test_another_kind_of_store_is_refused(store):
    with pytest.raises(StoreError, match=r"holds .*volumes.*wanted .*tokens.*move it away"):
        create_store(store, "tokens")


def test_prune_keeps_only_what_the_table_names(store, array):
    write_node(store, "old@1", array, attributes={})
    prune(store, {"a@1"})
    assert not has_node(store, "old@1")
    assert has_node(store, "a@1")


def test_verify_finds_a_flipped_byte(store):
    table = store.with_suffix(".parquet")
    assert not list(verify_table(table))
    file = store / "a@1/0/c.0.0.0"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    (finding,) = verify_table(table)
    assert finding.volume == "a"
    assert "hash differs" in finding.problem or "cannot be read" in finding.problem


def test_verify_finds_a_missing_volume_a_wrong_shape_and_a_stray(store):
    table = store.with_suffix(".parquet")
    frame = read_status(table)
    write_table(frame.assign(shape=[[1, 2, 3]]), table)
    assert [f.problem for f in verify_table(table)] == [
        "has shape [33, 70, 65], the table says [1, 2, 3]"
    ]
    (store / "a@1").rename(store / "b@1")
    problems = [f.problem for f in verify_table(table)]
    assert "cannot be read" in problems[0]
    assert problems[1] == "is in the store but not in the table"


def test_a_table_that_is_not_one_is_named(tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises(StoreError, match=r"t\.parquet: not a status table"):
        read_status(path)
    pd.DataFrame({"x": [1]}).to_parquet(path)
    with pytest.raises(StoreError, match="no column 'volume'"):
        read_status(path)


def test_records_are_plain_values(tmp_path):
    frame = pd.DataFrame({"a": [1.5, None], "b": [[1, 2], None], "c": ["x", None]})
    frame.to_parquet(tmp_path / "t.parquet")
    rows = records(pd.read_parquet(tmp_path / "t.parquet"))
    assert rows == [{"a": 1.5, "b": [1, 2], "c": "x"}, {"a": None, "b": None, "c": None}]
    assert json.dumps(rows)


def test_key_depends_on_every_part():
    assert key_of("a", 1) == key_of("a", 1) != key_of("a", 2)
