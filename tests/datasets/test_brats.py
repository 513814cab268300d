import json
from pathlib import Path

import numpy as np
import pytest

from ct3dlib.cohort.catalog import Row
from ct3dlib.cohort.shard import store_shard
from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import CatalogSpec, RecipeSpec
from ct3dlib.datasets import build_catalog, read_dataset
from ct3dlib.datasets.brats import MODALITIES
from ct3dlib.errors import DatasetError
from ct3dlib.training.items import CropItems
from tests.datasets.trees import (
    BRATS_AFFINE,
    write_brats,
    write_brats_patient,
    write_nifti,
)


def _rows(root: Path) -> dict[str, Row]:
    rows = list(read_dataset("brats", root))
    by_id = {row.volume: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


def _message(row: Row) -> str:
    assert row.problem_message is not None
    return row.problem_message


def test_every_modality_is_a_row_with_its_patient_and_mask(tmp_path: Path) -> None:
    write_brats(tmp_path)
    rows = _rows(tmp_path)
    assert len(rows) == 19
    row = rows["BraTS20_Training_001_t1ce"]
    folder = "MICCAI_2020/HGG/BraTS20_Training_001"
    assert (row.label, row.domain, row.kind) == ("t1ce", "mr", "nifti")
    assert row.patient == row.study == "BraTS20_Training_001"
    assert row.sources == (f"{folder}/BraTS20_Training_001_t1ce.nii.gz",)
    assert row.lesion_mask == f"{folder}/BraTS20_Training_001_seg.nii.gz"
    assert (row.spacing, row.shape) == ((1.0, 1.0, 1.0), (9, 5, 6))
    assert row.metadata == "{}"
    assert row.split is None


def test_names_of_2023_mean_the_same_modalities(tmp_path: Path) -> None:
    write_brats(tmp_path)
    rows = _rows(tmp_path).values()
    labels = {Path(row.sources[0]).name: row.label for row in rows if "GLI-00004" in row.volume}
    assert labels == {
        "BraTS-GLI-00004-000-t1n.nii.gz": "t1",
        "BraTS-GLI-00004-000-t1c.nii.gz": "t1ce",
        "BraTS-GLI-00004-000-t2w.nii.gz": "t2",
        "BraTS-GLI-00004-000-t2f.nii.gz": "flair",
    }


@pytest.mark.parametrize("seed", range(5))
def test_visits_of_a_patient_stay_in_one_split(tmp_path: Path, seed: int) -> None:
    for number in range(6):
        for visit in (0, 1):
            write_brats_patient(
                tmp_path / f"BraTS-GLI-{number:05d}-{visit:03d}", ("t1n",), join="-"
            )
    spec = CatalogSpec(dataset="brats", shards={"train": 1, "tune": 1, "valid": 1}, seed=seed)
    frame = build_catalog(tmp_path, spec)
    assert set(frame["patient"]) == {f"BraTS-GLI-{number:05d}" for number in range(6)}
    assert frame["study"].nunique() == 12
    assert frame.groupby("patient")["split"].nunique().max() == 1


def test_four_patients_become_crops_of_one_channel_and_a_modality(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    for number in range(4):
        write_brats_patient(root / f"BraTS2021_{number:05d}")
    spec = CatalogSpec(dataset="brats", shards={"train": 1, "tune": 1, "valid": 1})
    frame = build_catalog(root, spec)
    assert len(frame) == 16
    assert frame.groupby("patient")["split"].nunique().max() == 1
    recipe = RecipeSpec(domain="mr", percentiles=(0.5, 99.5), min_slices=1)
    train, status = frame.query("split == 'train'"), tmp_path / "store/0000.parquet"
    done = store_shard(train, root, recipe=recipe, code="", status=status)
    assert set(done["status"]) == {"stored"}
    volumes = stored_volumes([status])
    labels = dict(zip(frame["volume"], frame["label"], strict=True))
    assert {labels[volume.volume] for volume in volumes} == set(MODALITIES)
    items = CropItems(volumes, crop=(4, 3, 5), window=recipe.window, range=recipe.range)
    assert len(items) == len(train)
    for index in range(len(items)):
        one, same = (items.item(index, np.random.default_rng(5))["volume"] for _ in range(2))
        assert one.shape == (1, 4, 3, 5)
        assert one.equal(same)
        assert -1 <= one.min() < one.max() <= 1


def test_a_missing_modality_is_noted_with_the_others(tmp_path: Path) -> None:
    write_brats(tmp_path)
    rows = [row for row in _rows(tmp_path).values() if row.patient == "BraTS20_Training_003"]
    assert {row.label for row in rows} == {"t1", "t2", "flair"}
    assert {row.metadata for row in rows} == {json.dumps({"missing_modalities": ["t1ce"]})}
    assert {row.lesion_mask for row in rows} == {None}
    assert not any(row.problem for row in rows)


def test_the_root_itself_may_be_a_patient(tmp_path: Path) -> None:
    root = tmp_path / "BraTS2021_00001"
    write_brats_patient(root)
    assert set(_rows(root)) == {f"BraTS2021_00001_{part}" for part in ("t1", "t1ce", "t2", "flair")}


# BraTS20_Training_355 was released with its mask under such a name.
@pytest.mark.parametrize("name", ["W39_1998.09.19_Segm.nii", "B_1_pd.nii.gz", "t1.nii", "A_t1.nii"])
def test_other_names_are_rows_with_a_problem(tmp_path: Path, name: str) -> None:
    write_brats_patient(tmp_path / "B_1", ("t1", "t2", "flair"))
    write_nifti(tmp_path / "B_1" / name, BRATS_AFFINE)
    bad = [row for row in _rows(tmp_path).values() if row.problem]
    assert [(row.sources, row.problem) for row in bad] == [((f"B_1/{name}",), "UNKNOWN_MODALITY")]
    assert _message(bad[0]) == (
        f"B_1/{name}: the name is not B_1_{{t1,t1ce,t2,flair,seg}}.nii.gz; rename or remove it"
    )
    assert bad[0].label is None


def test_the_odd_grid_of_a_patient_is_found(tmp_path: Path) -> None:
    write_brats_patient(tmp_path / "A")
    shifted = BRATS_AFFINE + np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1.5], [0, 0, 0, 0]])
    write_nifti(tmp_path / "A/A_t1.nii.gz", shifted)
    write_brats_patient(tmp_path / "B")
    write_nifti(tmp_path / "B/B_flair.nii.gz", BRATS_AFFINE, (6, 5, 8))
    rows = _rows(tmp_path)
    assert {name for name, row in rows.items() if row.problem} == {"A_t1", "B_flair"}
    assert {row.problem for row in rows.values()} == {None, "MIXED_GRID"}
    assert _message(rows["A_t1"]) == (
        "A/A_t1.nii.gz: shape (9, 5, 6), spacing [1.0, 1.0, 1.0] mm, first voxel at "
        "[-5.0, 235.0, 1.5] mm (RAS), the patient's other files have shape (9, 5, 6), spacing "
        "[1.0, 1.0, 1.0] mm, first voxel at [-5.0, 235.0, 0.0] mm (RAS); fetch it again, or "
        "resample it to their grid"
    )


