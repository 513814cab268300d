"""What every reader of a raw data set keeps."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ct3dlib.cohort.catalog import SCHEMA, read_catalog, write_catalog
from ct3dlib.config import CatalogSpec
from ct3dlib.datasets import Dataset, build_catalog, read_dataset
from tests.datasets.trees import write_ct_rate, write_dicom, write_folder, write_nifti

Tree = tuple[Dataset, Path]


def _v1(root: Path) -> Dataset:
    write_ct_rate(root / "dataset")
    return "ct_rate"


def _v2(root: Path) -> Dataset:
    write_ct_rate(root / "dataset", fixed=True)
    return "ct_rate"


def _dataset_itself(root: Path) -> Dataset:
    write_ct_rate(root)
    return "ct_rate"


def _folder(root: Path) -> Dataset:
    write_folder(root)
    return "folder"


@pytest.fixture(params=[_v1, _v2, _dataset_itself, _folder])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Tree:
    write: Callable[[Path], Dataset] = request.param
    return write(tmp_path), tmp_path


def _scans(root: Path) -> set[str]:
    return {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.name.endswith((".nii", ".nii.gz", ".dcm"))
    }


def _spec(name: Dataset, seed: int = 0) -> CatalogSpec:
    return CatalogSpec(dataset=name, shards={"train": 3, "tune": 2, "valid": 2}, seed=seed)


def test_every_file_found_is_in_exactly_one_row(tree: Tree) -> None:
    name, root = tree
    rows = list(read_dataset(name, root))
    sources = [source for row in rows for source in row.sources]
    assert len(sources) == len(set(sources))
    assert set(sources) == _scans(root)
    assert all(row.problem is None for row in rows)


def test_ids_are_unique_safe_and_the_same_again(tree: Tree) -> None:
    name, root = tree
    rows = list(read_dataset(name, root))
    ids = [row.volume for row in rows]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", volume) for volume in ids)
    assert rows == list(read_dataset(name, root))


def test_unfinished_and_hidden_files_are_no_rows(tree: Tree) -> None:
    name, root = tree
    before = list(read_dataset(name, root))
    scan = next(path for path in root.rglob("*.nii*"))
    for other in (f".{scan.name}", f"{scan.name}.partial", f"{scan.name}.lock"):
        scan.with_name(other).write_bytes(scan.read_bytes())
    assert list(read_dataset(name, root)) == before


def test_size_and_mtime_are_those_of_the_sources(tree: Tree) -> None:
    name, root = tree
    for row in read_dataset(name, root):
        states = [(root / source).stat() for source in row.sources]
        assert row.size == sum(state.st_size for state in states)
        assert row.mtime_ns == max(state.st_mtime_ns for state in states)


def test_a_damaged_file_is_a_row_and_no_error(tree: Tree) -> None:
    name, root = tree
    before = {row.volume for row in read_dataset(name, root)}
    for number, scan in enumerate(sorted(root.rglob("*.nii*"))):
        scan.write_bytes((b"", b"\x1f\x8b\x08\x00 broken", b"no scan " * 100)[number % 3])
    rows = list(read_dataset(name, root))
    assert {row.volume for row in rows} == before
    assert all(row.shape is None for row in rows if row.kind == "nifti")


def test_headers_are_read_without_voxels(tree: Tree) -> None:
    name, root = tree
    before = {row.volume: (row.spacing, row.shape) for row in read_dataset(name, root)}
    assert {shape for _, shape in before.values()} == {(9, 5, 6)}
    for scan in root.rglob("*.nii"):
        scan.write_bytes(scan.read_bytes()[:352])
    for scan in root.rglob("*.nii.gz"):
        # Without the gzip's last bytes (checksum and length) a decoder of voxels would raise.
        scan.write_bytes(scan.read_bytes()[:-8])
    after = {row.volume: (row.spacing, row.shape) for row in read_dataset(name, root)}
    assert after == before


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_in_two_splits_and_none_is_empty(tree: Tree, seed: int) -> None:
    name, root = tree
    frame = build_catalog(root, _spec(name, seed))
    assert frame.groupby("patient")["split"].nunique().max() == 1
    assert set(frame["split"]) == {"train", "tune", "valid"}
    assert list(frame["volume"]) == sorted(frame["volume"])


def test_adding_volumes_moves_no_other(tree: Tree) -> None:
    name, root = tree
    before = build_catalog(root, _spec(name)).set_index("volume")
    places = {source.rpartition("/")[0] for source in before["sources"].str[0]}
    folder = root / min(place for place in places if "LIDC" not in place)
    for number in range(10, 20):
        write_nifti(folder / f"train_{number}_a_1.nii.gz", np.diag([-1.0, -1.0, 2.0, 1.0]))
    write_dicom(folder / "train_20_a_1", patient="new", uid="1.9.9")
    previous = dict(zip(before["patient"], before["split"], strict=True))
    after = build_catalog(root, _spec(name), previous=previous).set_index("volume")
    assert len(after) == len(before) + 11
    columns = ["patient", "split", "shard", "sources"]
    same = after.loc[before.index, columns].astype(str) == before[columns].astype(str)
    assert same.all(axis=None)


def test_catalog_reads_back_as_it_was_written(tree: Tree, tmp_path: Path) -> None:
    name, root = tree
    frame = build_catalog(root, _spec(name))
    out = tmp_path / "out"
    shards = _spec(name).shards
    write_catalog(frame, out / "all.parquet", shard_dir=out / "shards", shards=shards)
    back = read_catalog(out / "all.parquet")
    assert list(back.columns) == SCHEMA.names
    assert back.to_json() == frame.to_json()
