"""The synthetic cohort as files: a CT-RATE tree, its tables, its faults."""

import ast
import csv
import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from ct3dlib.cohort.labels import LABELS
from ct3dlib.config import PhantomSpec
from ct3dlib.datasets.phantom import plan, write_cohort
from ct3dlib.datasets.phantom_scanner import METADATA_COLUMNS
from ct3dlib.errors import DatasetError

FAULTS = ("truncated", "nan", "no_metadata", "single_slice")
SPEC = PhantomSpec(
    train_patients=2,
    valid_patients=1,
    reconstructions=(2, 2),
    matrix=(48, 56),
    slice_spacing=(9.0, 11.0),
    dicom_every=3,
    faults=FAULTS,
    seed=5,
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raw")
    write_cohort(root, SPEC)
    return root / "dataset"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def snapshot(base: Path) -> dict[str, bytes]:
    files = [path for path in sorted(base.rglob("*")) if path.is_file()]
    return {path.relative_to(base).as_posix(): path.read_bytes() for path in files}


def metadata_of(cohort: Path, volume: str) -> dict[str, str]:
    rows = [
        row
        for name in ("train_metadata", "validation_metadata")
        for row in table(cohort / "metadata" / f"{name}.csv")
    ]
    return next(row for row in rows if row["VolumeName"] == f"{volume}.nii.gz")


def stored(path: Path) -> NDArray[Any]:
    return np.asanyarray(nib.nifti1.Nifti1Image.from_filename(path).dataobj)


def truth(cohort: Path, volume: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    part = volume.partition("_")[0]
    image = nib.nifti1.Nifti1Image.from_filename(cohort / "regions" / part / f"{volume}.nii.gz")
    assert image.affine is not None
    return np.asanyarray(image.dataobj).transpose(2, 1, 0), image.affine


def dicom_folder(cohort: Path) -> Path:
    return next(cohort.glob("train/*/*/train_*_a_?"))


def test_tree_is_that_of_ct_rate(cohort: Path) -> None:
    found = {path.relative_to(cohort).as_posix() for path in cohort.glob("[tv]*/*/*/*")}
    series = [
        f"{part}/{part}_{p}/{part}_{p}_a/{part}_{p}_a_{r}"
        for part, patients in (("train", (1, 2)), ("valid", (1,)))
        for p in patients
        for r in (1, 2)
    ]
    damaged = [f"valid/valid_{p}/valid_{p}_a/valid_{p}_a_1" for p in (2, 3, 4, 5)]
    dicom = {series[2]}  # every third series of a part
    assert found == {s if s in dicom else f"{s}.nii.gz" for s in series + damaged}
    assert not list(cohort.rglob("*partial*"))


def test_tables_have_ct_rates_columns(cohort: Path) -> None:
    names = {
        "metadata/train_metadata.csv": list(METADATA_COLUMNS),
        "metadata/validation_metadata.csv": list(METADATA_COLUMNS),
        "multi_abnormality_labels/train_predicted_labels.csv": ["VolumeName", *LABELS],
        "multi_abnormality_labels/valid_predicted_labels.csv": ["VolumeName", *LABELS],
        "radiology_text_reports/train_reports.csv": [
            "VolumeName",
            "ClinicalInformation_EN",
            "Technique_EN",
            "Findings_EN",
            "Impressions_EN",
        ],
    }
    assert len(METADATA_COLUMNS) == 44
    assert METADATA_COLUMNS[30] == "ImagePositionPatient"
    for name, columns in names.items():
        rows = table(cohort / name)
        assert list(rows[0]) == columns
        assert len(rows) == (4 if "train" in name else 5 if "metadata" in name else 6)


def test_metadata_has_ct_rates_formats(cohort: Path) -> None:
    for row in table(cohort / "metadata" / "train_metadata.csv"):
        dy, dx = ast.literal_eval(row["XYSpacing"])
        assert dy == dx > 0
        assert row["PatientAge"].endswith("Y")
        assert len(row["PatientAge"]) == 4
        assert len(row["StudyDate"]) == 8
        assert row["RescaleSlope"] == "1"
        siemens = row["Manufacturer"] == "Siemens Healthineers"
        assert row["RescaleIntercept"] == ("-8192" if siemens else "-1024")
        assert row["GeneratorPower"] == ""


def test_version_1_stores_values_under_a_blank_header(cohort: Path) -> None:
    for path in sorted(cohort.glob("train/*/*/*.nii.gz")):
        row = metadata_of(cohort, path.name.removesuffix(".nii.gz"))
        image = nib.nifti1.Nifti1Image.from_filename(path)
        np.testing.assert_array_equal(image.affine, np.eye(4))
        assert image.header.get_zooms() == (1, 1, 1)
        assert image.shape == (int(row["Columns"]), int(row["Rows"]), int(row["NumberofSlices"]))
        hu = stored(path) * float(row["RescaleSlope"]) + float(row["RescaleIntercept"])
        assert hu.max() <= 3071
        assert -1010 < np.median(hu[hu > -1024]) < 100
        regions, _ = truth(cohort, path.name.removesuffix(".nii.gz"))
        hu = hu.transpose(2, 1, 0)
        assert 35 < np.median(hu[regions == 15]) < 75  # liver
        assert -900 < np.median(hu[regions == 2]) < -600  # left lower lobe


def test_truth_has_the_true_affine(cohort: Path) -> None:
    volume = "train_1_a_1"
    row, (regions, affine) = metadata_of(cohort, volume), truth(cohort, volume)
    x, y, z = ast.literal_eval(row["ImagePositionPatient"])
    np.testing.assert_allclose(affine[:3, 3], (-x, -y, z), rtol=1e-5)
    spacing = ast.literal_eval(row["XYSpacing"])[0]
    wanted = (-spacing, -spacing, float(row["ZSpacing"]))
    np.testing.assert_allclose(np.diag(affine)[:3], wanted, rtol=1e-5)
    assert nib.orientations.aff2axcodes(affine) == ("L", "P", "S")
    assert regions.dtype == np.uint8


def test_reconstructions_of_a_scan_agree_in_mm(cohort: Path) -> None:
    spine = []
    for volume in ("train_1_a_1", "train_1_a_2"):
        regions, affine = truth(cohort, volume)
        d, h, w = np.argwhere(regions == 15).mean(axis=0)
        spine.append(affine @ (w, h, d, 1))
    np.testing.assert_allclose(spine[0], spine[1], atol=2.5)
    first, second = (metadata_of(cohort, f"train_1_a_{i}") for i in (1, 2))
    assert first["StudyDate"] == second["StudyDate"]
    assert first["XYSpacing"] != second["XYSpacing"]


def test_dicom_series_is_whole_and_ordered_by_position(cohort: Path) -> None:
    folder = dicom_folder(cohort)
    slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    row = metadata_of(cohort, folder.name)
    assert len(slices) == int(row["NumberofSlices"])
    heights = np.array([float(ds.ImagePositionPatient[2]) for ds in slices])
    np.testing.assert_allclose(np.diff(heights), -float(row["ZSpacing"]), atol=1e-4)
    assert heights[-1] == pytest.approx(ast.literal_eval(row["ImagePositionPatient"])[2], abs=1e-4)
    assert {str(ds.PatientID) for ds in slices} == {folder.name.rsplit("_", 2)[0]}
    assert len({ds.SeriesInstanceUID for ds in slices}) == 1
    assert len({ds.SOPInstanceUID for ds in slices}) == len(slices)
    assert [int(ds.InstanceNumber) for ds in slices] == list(range(1, len(slices) + 1))
    hu = np.stack([ds.pixel_array * ds.RescaleSlope + ds.RescaleIntercept for ds in slices[::-1]])
    regions, _ = truth(cohort, folder.name)
    assert 35 < np.median(hu[regions == 15]) < 75
    assert -1000 < np.median(hu[regions == 2]) < -600


def test_texts_and_labels_belong_to_every_volume(cohort: Path) -> None:
    for part, reports in (("train", "train_reports"), ("valid", "validation_reports")):
        labels = table(cohort / "multi_abnormality_labels" / f"{part}_predicted_labels.csv")
        texts = table(cohort / "radiology_text_reports" / f"{reports}.csv")
        pairs = json.loads((cohort / "vqa" / f"{part}_vqa.json").read_text())
        names = [row["VolumeName"] for row in labels]
        assert names == [row["VolumeName"] for row in texts]
        assert names == [pair["volumename"] for pair in pairs]
        for row, text, pair in zip(labels, texts, pairs, strict=True):
            has_nodule = "nodule of" in text["Findings_EN"]
            assert row["Lung nodule"] == str(int(has_nodule))
            assert row["Cardiomegaly"] == str(int("Cardiomegaly." in text["Impressions_EN"]))
            assert pair["question"].endswith((".", "?"))
            assert pair["answer"].split(". ")[0] in text["Findings_EN"] + pair["answer"]


def test_each_fault_is_what_it_says(cohort: Path) -> None:
    paths = [cohort / f"valid/valid_{p}/valid_{p}_a/valid_{p}_a_1.nii.gz" for p in (2, 3, 4, 5)]
    truncated, nan, no_metadata, single = paths
    with pytest.raises((EOFError, zlib.error)):
        gzip.decompress(truncated.read_bytes())
    assert 0.001 < np.isnan(stored(nan)).mean() < 0.2
    assert stored(nan).dtype == np.float32
    names = {row["VolumeName"] for row in table(cohort / "metadata" / "validation_metadata.csv")}
    assert {path.name for path in paths} - names == {no_metadata.name}
    assert stored(single).shape[2] == 1
    assert not list((cohort / "regions" / "valid").glob("valid_[2-5]_*"))


def test_same_files_with_any_number_of_workers(tmp_path: Path) -> None:
    small = PhantomSpec(
        train_patients=2, valid_patients=1, reconstructions=(1, 2), matrix=(40, 44),
        slice_spacing=(10.0, 12.0), dicom_every=2,
    )  # fmt: skip
    for workers in (1, 2):
        write_cohort(tmp_path / str(workers), small, workers=workers)
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "2")


def test_cohort_grows_and_shrinks_without_changing_patients(tmp_path: Path) -> None:
    small = PhantomSpec(
        train_patients=1, valid_patients=1, reconstructions=(1, 1), matrix=(40, 40),
        slice_spacing=(12.0, 12.0), dicom_every=0, faults=("nan",),
    )  # fmt: skip
    base = tmp_path / "dataset"
    write_cohort(tmp_path, small)
    first = snapshot(base)
    volume = base / "train/train_1/train_1_a/train_1_a_1.nii.gz"
    made = volume.stat().st_mtime_ns
    grown = small.model_copy(update={"train_patients": 2})
    write_cohort(tmp_path, grown)
    assert volume.stat().st_mtime_ns == made  # kept, not made again
    assert (base / "train/train_2").is_dir()
    write_cohort(tmp_path, small)
    assert snapshot(base) == first
    volume.unlink()  # a lost file is made again, the same
    write_cohort(tmp_path, small)
    assert snapshot(base) == first


def test_another_seed_gives_other_patients(tmp_path: Path) -> None:
    spec = PhantomSpec(
        train_patients=1, valid_patients=1, reconstructions=(1, 1), matrix=(40, 40),
        slice_spacing=(12.0, 12.0), dicom_every=0,
    )  # fmt: skip
    texts = []
    for seed in (1, 2):
        write_cohort(tmp_path, spec.model_copy(update={"seed": seed}))
        texts.append((tmp_path / "dataset/radiology_text_reports/train_reports.csv").read_text())
    assert texts[0] != texts[1]


def test_version_2_holds_hu_and_geometry(tmp_path: Path) -> None:
    spec = SPEC.model_copy(
        update={"version": "v2", "train_patients": 1, "faults": (), "reconstructions": (1, 1)}
    )
    write_cohort(tmp_path, spec)
    base = tmp_path / "dataset"
    path = base / "train_fixed/train_1/train_1_a/train_1_a_1.nii.gz"
    image = nib.nifti1.Nifti1Image.from_filename(path)
    regions, affine = truth(base, "train_1_a_1")
    assert image.affine is not None
    np.testing.assert_allclose(image.affine, affine)
    hu = np.asanyarray(image.dataobj).transpose(2, 1, 0)
    assert hu.dtype == np.int16
    assert 35 < np.median(hu[regions == 15]) < 75
    assert not (base / "train").exists()


def test_plan_numbers_series_and_puts_faults_last() -> None:
    jobs = plan(SPEC)
    assert [job.patient for job in jobs] == [
        *("train_1", "train_2", "valid_1", "valid_2", "valid_3", "valid_4", "valid_5"),
    ]
    assert [job.first for job in jobs[:3]] == [1, 3, 1]
    assert tuple(job.fault for job in jobs[3:]) == FAULTS


def test_real_data_are_not_touched(tmp_path: Path) -> None:
    scan = tmp_path / "dataset" / "train" / "train_1" / "scan.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.write_bytes(b"precious")
    with pytest.raises(DatasetError, match="not a synthetic cohort; choose an empty raw_root"):
        write_cohort(tmp_path, SPEC)
    assert scan.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("matrix", (64, 32), r"phantom.matrix must not fall: \(64, 32\)"),
        ("reconstructions", (3, 1), "phantom.reconstructions must not fall"),
        ("slice_spacing", (5.0, 1.0), "phantom.slice_spacing must not fall"),
    ],
)
def test_falling_ranges_are_refused(key: str, value: tuple[float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PhantomSpec.model_validate({"train_patients": 1, "valid_patients": 1, key: value})


def test_missing_metadata_is_no_fault_of_version_2() -> None:
    with pytest.raises(ValueError, match="no_metadata damages nothing in v2; remove it"):
        PhantomSpec(train_patients=1, valid_patients=1, version="v2", faults=("no_metadata",))
