"""What every reader of a raw data set keeps."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from ct3dlib.cohort.catalog import SCHEMA, read_catalog, to_frame, write_catalog
from ct3dlib.cohort.shard import store_shard
from ct3dlib.cohort.split import Assignments, drawn_with
from ct3dlib.config import CatalogSpec, RecipeSpec
from ct3dlib.datasets import Dataset, build_catalog, read_dataset
from tests.datasets.trees import (
    cut_voxels,
    write_brats,
    write_brats_patient,
    write_ct_rate,
    write_dicom,
    write_folder,
    write_medmnist3d,
    write_nifti,
    write_omniabnorm,
    write_omniabnorm_single,
    write_picture,
)

ENDINGS = (".nii", ".nii.gz", ".dcm", ".npz", ".jpg", ".jpeg")
STACK, SINGLE = (9, 5, 6), (1, 5, 6)


class Tree(NamedTuple):
    """A raw root as a data set lays it out.

    Args:
        name: Reader.
        root: The raw root.
        shape: Of every volume in it.
        add: Adds volumes of new patients and returns how many.
    """

    name: Dataset
    root: Path
    shape: tuple[int, int, int]
    add: Callable[[Path], int]


def _v1(root: Path) -> Tree:
    write_ct_rate(root / "dataset")
    return Tree("ct_rate", root, STACK, lambda root: _add_scans(root / "dataset/train"))


def _v2(root: Path) -> Tree:
    write_ct_rate(root / "dataset", fixed=True)
    return Tree("ct_rate", root, STACK, lambda root: _add_scans(root / "dataset/train_fixed"))


def _dataset_itself(root: Path) -> Tree:
    write_ct_rate(root)
    return Tree("ct_rate", root, STACK, lambda root: _add_scans(root / "train"))


def _folder(root: Path) -> Tree:
    write_folder(root)
    return Tree("folder", root, STACK, lambda root: _add_scans(root / "rate"))


def _brats(root: Path) -> Tree:
    write_brats(root)
    return Tree("brats", root, STACK, _add_brats)


def _medmnist3d(root: Path) -> Tree:
    write_medmnist3d(root, "nodulemnist3d_64")
    write_medmnist3d(root)
    return Tree("medmnist3d", root, STACK, _add_medmnist3d)


def _omniabnorm(root: Path) -> Tree:
    write_omniabnorm(root)
    return Tree("omniabnorm", root, STACK, _add_omniabnorm)


def _omniabnorm_single(root: Path) -> Tree:
    write_omniabnorm_single(root)
    return Tree("omniabnorm", root, SINGLE, _add_omniabnorm)


def _pictures(root: Path) -> Tree:
    for number in range(6):
        write_picture(root / f"p{number}/a.jpg")
        write_picture(root / f"p{number}/b.jpeg")
    return Tree("pictures", root, SINGLE, _add_pictures)


def _add_pictures(root: Path) -> int:
    for number in range(10, 20):
        write_picture(root / f"p{number}/a.jpg")
    return 10


def _add_scans(folder: Path) -> int:
    for number in range(10, 20):
        write_nifti(folder / f"train_{number}_a_1.nii.gz", np.diag([-1.0, -1.0, 2.0, 1.0]))
    write_dicom(folder / "train_20_a_1", patient="new", uid="1.9.9")
    return 11


def _add_brats(root: Path) -> int:
    write_brats_patient(root / "2021/BraTS2021_00007")
    write_brats_patient(root / "2021/BraTS2021_00008", ("t1",))
    return 5


def _add_medmnist3d(root: Path) -> int:
    write_medmnist3d(root, "vesselmnist3d")
    return 25


def _add_omniabnorm(root: Path) -> int:
    write_omniabnorm(root, ("20_1_0_1", "20_1_0_2", "21_1_0_1"))
    return 3


TREES = {
    "ct_rate_v1": _v1,
    "ct_rate_v2": _v2,
    "ct_rate_itself": _dataset_itself,
    "folder": _folder,
    "brats": _brats,
    "medmnist3d": _medmnist3d,
    "omniabnorm": _omniabnorm,
    "omniabnorm_single": _omniabnorm_single,
    "pictures": _pictures,
}


@pytest.fixture(params=list(TREES))
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Tree:
    return TREES[request.param](tmp_path)


def _scans(root: Path) -> set[str]:
    places = {path.relative_to(root).as_posix() for path in root.rglob("*")}
    # Masks are of the row of what they are drawn in.
    return {
        place
        for place in places
        if place.endswith(ENDINGS) and not re.search(r"(^|[/_-])(masks?/|mask\.|seg\.)", place)
    }


def _raw(root: Path) -> list[Path]:
    return [root / place for place in sorted(_scans(root)) if not place.endswith(".dcm")]


def _spec(name: Dataset, seed: int = 0) -> CatalogSpec:
    return CatalogSpec(dataset=name, shards={"train": 3, "tune": 2, "valid": 2}, seed=seed)


def test_every_file_found_is_in_exactly_one_row(tree: Tree) -> None:
    name, root, _, _ = tree
    rows = list(read_dataset(name, root))
    # Of a file with many arrays of many volumes, an item of an array is in one row.
    members = [json.loads(row.metadata).get("member") for row in rows]
    places = zip(rows, members, strict=True)
    items = [(source, member, row.item) for row, member in places for source in row.sources]
    assert len(items) == len(set(items))
    assert {source for source, _, _ in items} == _scans(root)
    assert all(row.problem is None for row in rows)


def test_ids_are_unique_safe_and_the_same_again(tree: Tree) -> None:
    name, root, _, _ = tree
    rows = list(read_dataset(name, root))
    ids = [row.volume for row in rows]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", volume) for volume in ids)
    assert rows == list(read_dataset(name, root))


def test_unfinished_and_hidden_files_are_no_rows(tree: Tree) -> None:
    name, root, _, _ = tree
    before = list(read_dataset(name, root))
    scan = _raw(root)[0]
    for other in (f".{scan.name}", f"{scan.name}.partial", f"{scan.name}.lock"):
        scan.with_name(other).write_bytes(scan.read_bytes())
    assert list(read_dataset(name, root)) == before


def test_size_and_mtime_are_those_of_the_sources(tree: Tree) -> None:
    name, root, _, _ = tree
    for row in read_dataset(name, root):
        states = [(root / source).stat() for source in row.sources]
        assert row.size == sum(state.st_size for state in states)
        assert row.mtime_ns == sum(state.st_mtime_ns for state in states) % 2**63


def test_a_damaged_file_is_a_row_and_no_error(tree: Tree) -> None:
    name, root, _, _ = tree
    before = {source for row in read_dataset(name, root) for source in row.sources}
    for number, scan in enumerate(_raw(root)):
        scan.write_bytes((b"", b"\x1f\x8b\x08\x00 broken", b"no scan " * 100)[number % 3])
    rows = list(read_dataset(name, root))
    assert {source for row in rows for source in row.sources} == before
    assert all(row.shape is None for row in rows if row.kind != "dicom")


def test_headers_are_read_without_voxels(tree: Tree) -> None:
    name, root, shape, _ = tree
    before = list(read_dataset(name, root))
    assert {row.shape for row in before} == {shape}
    for scan in _raw(root):
        cut_voxels(scan)
    after = list(read_dataset(name, root))
    assert [(row.volume, row.spacing, row.shape, row.problem) for row in after] == [
        (row.volume, row.spacing, row.shape, row.problem) for row in before
    ]


def test_masks_are_files_and_domains_fit_the_kind(tree: Tree) -> None:
    name, root, _, _ = tree
    domains = {"dicom": {"hu"}, "nifti": {"hu", "mr"}, "pictures": {"window8"}, "npz": {"uint8"}}
    for row in read_dataset(name, root):
        assert row.domain in domains[row.kind]
        assert row.dataset == name
        assert row.lesion_mask is None or (root / row.lesion_mask).is_file()
        assert isinstance(json.loads(row.metadata), dict)


def test_volumes_without_hounsfield_units_are_stored(tree: Tree, tmp_path: Path) -> None:
    name, root, shape, _ = tree
    rows = [row for row in read_dataset(name, root) if row.domain != "hu"]
    frame = to_frame([replace(row, split="train", shard=0) for row in rows])
    recipes: dict[str, Any] = {
        "mr": {"percentiles": (0.5, 99.5)},
        "window8": {"window": (0, 255)},
        "uint8": {"window": (0, 255)},
    }
    for domain, mine in frame.groupby("domain"):
        recipe = RecipeSpec(domain=domain, min_slices=1, shape=shape, **recipes[str(domain)])
        status = tmp_path / f"store/{domain}.parquet"
        done = store_shard(mine, root, recipe=recipe, code="c", status=status)
        assert set(done["message"]) == {""}
        assert {tuple(shape) for shape in done["shape"]} == {shape}


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_in_two_splits_and_none_is_empty(tree: Tree, seed: int) -> None:
    name, root, _, _ = tree
    frame = build_catalog(root, _spec(name, seed))
    assert frame.groupby("patient")["split"].nunique().max() == 1
    assert set(frame["split"]) == {"train", "tune", "valid"}
    assert list(frame["volume"]) == sorted(frame["volume"])


def test_adding_volumes_moves_no_other(tree: Tree) -> None:
    name, root, _, _ = tree
    before = build_catalog(root, _spec(name)).set_index("volume")
    number = tree.add(root)
    splits = dict(zip(before["patient"], before["split"], strict=True))
    previous = Assignments(splits, drawn_with(_spec(name)))
    after = build_catalog(root, _spec(name), previous=previous).set_index("volume")
    assert len(after) == len(before) + number
    columns = ["patient", "split", "shard", "sources"]
    same = after.loc[before.index, columns].astype(str) == before[columns].astype(str)
    assert same.all(axis=None)


def test_catalog_reads_back_as_it_was_written(tree: Tree, tmp_path: Path) -> None:
    name, root, _, _ = tree
    frame = build_catalog(root, _spec(name))
    out = tmp_path / "out"
    shards = _spec(name).shards
    write_catalog(frame, out / "all.parquet", shard_dir=out / "shards", shards=shards)
    back = read_catalog(out / "all.parquet")
    assert list(back.columns) == SCHEMA.names
    assert back.to_json() == frame.to_json()
