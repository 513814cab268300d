"""What identifies a person stays in the raw files, the logs and the private table."""

import json
import logging
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian

from ct3dlib.cohort.catalog import write_catalog
from ct3dlib.cohort.private import TABLE
from ct3dlib.cohort.pseudonyms import Pseudonyms
from ct3dlib.cohort.shard import store_shard
from ct3dlib.cohort.split import load_assignments, save_assignments
from ct3dlib.config import CatalogSpec, RecipeSpec
from ct3dlib.datasets import build_catalog
from ct3dlib.datasets.folder import read_folder
from ct3dlib.errors import DatasetError, StoreError
from ct3dlib.scan.dicom_facts import ALLOWED, facts_of
from ct3dlib.scan.dicom_file import quiet

SHARDS = {"train": 1, "tune": 1, "valid": 1}
RECIPE = RecipeSpec(spacing=(4.0, 3.0, 3.0), min_slices=4)
WORD, NUMBER, UID, DAY = "MARKER", "1770177017", "1.2.77017.7", "19770117"
TIME = "170117.770177"
# Strings of each kind of value that say where they came from.
MARKERS: dict[str, str | bytes | int | float] = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"), WORD),
    **dict.fromkeys(("DA", "DT"), DAY),
    **dict.fromkeys(("DS", "IS"), NUMBER),
    **dict.fromkeys(("FD", "FL"), 1770177017.0),
    **dict.fromkeys(("OB", "UN"), WORD.encode()),
    **dict.fromkeys(("SL", "SV", "UL", "UV"), 1770177017),
    "AS": "077Y",
    "TM": TIME,
    "UI": UID,
}
# What the reader needs in its true form, and the words that scanners call themselves by.
NEEDED = {
    *("AcquisitionNumber", "BitsAllocated", "BitsStored", "Columns", "HighBit"),
    *("ImageOrientationPatient", "ImagePositionPatient", "ImageType", "Modality"),
    *("NumberOfFrames", "PhotometricInterpretation", "PixelRepresentation", "PixelSpacing"),
    *("PlanarConfiguration", "RescaleIntercept", "RescaleSlope", "RescaleType", "Rows"),
    *(
        "SpecificCharacterSet",
        "SamplesPerPixel",
        "SOPClassUID",
        "SOPInstanceUID",
        "TemporalPositionIdentifier",
    ),
}
KEPT = {*ALLOWED} - {"ContrastBolusAgent", "PatientAge", "PatientSex"}


def marked() -> Dataset:
    """Return a CT slice with a marker in every tag of the dictionary, private ones too."""
    dataset = Dataset()
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        group = Tag(tag).group
        usable = vr in MARKERS and keyword and 0x0008 <= group < 0x7FE0
        if usable and not {keyword} & (NEEDED | KEPT):
            dataset.add_new(tag, vr, MARKERS[vr])
    person = Dataset()
    person.PersonName, person.PatientID = WORD, WORD
    dataset.ReferencedPatientSequence = [person]
    dataset.private_block(0x0029, "MARKER", create=True).add_new(1, "LO", WORD)
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.Modality = "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1
    dataset.PixelSpacing, dataset.ImageOrientationPatient = [4, 4], [1, 0, 0, 0, 1, 0]
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.KVP, dataset.Manufacturer, dataset.SliceThickness = 120, "Scanner maker", "4.0"
    dataset.PatientAge, dataset.PatientSex, dataset.ContrastBolusAgent = "097Y", "F", WORD
    return dataset


def chest(seed: int) -> np.ndarray:
    """Return HU of soft tissue in air, D H W."""
    hu = np.random.default_rng(seed).normal(-1000, 5, (8, 24, 20))
    hu[:, 4:-4, 4:-4] += 1040
    return hu.astype(np.int16)


def write_series(folder: Path, seed: int) -> None:
    """Write one series of marked slices."""
    folder.mkdir(parents=True)
    dataset = marked()
    dataset.SeriesInstanceUID = f"{UID}.{seed}"
    for number, plane in enumerate(chest(seed)):
        dataset.SOPInstanceUID = f"{UID}.{seed}.{number}"
        dataset.Rows, dataset.Columns = plane.shape
        dataset.ImagePositionPatient = [0, 0, 4 * number]
        dataset.PixelData = plane.tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        pydicom.dcmwrite(folder / f"{number}.dcm", dataset, enforce_file_format=True)


