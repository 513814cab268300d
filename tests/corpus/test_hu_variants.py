"""One scan in the four forms that its values come in gives one array, from catalog to store."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ct3dlib.cohort.shard import store_shard
from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import CatalogSpec, RecipeSpec
from ct3dlib.datasets import build_catalog
from tests.corpus.dicom_files import one_slice
from tests.corpus.nifti_cases import BLANK, HU, nifti
from tests.corpus.table_cases import write_table
from tests.datasets.trees import metadata_row

SPACING = {"XYSpacing": "[2.5, 2.5]", "ZSpacing": 4}
SPEC = CatalogSpec(dataset="ct_rate", shards={"train": 1, "tune": 1, "valid": 1})


@pytest.fixture
def rows(tmp_path: Path) -> pd.DataFrame:
    """Return the catalog of v1 of two makers, v2, and DICOM with each slice's own rescale."""
    base = tmp_path / "raw"
    (base / "train").mkdir(parents=True)
    (base / "train_fixed").mkdir()
    intercepts = {"train_1_a_1": -1024, "train_2_a_1": -8192, "train_3_a_1": -1024}
    for name, intercept in list(intercepts.items())[:2]:
        stored = (HU - intercept).astype("<i2").tobytes()
        (base / f"train/{name}.nii").write_bytes(nifti(stored, pixdim=[1] * 8, **BLANK))
    (base / "train_fixed/train_3_a_1.nii").write_bytes(nifti())
    series = base / "train/train_4_a_1"
    series.mkdir()
    for number, plane in enumerate(HU):
        slope, intercept = 0.5 + 0.1 * (number % 3), -1040 - number
        pixels = np.rint((plane - intercept) / slope).astype(np.uint16)
        one_slice(
            series / f"{number}.dcm",
            number,
            pixels,
            RescaleSlope=slope,
            RescaleIntercept=intercept,
            ImagePositionPatient=[0, 0, 4 * number],
        )
    write_table(
        base / "metadata/train_metadata.csv",
        [
            metadata_row(f"{name}.nii.gz", RescaleIntercept=intercept, **SPACING)
            for name, intercept in intercepts.items()
        ],
    )
    return build_catalog(base, SPEC)


def store(rows: pd.DataFrame, folder: Path, **recipe: object) -> tuple[pd.DataFrame, Path]:
    status = folder / "0000.parquet"
    spec = RecipeSpec(spacing=(3.0, 2.0, 2.0), **recipe)
    return store_shard(rows, folder / "raw", recipe=spec, code="1", status=status), status


def test_four_forms_of_one_scan_are_stored_as_one_array(rows, tmp_path):
    table, status = store(rows, tmp_path)
    assert table["hu_state"].tolist() == ["rescaled", "rescaled", "hu", "hu"]
    first, *others = [volume.read().astype(int) for volume in stored_volumes([status])]
    assert first.shape == (16, 25, 30)
    assert len(others) == 3
    assert [int(np.abs(other - first).max()) for other in others] <= [0, 0, 1]
    assert abs(np.median(first[:, 8:-8, 8:-8]) - 40) < 2


def test_stored_refuses_the_form_that_is_hu_already(rows, tmp_path):
    table, _ = store(rows, tmp_path, hu_state="stored")
    assert table["reason"].tolist() == ["", "", "HU_DOUBLE_RESCALE", ""]
    assert "hu_state: auto" in table["message"].iloc[2]


def test_taking_stored_values_for_hu_is_refused_by_nobody_but_auto(rows, tmp_path):
    table, _ = store(rows, tmp_path, hu_state="hu")
    assert set(table["hu_state"]) == {"hu"}
