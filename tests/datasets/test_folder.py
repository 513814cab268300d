import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ct3dlib.cohort.catalog import Row
from ct3dlib.cohort.pseudonyms import UNKEYED
from ct3dlib.config import CatalogSpec
from ct3dlib.datasets import build_catalog, read_dataset
from ct3dlib.errors import DatasetError
from tests.datasets.trees import (
    write_blank_nifti,
    write_csv,
    write_dicom,
    write_folder,
    write_nifti,
)

AFFINE = np.diag([-0.8, -0.8, 2.0, 1.0])
SCAN = hashlib.sha256("other scans/Müller (1)".encode()).hexdigest()[:8]
LIDC = UNKEYED.of("patient", "LIDC-7")


def _rows(root: Path) -> dict[str, Row]:
    rows = list(read_dataset("folder", root))
    by_id = {row.volume: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


def _spec(split_csv: str | None = None) -> CatalogSpec:
    shards = {"train": 2, "tune": 1, "valid": 1}
    return CatalogSpec.model_validate(
        {"dataset": "folder", "shards": shards, "split_csv": split_csv}
    )


def test_ids_come_from_paths_and_patients_from_names(tmp_path: Path) -> None:
    write_folder(tmp_path)
    rows = _rows(tmp_path)
    uid = UNKEYED.of("series", "1.2.840.7 LIDC-7")
    assert {volume: row.patient for volume, row in rows.items()} == {
        "LIDC-7_resampled": LIDC,
        f"LIDC_series_{uid}": LIDC,
        "bids_sub-03_ct_sub-03_ct": "sub-03",
        "rate_valid_9_a_1": "valid_9",
        f"other_scans_M_ller_1__{SCAN}": "other_scans",
    }
    assert all(row.spacing == pytest.approx((2.0, 0.8, 0.8)) for row in rows.values())
    assert "LIDC-7" not in rows[f"LIDC_series_{uid}"].patient


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("LIDC-7.nii.gz", True),
        ("LIDC-7_b.nii.gz", True),
        ("sub/LIDC-7/scan.nii.gz", True),
        ("LIDC-77.nii.gz", False),
        ("LIDC-7a.nii.gz", False),
        ("xLIDC-7.nii.gz", False),
    ],
)
def test_nifti_named_after_a_dicom_patient_is_the_same_patient(
    tmp_path: Path, name: str, same: bool
) -> None:
    write_dicom(tmp_path / "series", patient="LIDC-7", uid="1.2")
    write_nifti(tmp_path / name, AFFINE)
    row = next(row for row in _rows(tmp_path).values() if row.kind == "nifti")
    assert (row.patient == LIDC) is same


