"""The store: whole or not there, read back exactly, damage found."""

import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr

from ct3dlib.cohort.hashes import array_sha256
from ct3dlib.cohort.store import (
    StoredArray,
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
from ct3dlib.errors import StoreError


def flip(file: Path, position: int) -> None:
    """Flip a bit of a file."""
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


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


@pytest.mark.parametrize(
    "text", ["", "[]", '{"node_type": "group"}'], ids=["empty", "list", "bare"]
)
def test_a_store_whose_metadata_are_damaged_names_the_way_out(store, text):
    (store / "zarr.json").write_text(text)
    match = (
        r"0000\.zarr/zarr\.json: cannot be read .*delete .*0000\.zarr and .*0000\.parquet and run"
    )
    with pytest.raises(StoreError, match=match):
        create_store(store, "volumes")


@pytest.mark.parametrize(
    ("find", "replace", "match"),
    [
        (
            '"affine"',
            '"affinity"',
            r"a@1/zarr\.json: edited since it was written; delete .*0000\.par",
        ),
        ("1.0", "1.5", r"a@1/zarr\.json: edited since it was written; delete .*and run again"),
        (
            '"attributes_sha256"',
            '"x"',
            r"zarr\.json: damaged or out of reach, KeyError.*; delete .*",
        ),
        ("{", "", r"a@1/zarr\.json: damaged or out of reach, JSONDecodeError.*; delete .*0000\.p"),
    ],
    ids=["name", "number", "no hash", "no json"],
)
def test_edited_attributes_are_not_used(store, find, replace, match):
    file = store / "a@1/zarr.json"
    file.write_text(file.read_text().replace(find, replace, 1))
    (volume,) = stored_volumes([store.with_suffix(".parquet")])
    with pytest.raises(StoreError, match=match):
        _ = volume.affine


def test_a_damaged_volume_is_no_source_of_what_is_kept(store, array):
    (volume,) = stored_volumes([store.with_suffix(".parquet")])
    assert np.array_equal(volume.read_checked(), array)
    flip(store / "a@1/0/c.0.0.0", 1000)
    (volume,) = stored_volumes([store.with_suffix(".parquet")])
    with pytest.raises(
        StoreError, match=r"a@1: .*; delete .*0000\.parquet and run again: it is made"
    ):
        volume.read_checked()


def test_a_volume_of_another_table_is_no_source_either(store, array):
    table = store.with_suffix(".parquet")
    write_table(read_status(table).assign(sha256="0"), table)
    (volume,) = stored_volumes([table])
    with pytest.raises(StoreError, match="a@1: not what its table says"):
        volume.read_checked()
    assert np.array_equal(volume.read(), array)


def test_a_damaged_chunk_names_the_way_out(store):
    file = store / "a@1/0/c.0.0.0"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(
        StoreError, match=r"a@1: damaged or out of reach, .*; delete .*0000\.parquet"
    ):
        StoredArray(store, "a@1").read()


@pytest.mark.parametrize("place", [0.01, 0.3, 0.6, 0.99])
def test_no_flipped_bit_of_tokens_is_read(tmp_path, place):
    store = tmp_path / "0000.zarr"
    create_store(store, "tokens")
    tokens = np.random.default_rng(0).integers(0, 256, 1 << 17).astype(np.uint8)
    write_node(store, "a@1", tokens, attributes={})
    file = store / "a@1/0/c.0"
    flip(file, int(place * file.stat().st_size))
    with pytest.raises(StoreError, match="a@1: damaged or out of reach"):
        StoredArray(store, "a@1").read()


def test_prune_keeps_only_what_the_table_names(store, array):
    write_node(store, "old@1", array, attributes={})
    prune(store, {"a@1"})
    assert not has_node(store, "old@1")
    assert has_node(store, "a@1")


@pytest.mark.parametrize(
    "values",
    [
        np.full((3, 4, 5), -1024, np.int16),
        np.zeros((40, 70, 70), np.uint8),
        np.zeros(9, np.uint8),
    ],
    ids=["air", "no regions", "bytes"],
)
def test_an_array_of_its_fill_value_is_told_from_a_lost_one(tmp_path, values):
    store = tmp_path / "0000.zarr"
    create_store(store, "volumes")
    write_node(store, "a@1", values, attributes={})
    assert np.array_equal(StoredArray(store, "a@1").read(), values)
    (file,) = (store / "a@1/0").glob("c*")
    file.unlink()
    with pytest.raises(StoreError, match=r"a@1/0: its values are gone; delete .*/0000\.parquet"):
        StoredArray(store, "a@1").read()


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
