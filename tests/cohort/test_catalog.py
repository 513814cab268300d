import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ct3dlib.cohort.catalog import (
    SCHEMA,
    Row,
    arrange,
    read_catalog,
    shard_of,
    to_frame,
    write_catalog,
)
from ct3dlib.cohort.split import Assignments
from ct3dlib.cohort.store import records
from ct3dlib.config import CatalogSpec, Split
from ct3dlib.errors import DatasetError, StoreError

SHARDS: dict[Split, int] = {"train": 3, "tune": 2, "valid": 2}


def _row(volume: str, **values: Any) -> Row:
    base: dict[str, Any] = {
        "dataset": "folder",
        "patient": volume,
        "study": volume,
        "kind": "nifti",
        "sources": (f"a/{volume}.nii.gz",),
        "size": 10,
        "mtime_ns": 5,
        "shape": (9, 5, 6),
    }
    return Row(volume=volume, **{**base, **values})


def _spec(**values: Any) -> CatalogSpec:
    return CatalogSpec(dataset="folder", shards=SHARDS, **values)


def _arrange(rows: list[Row], **values: Any) -> pd.DataFrame:
    return arrange(rows, _spec(**values), given={}, previous=Assignments())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"volume": "a/b"}, "volume 'a/b' is not a safe file name"),
        ({"volume": ".."}, "is not a safe file name"),
        ({"sources": ("../x.nii",)}, r"source '\.\./x\.nii' leaves the raw root"),
        ({"sources": ("/x.nii",)}, "leaves the raw root"),
        ({"sources": ()}, "no sources"),
        ({"labels": (1, 0)}, "2 labels, not 18"),
        ({"problem": "EXCLUDED"}, "a problem needs a code and a message"),
    ],
)
def test_row_refuses_what_later_steps_cannot_use(values: dict[str, Any], message: str) -> None:
    volume = values.pop("volume", "v")
    with pytest.raises(ValueError, match=message):
        _row(volume, **{"sources": ("v.nii",), **values})


def test_frame_has_the_schema_and_plain_values_come_back() -> None:
    full = _row(
        "v",
        spacing=(2.0, 0.8, 0.7),
        slope=1.0,
        intercept=-1024.0,
        metadata='{"A": "1"}',
        labels=tuple([1] + [0] * 17),
        problem="EXCLUDED",
        problem_message="v: listed",
    )
    frame = to_frame([full, _row("w", shape=None)])
    assert list(frame.columns) == SCHEMA.names
    first, second = records(frame)
    assert first["spacing"] == [2.0, 0.8, 0.7]
    assert first["labels"] == [1] + [0] * 17
    assert first["sources"] == ["a/v.nii.gz"]
    assert first["metadata_hash"] == hashlib.sha256(b'{"A": "1"}').hexdigest()
    for column in ("spacing", "shape", "slope", "intercept", "labels", "problem", "regions_truth"):
        assert second[column] is None
    assert second["findings"] == ""


def test_shard_is_a_stable_hash_of_the_volume() -> None:
    digest = hashlib.blake2b(b"train_1_a_1", digest_size=8).hexdigest()
    assert shard_of("train_1_a_1", 7) == int(digest, 16) % 7
    counts = [[shard_of(f"v{i}", 4) for i in range(4000)].count(shard) for shard in range(4)]
    assert min(counts) > 900


def test_arrange_sorts_and_gives_every_row_a_split_and_shard() -> None:
    frame = _arrange([_row(f"v{i}") for i in range(40, 0, -1)])
    assert list(frame["volume"]) == sorted(frame["volume"])
    for row in records(frame):
        assert row["shard"] == shard_of(row["volume"], SHARDS[row["split"]])
    assert set(frame["split"]) == {"train", "tune", "valid"}


def test_arrange_does_not_depend_on_the_order_of_rows() -> None:
    rows = [_row(f"v{i}", patient=f"p{i % 5}") for i in range(20)]
    assert _arrange(rows).to_json() == _arrange(rows[::-1]).to_json()