def test_the_longest_known_patient_counts(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a", patient="P-1", uid="1.2")
    write_dicom(tmp_path / "b", patient="P", uid="1.3")
    write_nifti(tmp_path / "P-1_ct.nii", AFFINE)
    assert _rows(tmp_path)["P-1_ct"].patient == UNKEYED.of("patient", "P-1")


def test_files_called_alike_are_told_apart_by_their_folder(tmp_path: Path) -> None:
    for name in ("s1/ct.nii.gz", "s1/late.nii.gz", "s2/ct.nii.gz", "lone/x.nii.gz"):
        write_nifti(tmp_path / name, AFFINE)
    patients = {row.volume: row.patient for row in _rows(tmp_path).values()}
    assert patients == {"s1_ct": "s1", "s1_late": "s1", "s2_ct": "s2", "lone_x": "lone"}


def test_two_series_in_one_folder_are_two_volumes(tmp_path: Path) -> None:
    write_dicom(tmp_path / "mixed", patient="A", uid="1.2.1", num_slices=4)
    for path in list((tmp_path / "mixed").iterdir()):
        path.rename(path.with_name(f"first_{path.name}"))
    write_dicom(tmp_path / "mixed", patient="A", uid="1.2.2", num_slices=5)
    rows = list(_rows(tmp_path).values())
    assert sorted(len(row.sources) for row in rows) == [4, 5]
    assert len({row.patient for row in rows}) == 1


def test_colliding_ids_stay_unique(tmp_path: Path) -> None:
    for name in ("a/b_c.nii.gz", "a_b/c.nii.gz", "a_b_c.nii", "a_b_c-2.nii"):
        write_nifti(tmp_path / name, AFFINE)
    rows = _rows(tmp_path)
    hashes = [hashlib.sha256(key.encode()).hexdigest()[:8] for key in ("a_b/c", "a_b_c")]
    assert {volume: row.sources for volume, row in rows.items()} == {
        "a_b_c": ("a/b_c.nii.gz",),
        f"a_b_c-{hashes[0]}": ("a_b/c.nii.gz",),
        f"a_b_c-{hashes[1]}": ("a_b_c.nii",),
        "a_b_c-2": ("a_b_c-2.nii",),
    }
    assert not any(row.problem for row in rows.values())


def test_one_path_with_two_endings_is_a_duplicate(tmp_path: Path) -> None:
    for name in ("x.nii", "x.nii.gz", "x-2.nii"):
        write_nifti(tmp_path / name, AFFINE)
    rows = _rows(tmp_path)
    assert {volume: row.problem for volume, row in rows.items()} == {
        "x": None,
        "x-2": None,
        "x-3": "DUPLICATE_NAME",
    }
    assert rows["x-3"].problem_message == "x.nii.gz: x.nii has this name too; rename or remove one"


def test_names_in_other_scripts_are_no_duplicates(tmp_path: Path) -> None:
    for name in ("Müller.nii", "Möller.nii", "患者甲.nii", "患者乙.nii"):
        write_nifti(tmp_path / name, AFFINE)
    rows = _rows(tmp_path)
    assert len({row.patient for row in rows.values()}) == 4
    assert not any(row.problem for row in rows.values())


@pytest.mark.parametrize(
    ("name", "escaped"),
    [(b"\xff\xfe.nii.gz", r"\xff\xfe.nii.gz"), (b"d\xe9j\xe0/x.nii.gz", r"d\xe9j\xe0/x.nii.gz")],
    ids=["file", "folder"],
)
def test_a_name_that_is_no_text_is_a_rejected_row(
    tmp_path: Path, name: bytes, escaped: str
) -> None:
    for other in ("a.nii.gz", "b.nii.gz", "c.nii.gz"):
        write_nifti(tmp_path / other, AFFINE)
    place = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118  (a Path has no bytes)
    os.makedirs(os.path.dirname(place), exist_ok=True)  # noqa: PTH103, PTH120
    shutil.copyfile(os.fsencode(tmp_path / "a.nii.gz"), place)
    frame = build_catalog(tmp_path, _spec())
    (row,) = frame[frame["problem"].notna()].itertuples()
    assert (row.problem, list(row.sources)) == ("UNSAFE_NAME", [escaped])
    assert (
        row.problem_message == f"{escaped}: a name that is not UTF-8; rename the file or its folder"
    )


def test_a_pipe_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_nifti(tmp_path / "a.nii", AFFINE)
    os.mkfifo(tmp_path / "x.nii.gz")
    os.mkfifo(tmp_path / "y")
    (tmp_path / "z.nii").symlink_to("x.nii.gz")
    assert list(_rows(tmp_path)) == ["a"]
    assert "x.nii.gz: left out, it is no regular file" in caplog.text


def test_metadata_csv_that_does_not_fit_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_nifti(tmp_path / "a.nii.gz", AFFINE)
    table = tmp_path / "metadata.csv"
    table.write_text("VolumeName, RescaleSlope, RescaleIntercept\na, 2, -8192\nb, 1, 0\nc, 1, 0\n")
    row = _rows(tmp_path)["a"]
    assert (row.slope, row.intercept) == (2.0, -8192.0)
    assert "2 of 3 rows name no file below the root, the first is 'b'" in caplog.text
    caplog.clear()
    table.write_text("VolumeName,RescalSlope,RescaleIntercept,XYSpacing,ZSpacing\na,2,0,1,1\n")
    assert _rows(tmp_path)["a"].slope is None
    assert (
        "metadata.csv: no RescaleSlope; columns are VolumeName, RescalSlope, RescaleIntercept, "
        "XYSpacing, ZSpacing"
    ) in caplog.text
    assert "name no file" not in caplog.text
    caplog.clear()
    table.write_text("VolumeName,RescaleSlope,RescaleIntercept,XYSpacing,ZSpacing\na,2,0,1,1\n")
    assert _rows(tmp_path)["a"].slope == 2.0
    assert "metadata.csv" not in caplog.text


def test_metadata_csv_is_joined_by_path_or_name(tmp_path: Path) -> None:
    for name in ("s1/ct.nii.gz", "s2/ct.nii.gz", "blank.nii.gz"):
        write_blank_nifti(tmp_path / name)
    columns = ("VolumeName", "RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing")
    write_csv(
        tmp_path / "metadata.csv",
        columns,
        [("s1/ct.nii.gz", 1, -1024, "[0.5, 0.6]", 3), ("blank.nii.gz", 2, -8192, "", "")],
    )
    rows = _rows(tmp_path)
    assert (rows["s1_ct"].spacing, rows["s1_ct"].intercept) == ((3.0, 0.5, 0.6), -1024.0)
    assert (rows["s2_ct"].spacing, rows["s2_ct"].intercept) == (None, None)
    assert (rows["blank"].spacing, rows["blank"].slope) == (None, 2.0)


def test_damaged_dicom_is_a_row_with_its_problem(tmp_path: Path) -> None:
    write_dicom(tmp_path / "good", patient="A", uid="1.2")
    write_dicom(tmp_path / "thin", patient="B", uid="1.3", num_slices=1)
    for name in ("cut1.dcm", "cut2.dcm"):
        (tmp_path / "good" / name).write_bytes((tmp_path / "thin/000.dcm").read_bytes()[:300])
    rows = {row.sources[0]: row for row in _rows(tmp_path).values()}
    assert len(rows) == 3
    assert rows["good/000.dcm"].problem is None
    assert rows["thin/000.dcm"].problem == "SINGLE_SLICE"
    cut = rows["good/cut1.dcm"]
    assert cut.sources == ("good/cut1.dcm", "good/cut2.dcm")
    assert cut.problem == "FILE_TRUNCATED"
    assert "(2 files of this folder alike)" in str(cut.problem_message)


def test_split_table_gives_splits_and_patients(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path)
    write_csv(
        tmp_path / "splits.csv",
        ("VolumeName", "split", "patient"),
        [
            ("LIDC-7_resampled.nii.gz", "valid", ""),
            ("bids/sub-03/ct/sub-03_ct.nii.gz", "tune", "Ada"),
            ("rate_valid_9_a_1", "train", ""),
            ("gone.nii.gz", "train", ""),
        ],
    )
    frame = build_catalog(tmp_path, _spec("splits.csv")).set_index("volume")
    assert set(frame.loc[frame["patient"] == LIDC, "split"]) == {"valid"}
    assert (frame["patient"] == LIDC).sum() == 2
    assert frame.loc["bids_sub-03_ct_sub-03_ct", ["patient", "split"]].tolist() == ["Ada", "tune"]
    assert frame.loc["rate_valid_9_a_1", "split"] == "train"
    assert "splits.csv: 1 rows name no volume" in caplog.text


def test_split_table_names_a_dicom_series_by_folder(tmp_path: Path) -> None:
    write_folder(tmp_path)
    rows = [("LIDC/series", "tune"), ("rate_valid_9_a_1", "")]
    write_csv(tmp_path / "splits.csv", ("VolumeName", "split"), rows)
    frame = build_catalog(tmp_path, _spec("splits.csv"))
    assert set(frame.loc[frame["patient"] == LIDC, "split"]) == {"tune"}


def test_wrong_split_tables_raise(tmp_path: Path) -> None:
    write_folder(tmp_path)
    table = tmp_path / "splits.csv"
    write_csv(table, ("VolumeName", "split"), [("rate_valid_9_a_1", "test")])
    with pytest.raises(DatasetError, match="split 'test'; the splits are train, tune, valid"):
        build_catalog(tmp_path, _spec("splits.csv"))
    both = [("LIDC-7_resampled.nii.gz", "valid"), ("LIDC/series", "train")]
    write_csv(table, ("VolumeName", "split"), both)
    with pytest.raises(DatasetError, match=f"patient {LIDC} is in (valid|train) and in"):
        build_catalog(tmp_path, _spec("splits.csv"))
    with pytest.raises(DatasetError, match=r"other\.csv: cannot be read"):
        build_catalog(tmp_path, _spec("other.csv"))


def test_too_little_data_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=rf"{tmp_path}/none: no such folder; set raw_root.*\(--directory\)"
    ):
        build_catalog(tmp_path / "none", _spec())
    with pytest.raises(DatasetError, match="no NIfTI or DICOM series found"):
        build_catalog(tmp_path, _spec())
    write_nifti(tmp_path / "a.nii", AFFINE)
    with pytest.raises(DatasetError, match=r"1 found \(a\), at least 2 .*split_csv"):
        build_catalog(tmp_path, _spec())
    write_csv(tmp_path / "splits.csv", ("VolumeName", "split"), [("a.nii", "valid")])
    assert build_catalog(tmp_path, _spec("splits.csv"))["split"].tolist() == ["valid"]