def test_the_same_grid_in_another_order_of_axes_is_no_odd_one(tmp_path: Path) -> None:
    write_brats_patient(tmp_path / "A")
    turned = BRATS_AFFINE @ np.array([[0, 0, -1.0, 5], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    write_nifti(tmp_path / "A/A_t2.nii.gz", turned, (5, 9, 6))
    assert not any(row.problem for row in _rows(tmp_path).values())


def test_masks_that_do_not_fit_are_rows_with_a_problem(tmp_path: Path) -> None:
    write_brats_patient(tmp_path / "A")
    write_nifti(tmp_path / "A/A_seg.nii.gz", BRATS_AFFINE, (6, 5, 8))
    write_brats_patient(tmp_path / "B", ("seg",))
    rows = _rows(tmp_path)
    assert rows["A_seg"].problem == "MIXED_GRID"
    assert rows["A_t1"].lesion_mask is None
    assert rows["B_seg"].problem == "UNKNOWN_MODALITY"
    assert _message(rows["B_seg"]) == (
        "B/B_seg.nii.gz: a mask without a volume; fetch the patient again"
    )


def test_a_name_that_comes_again_is_a_duplicate(tmp_path: Path) -> None:
    write_brats_patient(tmp_path / "2020/A", ("t1", "seg"))
    write_nifti(tmp_path / "2020/A/A_seg.nii", BRATS_AFFINE)
    write_brats_patient(tmp_path / "2021/A", ("t1",))
    rows = _rows(tmp_path)
    assert {name: row.problem for name, row in rows.items()} == {
        "A_t1": None,
        "A_seg": "DUPLICATE_NAME",
        "A_t1-2": "DUPLICATE_NAME",
    }
    assert rows["A_t1"].lesion_mask == "2020/A/A_seg.nii"
    assert "2020/A/A_t1.nii.gz has this name too" in _message(rows["A_t1-2"])


def test_another_folder_names_the_way_out(tmp_path: Path) -> None:
    write_nifti(tmp_path / "x/scan.nii.gz", BRATS_AFFINE)
    with pytest.raises(
        DatasetError, match=r"no file PATIENT/PATIENT_\{t1,.*catalog\.dataset: folder"
    ):
        _rows(tmp_path)
