import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pytest

from ct3dlib.cohort.catalog import Row
from ct3dlib.cohort.labels import LABELS
from ct3dlib.config import CatalogSpec
from ct3dlib.datasets import build_catalog, read_dataset
from ct3dlib.errors import DatasetError
from ct3dlib.scan.nifti import read_nifti
from tests.datasets.trees import (
    METADATA_COLUMNS,
    metadata_row,
    write_blank_nifti,
    write_csv,
    write_ct_rate,
    write_dicom,
    write_nifti,
)

AFFINE = np.diag([-0.8, -0.8, 2.0, 1.0])


def _rows(root: Path) -> dict[str, Row]:
    rows = list(read_dataset("ct_rate", root))
    by_id = {row.volume: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_ct_rate(tmp_path / "dataset")
    return tmp_path


@pytest.fixture
def base(root: Path) -> Path:
    return root / "dataset"


def test_version_1_takes_geometry_and_rescale_from_the_metadata(root: Path, base: Path) -> None:
    rows = [metadata_row("valid_1_a_1.nii.gz", XYSpacing="[0.7, 0.8]", RescaleIntercept=-8192)]
    write_csv(base / "metadata/validation_metadata.csv", METADATA_COLUMNS, rows)
    row = _rows(root)["valid_1_a_1"]
    assert (row.spacing, row.shape) == ((1.5, 0.7, 0.8), (9, 5, 6))
    assert (row.slope, row.intercept) == (1.0, -8192.0)
    assert row.sources == ("dataset/valid/valid_1/valid_1_a/valid_1_a_1.nii.gz",)
    assert (row.patient, row.study, row.split) == ("valid_1", "valid_1_a", "valid")
    assert json.loads(row.metadata) == {
        "VolumeName": "valid_1_a_1.nii.gz",
        "Manufacturer": "Philips",
        "XYSpacing": "[0.7, 0.8]",
        "RescaleIntercept": "-8192",
        "RescaleSlope": "1",
        "ZSpacing": "1.5",
    }


def test_version_2_takes_geometry_from_the_header_and_joins_the_metadata(tmp_path: Path) -> None:
    write_ct_rate(tmp_path / "dataset", fixed=True)
    path = tmp_path / "dataset/train_fixed/train_2/train_2_a/train_2_a_1.nii.gz"
    write_nifti(path, AFFINE)
    rows = [metadata_row("train_2_a_1.nii.gz", ZSpacing="nan")]
    write_csv(tmp_path / "dataset/metadata/train_metadata.csv", METADATA_COLUMNS, rows)
    found = _rows(tmp_path)
    assert found["train_2_a_1"].spacing == pytest.approx((2.0, 0.8, 0.8))
    assert found["train_2_a_1"].intercept == -1024
    assert found["train_3_b_1"].metadata == "{}"
    assert not any(row.problem for row in found.values())


def test_version_2_takes_a_spacing_that_its_header_does_not_state_from_the_metadata(
    tmp_path: Path,
) -> None:
    write_ct_rate(tmp_path / "dataset", fixed=True)
    scans = tmp_path / "dataset/train_fixed"
    blank = scans / "train_2/train_2_a/train_2_a_1.nii.gz"
    other = scans / "train_3/train_3_b/train_3_b_1.nii.gz"
    write_nifti(blank, np.eye(4))
    write_nifti(other, AFFINE)
    rows = _rows(tmp_path)
    for name, path in (("train_2_a_1", blank), ("train_3_b_1", other)):
        row = rows[name]
        assert row.spacing == (1.5, 0.75, 0.75)
        read = read_nifti(path, spacing=row.spacing)
        if path == blank:
            assert read.facts["blank_header"] is True
            assert read.volume.spacing == (1.5, 0.75, 0.75)
        else:
            assert read.facts["metadata_spacing_differs"] == [1.5, 0.75, 0.75]
            assert read.volume.spacing == pytest.approx((2.0, 0.8, 0.8))


def test_reconstructions_share_patient_study_and_report(root: Path) -> None:
    rows = _rows(root)
    first, second = rows["train_1_a_1"], rows["train_1_a_2"]
    assert first.study == second.study == "train_1_a"
    assert first.patient == second.patient == "train_1"


def test_tables_are_joined_by_either_name_of_valid(root: Path) -> None:
    rows = _rows(root)
    row = rows["valid_2_a_1"]
    assert row.findings == "Findings of validation_2_a_1.nii.gz."
    assert row.impressions == ""
    assert row.labels == tuple(int(label == LABELS[1]) for label in LABELS)
    assert rows["train_3_b_1"].labels == tuple(int(label == LABELS[3]) for label in LABELS)


def test_questions_come_from_the_file_or_from_the_report(root: Path) -> None:
    rows = _rows(root)
    stated, made = rows["train_1_a_1"], rows["train_2_a_1"]
    assert (stated.question, stated.answer, stated.qa_source) == (
        "Is there a nodule?",
        "No.",
        "vqa",
    )
    assert made.qa_source == "template"
    assert made.answer == "Findings of train_2_a_1.nii.gz."


def test_a_volume_without_report_and_labels_has_none(root: Path, base: Path) -> None:
    (base / "radiology_text_reports/validation_reports.csv").unlink()
    path = base / "multi_abnormality_labels/valid_predicted_labels.csv"
    write_csv(path, ("VolumeName", *LABELS), [("valid_1_a_1.nii.gz", "", *[0] * 17)])
    rows = _rows(root)
    for volume in ("valid_1_a_1", "valid_2_a_1"):
        row = rows[volume]
        assert (row.labels, row.findings, row.question, row.qa_source) == (None, "", "", None)


def test_dicom_in_place_of_a_file_is_one_row(root: Path) -> None:
    row = _rows(root)["train_4_a_1"]
    assert (row.kind, row.shape, row.problem) == ("dicom", (9, 5, 6), None)
    assert row.spacing == pytest.approx((2.0, 0.8, 0.8))
    assert (row.slope, row.intercept) == (None, None)
    assert (row.patient, row.study) == ("train_4", "train_4_a")
    assert len(row.sources) == 9
    assert json.loads(row.metadata)["VolumeName"] == "train_4_a_1.nii.gz"


def test_a_damaged_slice_leaves_the_name_to_the_series(root: Path, base: Path) -> None:
    folder = base / "train/train_4/train_4_a/train_4_a_1"
    (folder / "-first.dcm").write_bytes((folder / "000.dcm").read_bytes()[:300])
    rows = _rows(root)
    assert rows["train_4_a_1"].problem is None
    assert len(rows["train_4_a_1"].sources) == 9
    assert rows["train_4_a_1-2"].problem not in (None, "DUPLICATE_NAME")


def test_true_regions_are_found(root: Path, base: Path) -> None:
    write_blank_nifti(base / "regions/valid/valid_1_a_1.nii.gz")
    rows = _rows(root)
    assert rows["valid_1_a_1"].regions_truth == "dataset/regions/valid/valid_1_a_1.nii.gz"
    assert rows["valid_2_a_1"].regions_truth is None


def test_a_volume_without_metadata_is_a_rejected_row(
    root: Path, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [metadata_row("validation_2_a_1.nii.gz"), metadata_row("validation_77_a_1.nii.gz")]
    write_csv(base / "metadata/validation_metadata.csv", METADATA_COLUMNS, rows)
    row = _rows(root)["valid_1_a_1"]
    assert row.problem == "NO_METADATA"
    assert row.problem_message is not None
    assert "valid_1_a_1.nii.gz: no row in the metadata table" in row.problem_message
    assert "CT-RATE valid: 1 rows of the metadata have no file" in caplog.text


def test_bad_metadata_are_a_rejected_row(root: Path, base: Path) -> None:
    rows = [
        metadata_row("validation_1_a_1.nii.gz", ZSpacing="nan"),
        metadata_row("validation_2_a_1.nii.gz", XYSpacing=""),
    ]
    write_csv(base / "metadata/validation_metadata.csv", METADATA_COLUMNS, rows)
    found = _rows(root)
    assert found["valid_1_a_1"].problem == found["valid_2_a_1"].problem == "BAD_METADATA"
    message = found["valid_1_a_1"].problem_message
    assert message is not None
    assert message.endswith("ZSpacing is 'nan'; correct the row of the metadata table")
    assert found["valid_1_a_1"].spacing is None


# The columns of the release and the cells of one of its kinds of row; {} is the volume.
ALL_COLUMNS = """
VolumeName={}.nii.gz|Manufacturer=Siemens Healthineers|SeriesDescription=Thorax 1.50 Br40 S3
ManufacturerModelName=SOMATOM go.Top|PatientSex=F|PatientAge=036Y|ReconstructionDiameter=350
DistanceSourceToDetector=1085.6|DistanceSourceToPatient=595|GantryDetectorTilt=0|TableHeight=151
RotationDirection=CW|ExposureTime=500|XRayTubeCurrent=91|Exposure=45|FilterType=FLAT
GeneratorPower=10|FocalSpots=0.8|ConvolutionKernel=['Br40f', '3']|PatientPosition=HFS
RevolutionTime=0.5|SingleCollimationWidth=0.6|TotalCollimationWidth=38.4|TableSpeed=|
TableFeedPerRotation=|SpiralPitchFactor=1.2|DataCollectionCenterPatient=[0.34, -151.6, 1097.5]
ReconstructionTargetCenterPatient=[0.34, -174.6, 1097.5]|ExposureModulationType=XYZ_EC|CTDIvol=3.1
ImagePositionPatient=[-174.3, -0.000000, 1097.5]|ImageOrientationPatient=[1, 0, 0, 0, 1, 0]
SliceLocation=1097.5|SamplesPerPixel=1|PhotometricInterpretation=MONOCHROME2|Rows=1024|Columns=1024
XYSpacing=[0.341796875, 0.341796875]|RescaleIntercept=-8192|RescaleSlope=1|RescaleType=
NumberofSlices=239|ZSpacing=1.5|StudyDate=20190807
"""


def test_all_columns_of_the_release_are_kept_as_they_are(root: Path, base: Path) -> None:
    parts = ALL_COLUMNS.replace("\n", "|").split("|")
    cells = dict(part.split("=", 1) for part in parts if part)
    assert len(cells) == 44
    names = ("train_1_a_1", "train_1_a_2")
    rows = [[cell.replace("{}", name) for cell in cells.values()] for name in names]
    write_csv(base / "metadata/train_metadata.csv", tuple(cells), rows)
    row = _rows(root)["train_1_a_2"]
    blank = {"TableSpeed", "TableFeedPerRotation", "RescaleType"}
    wanted = {name: cell for name, cell in cells.items() if name not in blank}
    assert json.loads(row.metadata) == {**wanted, "VolumeName": "train_1_a_2.nii.gz"}
    assert row.spacing == (1.5, 0.341796875, 0.341796875)
    assert (row.slope, row.intercept) == (1.0, -8192.0)


@pytest.mark.parametrize(
    "line",
    [
        "dataset/train/train_1/train_1_a/train_1_a_1.nii.gz\ntrain_1_a_2.nii.gz",
        "train_1_a",
        "train_1",
    ],
    ids=["paths", "scan", "patient"],
)
def test_lists_name_volumes_by_path_scan_or_patient(root: Path, base: Path, line: str) -> None:
    (base / "metadata/no_chest_train.txt").write_text(line)
    rows = _rows(root)
    left_out = {volume for volume, row in rows.items() if row.problem == "EXCLUDED"}
    assert left_out == {"train_1_a_1", "train_1_a_2"}


def test_one_volume_of_a_scan_is_taken_in_again(root: Path, base: Path) -> None:
    (base / "metadata/no_chest_train.txt").write_text("train_1_a\n")
    (base / "exclude.txt").write_text("!train_1_a_2.nii.gz\n")
    rows = _rows(root)
    assert rows["train_1_a_1"].problem == "EXCLUDED"
    assert rows["train_1_a_2"].problem is None


def test_known_broken_volumes_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    names = ("train_1267_a_3", "train_1267_a_4", "train_9792_a_2", "train_9792_b_1")
    for name in names:
        write_nifti(tmp_path / f"dataset/train_fixed/{name}.nii.gz", AFFINE)
    rows = _rows(tmp_path)
    assert [rows[name].problem for name in names] == [None, "EXCLUDED", "EXCLUDED", None]
    message = rows["train_1267_a_4"].problem_message
    assert message is not None
    assert "known to be broken; add the line !train_1267_a_4 to dataset/exclude.txt" in message
    (tmp_path / "dataset/exclude.txt").write_text("!train_1267_a_4\n!train_9792_a\n")
    assert not any(row.problem for row in _rows(tmp_path).values())


def test_files_without_report_or_labels_are_counted(
    root: Path, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_blank_nifti(base / "train/train_5_a_1.nii.gz")
    table = base / "multi_abnormality_labels/train_predicted_labels.csv"
    row = ["train_1_a_1.nii.gz", *["0"] * 17]
    write_csv(table, ("VolumeName", *LABELS), [[*row, "1"], ["train_2_a_1.nii.gz", *["?"] * 18]])
    rows = _rows(root)
    assert "CT-RATE train: 1 of 6 files have no report" in caplog.text
    assert "CT-RATE train: 5 of 6 files have no labels" in caplog.text
    assert (rows["train_1_a_1"].labels, rows["train_2_a_1"].labels) == ((0,) * 17 + (1,), None)


def test_labels_that_do_not_fit_are_told(
    root: Path, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = base / "multi_abnormality_labels/train_predicted_labels.csv"
    names = ("train_1_a_1", "train_2_a_1", "train_3_b_1", "train_77_a_1", "train_78_a_1")
    cells = [["0"] * 18, ["2", *["0"] * 17], [*["1"] * 17, "yes"], ["0"] * 18, ["1"] * 18]
    write_csv(table, ("VolumeName", *LABELS), [[n, *c] for n, c in zip(names, cells, strict=True)])
    _rows(root)
    assert (
        "train_predicted_labels.csv: 2 rows have a cell that is neither 0 nor 1, the first is "
        "train_2_a_1"
    ) in caplog.text
    assert "CT-RATE train: 2 rows of the labels have no file" in caplog.text


def test_a_list_that_is_no_text_raises(root: Path, base: Path) -> None:
    (base / "exclude.txt").write_bytes(b"train_1  # d\xe9j\xe0\n")
    with pytest.raises(DatasetError, match=r"exclude\.txt: cannot be read .*save it as UTF-8"):
        _rows(root)


@pytest.mark.parametrize(
    "name", ["exclude.txt", "no_chest_valid.txt", "metadata/no_chest_valid.txt"]
)
def test_excluded_volumes_are_rejected_rows(root: Path, base: Path, name: str) -> None:
    (base / name).write_text("# no chest\nvalidation_1_a_1.nii.gz  # head\n\n")
    rows = _rows(root)
    assert rows["valid_1_a_1"].problem == "EXCLUDED"
    message = rows["valid_1_a_1"].problem_message
    assert message is not None
    assert message.endswith(f"listed in dataset/{name}; take the line out to use it")
    assert rows["valid_2_a_1"].problem is None


def test_of_both_versions_the_second_keeps_the_name(root: Path, base: Path) -> None:
    write_nifti(base / "valid_fixed/valid_1/valid_1_a/valid_1_a_1.nii.gz", AFFINE)
    rows = _rows(root)
    assert rows["valid_1_a_1"].problem is None
    assert rows["valid_1_a_1"].sources[0].startswith("dataset/valid_fixed/")
    again = rows["valid_1_a_1-2"]
    assert again.problem == "DUPLICATE_NAME"
    assert again.sources == ("dataset/valid/valid_1/valid_1_a/valid_1_a_1.nii.gz",)
    assert again.problem_message == (
        "valid_1_a_1: dataset/valid_fixed/valid_1/valid_1_a/valid_1_a_1.nii.gz has this name too; "
        "rename or remove one"
    )


def test_odd_names_are_rows_with_safe_ids(root: Path, base: Path) -> None:
    write_blank_nifti(base / "train/odd/scan (copy) é.nii.gz")
    write_dicom(base / "train/odd/loose", patient="Y", uid="1.2.5")
    rows = _rows(root)
    odd = f"scan_copy__{hashlib.sha256('scan (copy) é'.encode()).hexdigest()[:8]}"
    assert rows[odd].problem == "NO_METADATA"
    assert rows["loose"].problem is None
    assert rows["loose"].patient == "loose"


def test_patient_in_both_parts_is_refused(root: Path, base: Path) -> None:
    write_blank_nifti(base / "valid/train_1/train_1_b/train_1_b_1.nii.gz")
    spec = CatalogSpec(dataset="ct_rate", shards={"train": 1, "tune": 1, "valid": 1})
    with pytest.raises(DatasetError, match="patient train_1 is in train and in valid"):
        build_catalog(root, spec)


def test_missing_parts_and_tables_name_the_way_out(root: Path, base: Path) -> None:
    (base / "vqa/train_vqa.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"train_vqa\.json: not a list of questions"):
        _rows(root)
    (base / "vqa/train_vqa.json").write_text("[")
    with pytest.raises(DatasetError, match=r"train_vqa\.json: cannot be read"):
        _rows(root)
    (base / "vqa/train_vqa.json").unlink()
    (base / "metadata/train_metadata.csv").unlink()
    with pytest.raises(DatasetError, match=r"train_metadata\.csv: missing.*train_fixed/ instead"):
        _rows(root)
    with pytest.raises(DatasetError, match=r"no folder train_fixed, .*catalog\.dataset: folder"):
        _rows(base / "metadata")


def test_many_volumes_are_joined_in_little_time(tmp_path: Path) -> None:
    names = [f"train_{i}_a_1.nii.gz" for i in range(1000)]
    template = tmp_path / "dataset/train/train_0/train_0_a/train_0_a_1.nii.gz"
    write_blank_nifti(template)
    for name in names[1:]:
        scan, patient = name.rsplit("_", 1)[0], name.rsplit("_", 2)[0]
        folder = tmp_path / "dataset/train" / patient / scan
        folder.mkdir(parents=True)
        (folder / name).hardlink_to(template)
    table = tmp_path / "dataset/metadata/train_metadata.csv"
    write_csv(table, METADATA_COLUMNS, [metadata_row(name) for name in names])
    spec = CatalogSpec(dataset="ct_rate", shards={"train": 9, "tune": 3, "valid": 1})
    start = time.process_time()
    frame = build_catalog(tmp_path, spec)
    # A look-up that walks the table for every row would take minutes.
    assert time.process_time() - start < 10
    assert len(frame) == 1000
    assert frame["problem"].isna().all()