@pytest.mark.real
def test_real_folder_lists_every_series(real_data: Path) -> None:
    frame = build_catalog(real_data, _spec()).set_index("volume")
    sources = [source for row in frame["sources"] for source in row]
    assert len(sources) == len(set(sources))
    nifti = {p.relative_to(real_data).as_posix() for p in real_data.rglob("*.nii.gz")}
    dicom = {p.relative_to(real_data).as_posix() for p in real_data.rglob("*.dcm")}
    assert nifti <= set(sources)
    lidc = {source for source in dicom if source.startswith("lidc_idri/")}
    assert len(lidc) == 133
    row = next(r for r in frame.itertuples() if set(r.sources) == lidc)
    assert list(row.shape) == [133, 512, 512]
    assert row.spacing == pytest.approx([2.5, 0.703125, 0.703125])
    twin = frame.loc["lidc_idri_LIDC-IDRI-0001_2p5mm"]
    assert (twin["patient"], twin["split"]) == (row.patient, row.split)
    assert list(twin["shape"]) == [133, 144, 144]
    assert frame.loc["lidc_idri_LIDC-IDRI-0002_2p5mm", "patient"] != row.patient
    assert list(frame.loc["totalsegmentator_example_ct", "shape"]) == [112, 101, 122]
    whole = frame[frame["problem"].isna() & frame["shape"].notna()]
    deep = whole[whole["shape"].str[0] >= 8]
    assert set(deep["split"]) == {"train", "tune", "valid"}