def write_nifti(path: Path, seed: int) -> None:
    """Write a NIfTI file with markers in all free text of its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(chest(seed).T, np.diag([4.0, 4, 4, 1]))
    for name in ("descrip", "db_name", "aux_file", "intent_name"):
        image.header[name] = WORD.encode()
    nibabel.save(image, path)


@dataclass(frozen=True)
class Run:
    """A small run: the catalog, the status tables, and all text that was written."""

    catalog: pd.DataFrame
    status: pd.DataFrame
    texts: dict[str, str]


def run(root: Path, out: Path, *, pseudonymise: bool, split_csv: str | None = None) -> Run:
    """Catalog and store a folder as the rules do."""
    spec = CatalogSpec(
        dataset="folder", shards=SHARDS, pseudonymise=pseudonymise, split_csv=split_csv
    )
    catalog = build_catalog(root, spec, names=Pseudonyms(out / "private/key"))
    write_catalog(catalog, out / "catalog.parquet", shard_dir=out / "shards", shards=spec.shards)
    tables = [
        store_shard(
            catalog.loc[catalog["split"] == split],
            root,
            recipe=RECIPE,
            code="1",
            status=out / f"volumes/{split}/0000.parquet",
            private=out / "private",
        )
        for split in SHARDS
    ]
    return Run(catalog, pd.concat(tables), dict(written(out)))


def written(out: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of every file that may be passed on, file names included."""
    for path in out.rglob("*"):
        if path.is_file() and "private" not in path.parts:
            where = path.relative_to(out).as_posix()
            whole = path.read_bytes().decode("latin-1")
            table = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else ""
            yield where, f"{where} {table} {whole}"


def test_no_tag_but_the_allowed_ones_leaves_a_dicom_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for number in range(3):
        write_series(tmp_path / f"raw/series{number}", number)
    for number in range(2):
        write_nifti(tmp_path / f"raw/scan{number}.nii.gz", number)
    header = pydicom.dcmread(tmp_path / "raw/series0/0.dcm")
    assert sum("7701" in str(element.value) for element in header) > 400
    assert sum(WORD in str(element.value) for element in header) > 1000
    found = run(tmp_path / "raw", tmp_path / "out", pseudonymise=False)
    assert found.status["message"].tolist() == [""] * 5
    for where, text in {**found.texts, "log": caplog.text}.items():
        for marker in (WORD, NUMBER, "77017.7", DAY, "077Y", "097Y", TIME):
            assert marker not in text, (where, marker)
    metadata = json.loads(found.catalog.query("kind == 'dicom'")["metadata"].iloc[0])
    assert metadata == {
        "ContrastBolusAgent": "yes",
        "ImageType": "ORIGINAL\\PRIMARY\\AXIAL",
        "KVP": 120.0,
        "Manufacturer": "Scanner maker",
        "PatientAge": "090Y",
        "PatientSex": "F",
        "PhotometricInterpretation": "MONOCHROME2",
        "SliceThickness": 4.0,
    }


