import json
from pathlib import Path

import numpy as np
import pytest

from ct3dlib.cohort.catalog import Row
from ct3dlib.cohort.labels import label_names, label_vectors
from ct3dlib.cohort.shard import store_shard
from ct3dlib.cohort.split import Assignments
from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import CatalogSpec, RecipeSpec
from ct3dlib.datasets import build_catalog, read_dataset
from ct3dlib.datasets.medmnist3d import CLASSES
from ct3dlib.errors import DatasetError
from ct3dlib.training.items import WholeItems
from tests.datasets.trees import write_medmnist3d


def _rows(root: Path) -> dict[str, Row]:
    rows = list(read_dataset("medmnist3d", root))
    by_id = {row.volume: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


def _write(root: Path, **arrays: np.ndarray) -> None:
    """Write adrenalmnist3d with 2 volumes a split, arrays replaced by name."""
    parts = ("train", "val", "test")
    images = {f"{part}_images": np.zeros((2, 3, 4, 5), np.uint8) for part in parts}
    labels = {f"{part}_labels": np.array([[0], [1]], np.uint8) for part in parts}
    np.savez_compressed(root / "adrenalmnist3d.npz", **{**images, **labels, **arrays})


def _drop(root: Path, name: str) -> None:
    """Write adrenalmnist3d without one of its arrays."""
    _write(root)
    with np.load(root / "adrenalmnist3d.npz") as arrays:
        kept = {key: arrays[key] for key in arrays if key != name}
    np.savez_compressed(root / "adrenalmnist3d.npz", **kept)


def test_every_volume_is_a_row_with_its_class(tmp_path: Path) -> None:
    write_medmnist3d(tmp_path, "fracturemnist3d_64")
    rows = _rows(tmp_path)
    assert len(rows) == 25
    row = rows["fracturemnist3d_64_val_00001"]
    assert (row.kind, row.domain, row.item, row.split) == ("npz", "uint8", 1, "tune")
    assert row.label == "nondisplaced rib fracture"
    assert json.loads(row.metadata) == {
        "flag": "fracturemnist3d",
        "label": 1,
        "member": "val_images",
    }
    assert (row.shape, row.spacing) == ((9, 5, 6), None)
    assert row.sources == ("fracturemnist3d_64.npz",)
    assert row.patient == row.study == "fracturemnist3d_val_00001"


def test_a_class_of_one_set_is_a_class_of_no_other() -> None:
    names = [name for classes in CLASSES.values() for name in classes]
    assert len(set(names)) == len(names) == 22


def test_sets_beside_each_other_share_a_table_of_labels(tmp_path: Path) -> None:
    write_medmnist3d(tmp_path)
    write_medmnist3d(tmp_path, "nodulemnist3d")
    spec = CatalogSpec(dataset="medmnist3d", shards={"train": 1, "tune": 1, "valid": 1})
    frame = build_catalog(tmp_path, spec)
    assert label_names(frame) == ("benign", "kidney-right", "liver", "malignant")
    vectors = label_vectors(frame)  # labels 0 and 1 of either set
    assert vectors["organmnist3d_train_00000"] == [0, 0, 1, 0]
    assert vectors["organmnist3d_train_00001"] == [0, 1, 0, 0]
    assert vectors["nodulemnist3d_train_00000"] == [1, 0, 0, 0]
    assert vectors["nodulemnist3d_train_00001"] == [0, 0, 0, 1]


def test_bytes_become_the_whole_range_that_a_model_sees(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(1, 4, 8, 8)
    _write(tmp_path, train_images=grey, train_labels=np.zeros((1, 1), np.uint8))
    spec = CatalogSpec(dataset="medmnist3d", shards={"train": 1, "tune": 1, "valid": 1})
    frame = build_catalog(tmp_path, spec)
    recipe = RecipeSpec(domain="uint8", min_slices=1)
    status = tmp_path / "store/0000.parquet"
    store_shard(frame.query("split == 'train'"), tmp_path, recipe=recipe, code="", status=status)
    items = WholeItems(stored_volumes([status]), window=recipe.window, range=recipe.range)
    seen = items.item(0, np.random.default_rng(0))["volume"].numpy()
    np.testing.assert_allclose(seen, grey / 127.5 - 1, atol=1e-6)
    assert (seen.min(), seen.max()) == (-1, 1)


def test_classes_are_those_of_the_published_tables() -> None:
    numbers = {name: len(classes) for name, classes in CLASSES.items()}
    assert numbers == {
        "organmnist3d": 11,
        "nodulemnist3d": 2,
        "adrenalmnist3d": 2,
        "fracturemnist3d": 3,
        "vesselmnist3d": 2,
        "synapsemnist3d": 2,
    }
    assert CLASSES["organmnist3d"][6] == "heart"
    assert CLASSES["organmnist3d"][10] == "pancreas"


@pytest.mark.parametrize("seed", range(10))
def test_the_published_splits_are_never_drawn_anew(tmp_path: Path, seed: int) -> None:
    write_medmnist3d(tmp_path)
    spec = CatalogSpec(
        dataset="medmnist3d",
        tune=0.4,
        valid=0.4,
        shards={"train": 2, "tune": 1, "valid": 1},
        seed=seed,
    )
    drawn = {"seed": -1, "tune": 0.2, "valid": 0.2}
    previous = Assignments({"organmnist3d_train_00000": "valid"}, drawn)
    frame = build_catalog(tmp_path, spec, previous=previous)
    stated = frame["volume"].str.split("_").str[1]
    assert list(frame["split"]) == list(
        stated.map({"train": "train", "val": "tune", "test": "valid"})
    )


def test_both_sizes_of_a_thing_are_one_patient(tmp_path: Path) -> None:
    write_medmnist3d(tmp_path)
    write_medmnist3d(tmp_path / "large", "organmnist3d_64")
    rows = _rows(tmp_path)
    assert len(rows) == 50
    small, large = rows["organmnist3d_test_00002"], rows["organmnist3d_64_test_00002"]
    assert small.patient == large.patient
    assert large.sources == ("large/organmnist3d_64.npz",)


def test_a_label_out_of_the_table_is_a_rejected_row(tmp_path: Path) -> None:
    _write(tmp_path, val_labels=np.array([0, 7], np.int64))
    rows = _rows(tmp_path)
    row = rows["adrenalmnist3d_val_00001"]
    assert (row.problem, row.label) == ("BAD_MEMBER", None)
    assert row.problem_message == (
        "adrenalmnist3d.npz: val_labels[1] is 7, wanted 0 to 1; fetch it again"
    )
    assert sum(row.problem is None for row in rows.values()) == 5


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (
            "train_images",
            np.zeros((2, 3, 4, 5)),
            "train_images is float64 (2, 3, 4, 5), wanted uint8",
        ),
        ("train_images", np.zeros((2, 4, 5), np.uint8), "train_images is uint8 (2, 4, 5), wanted"),
        (
            "train_images",
            np.asfortranarray(np.zeros((2, 3, 4, 5), np.uint8)),
            "train_images is uint8 (2, 3, 4, 5), first axis fastest, wanted uint8 (N, D, H, W)",
        ),
        (
            "train_labels",
            np.zeros((3, 1), np.uint8),
            "train_labels is uint8 (3, 1), wanted an integer for each of 2 volumes",
        ),
        ("train_labels", np.zeros((2, 1)), "train_labels is float64 (2, 1), wanted an integer"),
        ("train_labels", None, "no array train_labels; fetch it again"),
        ("train_images", None, "no array train_images; fetch it again"),
    ],
    ids=["float", "flat", "order", "count", "kind", "no_labels", "no_images"],
)
def test_a_wrong_array_is_one_rejected_row(
    tmp_path: Path, name: str, array: np.ndarray | None, message: str
) -> None:
    if array is None:
        _drop(tmp_path, name)
    else:
        _write(tmp_path, **{name: array})
    rows = _rows(tmp_path)
    row = rows["adrenalmnist3d_train"]
    assert row.problem == "BAD_MEMBER"
    assert row.problem_message is not None
    assert row.problem_message.startswith(f"adrenalmnist3d.npz: {message}")
    assert sum(row.problem is None for row in rows.values()) == 4


