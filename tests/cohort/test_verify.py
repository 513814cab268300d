"""What `ct3d verify` finds, and where it looks."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ct3dlib.cohort.location import Location, location
from ct3dlib.cohort.store import create_store, read_status, write_node, write_table
from ct3dlib.cohort.verify import find_tables, verify_layout, verify_table
from ct3dlib.errors import StoreError


@pytest.fixture
def table(store) -> Path:
    """Return the status table of a store of one volume, `a`."""
    return store.with_suffix(".parquet")


def problems(table: Location) -> list[str]:
    """Return what is wrong as `VOLUME PROBLEM`."""
    return [f"{finding.volume} {finding.problem}" for finding in verify_table(table)]


def edit(file: Path, find: str, replace: str) -> None:
    """Replace a text in a file."""
    text = file.read_text()
    assert find in text
    file.write_text(text.replace(find, replace, 1))


def test_nothing_is_found_in_a_whole_store(table):
    assert problems(table) == []
    assert list(verify_layout([table])) == []


def test_a_flipped_byte(table, store):
    file = store / "a@1/0/c.0.0.0"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    (found,) = problems(table)
    assert re.match(
        r"a is damaged: .*; delete .*/0000\.parquet and run again: it is made anew", found
    )


@pytest.mark.parametrize(
    ("find", "replace"),
    [("1.0", "1.25"), ('"ome": "x"', '"ome": "y"'), ('"sha256": "', '"sha256": "0')],
    ids=["affine", "ome", "hash"],
)
def test_edited_attributes(tmp_path, find, replace):
    store = tmp_path / "0000.zarr"
    create_store(store, "volumes")
    array = np.zeros((2, 3, 4), np.uint8)
    attributes = {"ome": "x", "ct3d": {"affine": np.eye(4).tolist()}}
    row = {"sha256": write_node(store, "a@1", array, attributes=attributes), "shape": [2, 3, 4]}
    row |= {"volume": "a", "status": "stored", "reason": "", "message": "", "node": "a@1"}
    write_table(pd.DataFrame([row]), tmp_path / "0000.parquet")
    assert problems(tmp_path / "0000.parquet") == []
    edit(store / "a@1/zarr.json", find, replace)
    (found,) = problems(tmp_path / "0000.parquet")
    assert "a@1/zarr.json: edited since it was written; delete " in found


def test_a_missing_volume_a_wrong_shape_a_wrong_hash_and_a_stray(table, store):
    frame = read_status(table)
    write_table(frame.assign(shape=[[1, 2, 3]]), table)
    assert problems(table) == ["a has shape [33, 70, 65], the table says [1, 2, 3]"]
    write_table(frame.drop(columns="shape"), table)
    assert problems(table) == ["a has shape [33, 70, 65], the table says None"]
    write_table(frame.assign(sha256="0"), table)
    (found,) = problems(table)
    assert found.startswith("a holds other values than the table says")
    write_table(pd.concat([frame, frame]), table)
    assert problems(table) == ["a is in the table twice"]
    write_table(frame, table)
    (store / "a@1").rename(store / "b@1")
    missing, stray = problems(table)
    assert re.match(r"a is damaged: .*/a@1/0: not in the store; delete .*parquet", missing)
    assert stray == "b@1 is in the store but not in the table"


def test_tokens_cut_short_or_of_another_tokenizer(tmp_path):
    create_store(tmp_path / "0000.zarr", "tokens")
    payload = np.array([255, 1], np.uint8)
    ct3d = {"bits": 4, "shape": [1, 1, 3], "tokenizer_sha256": "t"}
    sha256 = write_node(tmp_path / "0000.zarr", "a@1", payload, attributes={"ct3d": ct3d})
    row = {"volume": "a", "status": "encoded", "reason": "", "message": "", "node": "a@1"}
    frame = pd.DataFrame([{**row, "sha256": sha256, "shape": [1, 1, 3]}])
    write_table(frame, tmp_path / "0000.parquet")
    assert [f.problem for f in verify_table(tmp_path / "0000.parquet", {"other"})] == [
        "a packed array ends in bits that are not 0; encode the volume again",
        "is stale: encoded by another tokenizer",
    ]


def test_a_table_that_cannot_be_read_does_not_end_the_rest(table, tmp_path):
    (tmp_path / "0001.parquet").touch()
    tables = find_tables(tmp_path)
    assert [t.name for t in tables] == ["0000.parquet", "0001.parquet"]
    assert problems(tables[0]) == []
    (found,) = problems(tables[1])
    assert re.match(r"0001\.zarr cannot be verified: .*0001\.parquet: not a status table", found)
    assert list(verify_layout(tables)) == []


def test_a_store_without_a_table_is_found_below_a_folder(table, store, tmp_path):
    shutil.copytree(store, tmp_path / "data/regions/train/0003.zarr")
    tables = find_tables(tmp_path)
    assert [t.name for t in tables] == ["0000.parquet", "0003.parquet"]
    (found,) = problems(tables[1])
    assert re.match(r"0003\.zarr is a store without a status table; run its rule .*delete", found)
    table.unlink()
    assert [t.name for t in find_tables(tmp_path)] == ["0000.parquet", "0003.parquet"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "cannot be read"),
        ('{"attributes": {"ct3d": {"format_version": 9}}}', "states .*wanted"),
    ],
    ids=["empty", "version"],
)
def test_the_metadata_of_the_store_itself(table, store, text, match):
    (store / "zarr.json").write_text(text)
    (found,) = problems(table)
    assert re.search(rf"0000\.zarr .*{match}", found)


def test_a_table_alone_is_held_against_its_store_only(table, store):
    shutil.copytree(store, store.with_name("0001.zarr"))
    assert find_tables(table) == [table]
    assert find_tables(store) == [table]
    assert problems(table) == []


def test_a_joined_table_stands_for_the_shards_it_names(table, tmp_path):
    frame = read_status(table)
    joined = pd.concat([frame.assign(shard=1), frame.assign(shard=0), frame.assign(shard=1)])
    write_table(joined, tmp_path / "valid.parquet")
    shards = [tmp_path / "valid/0000.parquet", tmp_path / "valid/0001.parquet"]
    assert find_tables(tmp_path / "valid.parquet") == shards
    url = location(f"memory://{tmp_path}/valid.parquet")
    assert [str(t) for t in find_tables(url)] == [str(url)]  # nothing there: found unreadable
    assert "cannot be verified" in problems(url)[0]
    assert find_tables(tmp_path) == [table]  # in a folder the shards are found by themselves


def test_a_place_that_holds_nothing_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"nope: no such file or folder; give data/"):
        find_tables(tmp_path / "nope")
    with pytest.raises(StoreError, match=r"no status table beside a store here or below"):
        find_tables(tmp_path)
    pd.DataFrame({"volume": ["a"]}).to_parquet(tmp_path / "folder.parquet")
    with pytest.raises(StoreError, match=r"folder\.parquet: no status table beside a store"):
        find_tables(tmp_path / "folder.parquet")
    (tmp_path / "valid.done").touch()
    with pytest.raises(StoreError, match=r"valid\.done: not a status table; give one, its store"):
        find_tables(tmp_path / "valid.done")


def test_what_a_smaller_number_of_shards_left_behind_is_found(table, store):
    stale = store.with_name("0001.parquet")
    write_table(read_status(table), stale)
    shutil.copytree(store, store.with_name("0001.zarr"))
    (finding,) = verify_layout(find_tables(store.parent))
    assert (finding.table, finding.volume) == (stale, "0001.parquet")
    wanted = (
        r"holds 1 volumes that are in .*/0000\.parquet too \(a, \.\.\.\); .*no longer in catalog"
    )
    assert re.match(wanted, finding.problem)


def test_leftovers_are_found_from_inside_the_folder_too(table, store, monkeypatch):
    write_table(read_status(table), store.with_name("0001.parquet"))
    monkeypatch.chdir(store.parent)
    (finding,) = verify_layout(find_tables(Path()))
    assert finding.table == Path("0001.parquet")


def test_tables_of_different_recipes_may_hold_the_same_volume(table, tmp_path):
    other = tmp_path / "other/train/0000.parquet"
    write_table(read_status(table), other)
    assert list(verify_layout([table, other])) == []