def test_a_tag_that_holds_something_else_is_left_out() -> None:
    dataset = Dataset()
    with quiet():
        dataset.PatientSex, dataset.PatientAge = "Jane Doe", "about 50"
        dataset.ConvolutionKernel = ["B30f", "3"]
        dataset.LossyImageCompressionRatio = [2.5, 3.5]
        dataset.BodyPartExamined = "chest of Jane"
        facts = facts_of(dataset)
    assert facts == {
        "ConvolutionKernel": "B30f\\3",
        "LossyImageCompressionRatio": 2.5,
    }
    assert facts_of({"PatientAge": "089Y", "KVP": "no number", "Exposure": "nan"}) == {
        "PatientAge": "089Y"
    }


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Write a tree whose paths carry names, in files good and bad, and tables that name them."""
    root = tmp_path / "Clinic-Smith"
    write_series(root / "Doe^Jane/Chest of Jane", 1)
    for number, name in enumerate(["Miller_Tom", "Brown_Ann", "Green_Sue", "Black_Max"]):
        write_nifti(root / name / f"{name} 2020-01-02.nii.gz", number)
    (root / "Black_Max/Black_Max 2020-01-02.nii.gz").write_bytes(b"")
    (root / "Doe^Jane/Chest of Jane/damaged.dcm").write_bytes(bytes(128) + b"DICM")
    (root / "White_Eva").mkdir()
    (root / "White_Eva/White_Eva.nii.gz").symlink_to("nowhere")
    (root / "metadata.csv").write_text(
        "VolumeName,RescaleSlope,RescaleIntercept,XYSpacing,ZSpacing,PatientName,PatientAge\n"
        "Miller_Tom 2020-01-02.nii.gz,1,0,4,4,Miller,093Y\n"
    )
    (root / "split.csv").write_text(
        "VolumeName,split,patient\nBrown_Ann 2020-01-02.nii.gz,valid,Brown_Ann\n"
    )
    return root


PEOPLE = ("Doe", "Jane", "Miller", "Tom_", "Brown", "Green", "Sue", "Black", "Max", "White", "Eva")


def test_a_pseudonymised_run_names_nobody(raw: Path, tmp_path: Path) -> None:
    found = run(raw, tmp_path / "out", pseudonymise=True, split_csv="split.csv")
    for where, text in found.texts.items():
        for name in (*PEOPLE, "Clinic", "Chest of", "2020-01-02", "093Y", WORD):
            assert name not in text, (where, name)
    assert found.status["status"].value_counts().to_dict() == {"stored": 4, "rejected": 3}
    bad = found.status.query("status == 'rejected'").set_index("reason")["message"]
    for reason in ("FILE_MISSING", "FILE_TRUNCATED"):
        assert re.match(rf"v[0-9a-f]{{12}}:0: {reason}; the log says more", bad[reason])


def test_the_private_table_tells_which_scan_a_volume_is(raw: Path, tmp_path: Path) -> None:
    found = run(raw, tmp_path / "out", pseudonymise=True, split_csv="split.csv")
    private = tmp_path / "out/private" / TABLE
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    told = pq.read_table(private).to_pandas().set_index("volume")
    assert set(told.index) == set(found.catalog["volume"])
    named = {row["name"]: row for row in told.to_dict("records")}
    plain = build_catalog(raw, CatalogSpec(dataset="folder", shards=SHARDS, split_csv="split.csv"))
    nifti = plain.loc[plain["kind"] == "nifti"]
    for row in nifti.to_dict("records"):
        hidden = named[row["volume"]]
        for column in ("study", "patient", "metadata", "mtime_ns"):
            assert hidden[column] == row[column], column
        assert list(hidden["sources"]) == list(row["sources"])
    brown = told.query("patient == 'Brown_Ann'").index[0]
    assert found.catalog.set_index("volume").loc[brown, "split"] == "valid"
    tom = told.query("patient == 'Miller_Tom'").index[0]
    kept = json.loads(found.catalog.set_index("volume").loc[tom, "metadata"])
    assert kept == {"PatientAge": "090Y"}


def test_pseudonyms_stay_when_volumes_come_and_go(raw: Path, tmp_path: Path) -> None:
    before = run(raw, tmp_path / "out", pseudonymise=True)
    write_nifti(raw / "Aaron_Al/Aaron_Al.nii.gz", 9)
    gone = raw / "Green_Sue/Green_Sue 2020-01-02.nii.gz"
    gone.unlink()
    after = run(raw, tmp_path / "out", pseudonymise=True)
    old, new = set(before.catalog["volume"]), set(after.catalog["volume"])
    assert (len(old - new), len(new - old)) == (1, 1)
    told = pq.read_table(tmp_path / "out/private" / TABLE).to_pandas()
    assert set(told["volume"]) == old | new


def test_a_changed_file_is_seen_though_its_time_is_hidden(raw: Path, tmp_path: Path) -> None:
    scan = raw / "Green_Sue/Green_Sue 2020-01-02.nii.gz"
    before = run(raw, tmp_path / "out", pseudonymise=True).catalog.set_index("volume")["mtime_ns"]
    again = run(raw, tmp_path / "out", pseudonymise=True).catalog.set_index("volume")["mtime_ns"]
    assert before.equals(again)
    assert scan.stat().st_mtime_ns not in set(before)
    write_nifti(scan, 12)
    after = run(raw, tmp_path / "out", pseudonymise=True).catalog.set_index("volume")["mtime_ns"]
    assert (before != after).sum() == 1


def test_without_the_private_table_a_shard_ends_with_the_way_out(raw: Path, tmp_path: Path) -> None:
    found = run(raw, tmp_path / "out", pseudonymise=True)
    (tmp_path / "out/private" / TABLE).unlink()
    with pytest.raises(StoreError, match=r"names\.parquet: cannot be read .*bring the private"):
        store_shard(
            found.catalog,
            raw,
            recipe=RECIPE,
            code="2",
            status=tmp_path / "other.parquet",
            private=tmp_path / "out/private",
        )


def _leak(tag: str, value: object) -> Callable[[Dataset], None]:
    """Return a change of a slice: one tag holds something that is not for it."""

    def change(dataset: Dataset) -> None:
        with quiet():
            setattr(dataset, tag, value)

    return change


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("Modality", "LEAK JOHN"),
        ("RescaleType", "LEAK JANE"),
        ("PhotometricInterpretation", "LEAK"),
    ],
    ids=["modality", "unit", "photometric"],
)
def test_messages_of_rejected_series_hold_no_value_of_a_tag(
    tmp_path: Path, tag: str, value: str
) -> None:
    for number in range(3):
        write_series(tmp_path / f"raw/series{number}", number)
        write_nifti(tmp_path / f"raw/scan{number}.nii.gz", number)
    for path in (tmp_path / "raw/series0").iterdir():
        dataset = pydicom.dcmread(path)
        _leak(tag, value)(dataset)
        with quiet():
            dataset.save_as(path)
    found = run(tmp_path / "raw", tmp_path / "out", pseudonymise=False)
    assert found.status["status"].value_counts().to_dict() == {"stored": 5, "rejected": 1}
    for where, text in found.texts.items():
        assert "LEAK" not in text, where


def test_pseudonyms_are_for_an_empty_folder(raw: Path, tmp_path: Path) -> None:
    spec = CatalogSpec(dataset="folder", shards=SHARDS)
    path = tmp_path / "assignments.json"
    save_assignments(path, {"Brown_Ann": "train"}, spec=spec)
    hidden = CatalogSpec(dataset="folder", shards=SHARDS, pseudonymise=True)
    names = Pseudonyms(tmp_path / "private/key")
    with pytest.raises(DatasetError, match=r"pseudonymise False, .* start in an empty folder"):
        build_catalog(raw, hidden, names=names, previous=load_assignments(path))
    save_assignments(path, {}, spec=hidden)
    assert load_assignments(path).pseudonymised
    with pytest.raises(DatasetError, match="pseudonymise True"):
        build_catalog(raw, spec, previous=load_assignments(path))


def test_a_damaged_private_table_is_named(raw: Path, tmp_path: Path) -> None:
    run(raw, tmp_path / "out", pseudonymise=True)
    (tmp_path / "out/private" / TABLE).write_bytes(b"no table")
    with pytest.raises(StoreError, match=r"names\.parquet: cannot be read .* bring the private"):
        run(raw, tmp_path / "out", pseudonymise=True)


def test_two_people_with_one_series_uid_are_two_series(tmp_path: Path) -> None:
    write_series(tmp_path / "raw/both", 1)
    paths = sorted((tmp_path / "raw/both").iterdir())
    for path in paths[:4]:
        dataset = pydicom.dcmread(path)
        dataset.PatientID = "another"
        dataset.save_as(path)
    rows = list(read_folder(tmp_path / "raw"))
    assert [(row.problem, len(row.sources)) for row in rows] == [(None, 4)] * 2
    assert len({row.patient for row in rows}) == len({row.volume for row in rows}) == 2