def test_a_damaged_file_is_one_rejected_row(tmp_path: Path) -> None:
    write_medmnist3d(tmp_path)
    path = tmp_path / "vesselmnist3d.npz"
    path.write_bytes((tmp_path / "organmnist3d.npz").read_bytes()[:-100])
    row = _rows(tmp_path)["vesselmnist3d"]
    assert row.problem == "FILE_UNREADABLE"
    assert row.problem_message == (
        "vesselmnist3d.npz: damaged (File is not a zip file); fetch it again"
    )


def test_no_voxels_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an array was loaded")

    write_medmnist3d(tmp_path)
    monkeypatch.setattr(np, "load", refuse)
    monkeypatch.setattr(np.lib.format, "read_array", refuse)
    assert len(_rows(tmp_path)) == 25


def test_other_files_and_second_copies_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        DatasetError, match=r"no file \{organmnist3d,.*that MedMNIST was downloaded"
    ):
        _rows(tmp_path)
    write_medmnist3d(tmp_path)
    write_medmnist3d(tmp_path, "pathmnist")
    _rows(tmp_path)
    assert "1 .npz files are no set of MedMNIST 3D" in caplog.text
    write_medmnist3d(tmp_path / "again")
    message = r": organmnist3d\.npz and again/organmnist3d\.npz are the same set; keep one"
    with pytest.raises(DatasetError, match=message):
        _rows(tmp_path)