@pytest.mark.parametrize("seed", range(10))
def test_patients_with_enough_slices_fill_the_splits(seed: int) -> None:
    thin = [_row(f"thin{i}", shape=(2, 5, 6)) for i in range(3)]
    unread = [_row(f"unread{i}", shape=None) for i in range(3)]
    bad = [_row(f"bad{i}", problem="EXCLUDED", problem_message="x") for i in range(3)]
    good = [_row(f"good{i}") for i in range(3)]
    frame = _arrange([*thin, *unread, *bad, *good], seed=seed).set_index("volume")
    assert set(frame.loc[["good0", "good1", "good2"], "split"]) == {"train", "tune", "valid"}


def test_two_origins_of_a_patient_raise() -> None:
    rows = [
        _row("a", patient="p", split="train"),
        _row("b", patient="p", split="valid"),
        _row("c", split="train"),
    ]
    with pytest.raises(DatasetError, match="patient p is in train and in valid; keep one"):
        _arrange(rows)


def test_two_origins_of_a_patient_are_settled_by_the_users_table() -> None:
    rows = [_row("a", patient="p", split="train"), _row("b", patient="p", split="valid")]
    frame = arrange(rows, _spec(), given={"p": "valid"}, previous=Assignments())
    assert list(frame["split"]) == ["valid", "valid"]


def test_an_id_twice_raises() -> None:
    with pytest.raises(DatasetError, match=r"volume v occurs twice, as a/v.nii.gz and b.nii; "):
        _arrange([_row("v"), _row("v", sources=("b.nii",)), _row("w")])


def test_shards_hold_the_catalog_exactly_and_empty_ones_are_there(tmp_path: Path) -> None:
    frame = _arrange([_row("v0"), _row("v1"), _row("v2", spacing=(1.0, 2.0, 3.0))])
    path, shard_dir = tmp_path / "folder.parquet", tmp_path / "shards"
    write_catalog(frame, path, shard_dir=shard_dir, shards=SHARDS)
    files = sorted(p.relative_to(shard_dir).as_posix() for p in shard_dir.rglob("*.*"))
    assert files == [
        *("train/0000.parquet", "train/0001.parquet", "train/0002.parquet"),
        *("tune/0000.parquet", "tune/0001.parquet", "valid/0000.parquet", "valid/0001.parquet"),
    ]
    slices = [read_catalog(shard_dir / file) for file in files]
    assert sorted(len(piece) for piece in slices) == [0, 0, 0, 0, 1, 1, 1]
    whole = [row for piece in slices for row in records(piece)]
    assert sorted(whole, key=lambda row: row["volume"]) == records(read_catalog(path))
    for file, piece in zip(files, slices, strict=True):
        for row in records(piece):
            assert file == f"{row['split']}/{row['shard']:04d}.parquet"


def test_same_catalog_gives_same_bytes_and_stale_shards_go(tmp_path: Path) -> None:
    rows = [_row(f"v{i}") for i in range(9)]
    first, second = tmp_path / "1", tmp_path / "2"
    for out, order in ((first, rows), (second, rows[::-1])):
        more = {**SHARDS, "train": 5}
        write_catalog(_arrange(rows), out / "c.parquet", shard_dir=out / "s", shards=more)
        write_catalog(_arrange(order), out / "c.parquet", shard_dir=out / "s", shards=SHARDS)
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
    assert len(files) == 1 + sum(SHARDS.values())
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)


def test_read_catalog_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.parquet: not a catalog .*run the rule catalog"):
        read_catalog(tmp_path / "none.parquet")
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    with pytest.raises(StoreError, match=r"junk\.parquet: not a catalog"):
        read_catalog(tmp_path / "junk.parquet")
    to_frame([_row("v")]).drop(columns="patient").to_parquet(tmp_path / "old.parquet")
    with pytest.raises(StoreError, match=r"old\.parquet: no column 'patient'"):
        read_catalog(tmp_path / "old.parquet")


def test_metadata_hash_follows_the_metadata() -> None:
    rows = [_row("v", metadata=json.dumps({"ZSpacing": z})) for z in ("1.5", "1.50")]
    assert rows[0].metadata_hash != rows[1].metadata_hash
