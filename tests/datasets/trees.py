"""Tiny raw trees for the tests of readers."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from ct3dlib.cohort.labels import LABELS

SHAPE_XYZ = (6, 5, 9)


def write_blank_nifti(path: Path, shape: tuple[int, ...] = SHAPE_XYZ) -> None:
    """Write stored values under a blank header, axes x y z."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(np.zeros(shape, np.int16), None)
    nibabel.save(image, path)


def write_nifti(path: Path, affine: np.ndarray, shape: tuple[int, ...] = SHAPE_XYZ) -> None:
    """Write a volume whose header states its geometry, RAS; its voxels rise from 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def write_dicom(folder: Path, *, patient: str, uid: str, num_slices: int = 9) -> None:
    """Write an axial CT series of 5 rows, 6 columns, steps (2, 0.8, 0.8) mm."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"{uid}.{number + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_ = pydicom.Dataset()
        slice_.file_meta = meta
        slice_.SOPClassUID = CTImageStorage
        slice_.SOPInstanceUID = f"{uid}.{number + 1}"
        slice_.SeriesInstanceUID = uid
        slice_.StudyInstanceUID = f"{uid}.0"
        slice_.FrameOfReferenceUID = f"{uid}.9"
        slice_.Modality = "CT"
        slice_.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        slice_.PatientID = patient
        slice_.InstanceNumber = number + 1
        slice_.Rows, slice_.Columns = 5, 6
        slice_.PixelSpacing = [0.8, 0.8]
        slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        slice_.ImagePositionPatient = [-2.0, -2.0, 2.0 * number]
        slice_.SliceThickness = 2.0
        slice_.SamplesPerPixel = 1
        slice_.PhotometricInterpretation = "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 12, 11
        slice_.PixelRepresentation = 0
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
        slice_.PixelData = np.zeros((5, 6), np.uint16).tobytes()
        slice_.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a CSV with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(rows)


METADATA_COLUMNS = (
    "VolumeName",
    "Manufacturer",
    "XYSpacing",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "ZSpacing",
)


def metadata_row(name: str, **cells: object) -> list[object]:
    """Return a row of CT-RATE's metadata, cells replaced by name."""
    values: Mapping[str, object] = {
        "VolumeName": name,
        "Manufacturer": "Philips",
        "XYSpacing": "[0.75, 0.75]",
        "RescaleIntercept": -1024,
        "RescaleSlope": 1,
        "RescaleType": "",
        "ZSpacing": 1.5,
        **cells,
    }
    return [values[column] for column in METADATA_COLUMNS]


def write_ct_rate(base: Path, *, fixed: bool = False) -> None:
    """Write 5 train and 2 valid volumes of 4 and 2 patients, one of them DICOM, and all tables.

    Patient train_1 has two reconstructions of one scan; train_4_a_1 is DICOM.
    """
    names = {
        "train": ["train_1_a_1", "train_1_a_2", "train_2_a_1", "train_3_b_1", "train_4_a_1"],
        "valid": ["valid_1_a_1", "valid_2_a_1"],
    }
    affine = np.diag([-0.75, -0.75, 1.5, 1.0])
    for part, volumes in names.items():
        for volume in volumes:
            patient, scan = volume.rsplit("_", 2)[0], volume.rsplit("_", 1)[0]
            place = base / (f"{part}_fixed" if fixed else part) / patient / scan
            if volume == "train_4_a_1":
                write_dicom(place / volume, patient="X", uid="1.2.3.4")
            elif fixed:
                write_nifti(place / f"{volume}.nii.gz", affine)
            else:
                write_blank_nifti(place / f"{volume}.nii.gz")
        _write_tables(base, part, volumes)
    vqa = [
        {"volumename": "train_1_a_1.nii.gz", "question": "Is there a nodule?", "answer": "No."},
        {"volumename": "train_1_a_1.nii.gz", "question": "Second?", "answer": "Yes."},
    ]
    (base / "vqa").mkdir()
    (base / "vqa/train_vqa.json").write_text(json.dumps(vqa))


def _write_tables(base: Path, part: str, volumes: Sequence[str]) -> None:
    """Write metadata, reports and labels of one part; volume i has label i."""
    long = "validation" if part == "valid" else part
    files = [f"{v.replace('valid_', f'{long}_')}.nii.gz" for v in volumes]
    write_csv(
        base / f"metadata/{long}_metadata.csv",
        METADATA_COLUMNS,
        [metadata_row(file) for file in files],
    )
    write_csv(
        base / f"radiology_text_reports/{long}_reports.csv",
        ("VolumeName", "Findings_EN", "Impressions_EN"),
        [(file, f'"Findings of {file}."', "Not given.") for file in files],
    )
    write_csv(
        base / f"multi_abnormality_labels/{part}_predicted_labels.csv",
        ("VolumeName", *LABELS),
        [(f"{v}.nii.gz", *(int(i == j) for j in range(18))) for i, v in enumerate(volumes)],
    )


def write_folder(root: Path) -> None:
    """Write 4 NIfTI volumes and 1 DICOM series of 4 patients; LIDC-7 has both kinds."""
    affine = np.diag([-0.8, -0.8, 2.0, 1.0])
    write_nifti(root / "LIDC-7_resampled.nii.gz", affine)
    write_nifti(root / "bids/sub-03/ct/sub-03_ct.nii.gz", affine)
    write_nifti(root / "rate/valid_9_a_1.nii.gz", affine)
    write_nifti(root / "other scans/Müller (1).nii", affine)
    write_dicom(root / "LIDC/series", patient="LIDC-7", uid="1.2.840.7")


BRATS_AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])


def write_brats_patient(
    folder: Path, parts: Sequence[str] = ("t1", "t1ce", "t2", "flair", "seg"), *, join: str = "_"
) -> None:
    """Write NIfTI files called after their folder and what they are."""
    for part in parts:
        write_nifti(folder / f"{folder.name}{join}{part}.nii.gz", BRATS_AFFINE)


def write_brats(root: Path) -> None:
    """Write 5 patients, 19 modalities and 4 masks; two releases, one visit of 2023 each."""
    for number in (1, 2):
        write_brats_patient(root / f"MICCAI_2020/HGG/BraTS20_Training_{number:03d}")
    write_brats_patient(root / "MICCAI_2020/LGG/BraTS20_Training_003", ("t1", "t2", "flair"))
    names = ("t1n", "t1c", "t2w", "t2f", "seg")
    for number in (4, 5):
        write_brats_patient(root / f"2023/BraTS-GLI-{number:05d}-000", names, join="-")


def write_medmnist3d(root: Path, name: str = "organmnist3d") -> None:
    """Write one set of 20, 2 and 3 volumes; the labels are 0, 1, 0, 1 and so on."""
    arrays = {}
    for part, number in (("train", 20), ("val", 2), ("test", 3)):
        arrays[f"{part}_images"] = np.zeros((number, 9, 5, 6), np.uint8)
        arrays[f"{part}_labels"] = np.arange(number, dtype=np.uint8)[:, None] % 2
    root.mkdir(parents=True, exist_ok=True)
    np.savez(root / f"{name}.npz", **arrays)


def write_picture(path: Path) -> None:
    """Write a colour picture of 5 rows and 6 columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((5, 6, 3), 90, np.uint8)).save(path)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


OMNIABNORM = ("12_1_0_7", "12_2_0_3", "13_1_0_5", "14_1_0_2")


def omniabnorm_entry(name: str) -> dict[str, object]:
    """Return the entry of a case with two abnormalities, paths those of another machine."""
    return {
        "image": f"/home/someone/data/image/{name}",
        "context": list(range(-4, 5)),
        "mask": f"/home/someone/data/mask/{name}",
        "abnormality": [
            {"id": 1, "description": f"Cyst of {name}.", "category": "cyst"},
            {"id": 0, "description": "Stone.", "category": "stone"},
        ],
    }


def write_omniabnorm(root: Path, names: Sequence[str] = OMNIABNORM) -> None:
    """Write cases of 9 slices and 2 masks, one of each id of `names`."""
    for name in names:
        for offset in range(-4, 5):
            write_picture(root / f"image/{name}/{offset}.{'jpeg' if offset % 2 else 'jpg'}")
        for abnormality in (0, 1):
            write_picture(root / f"mask/{name}/{abnormality}.jpeg")
    write_json(root / f"{names[0]}.json", {name: omniabnorm_entry(name) for name in names})


def reasoning(name: str) -> dict[str, object]:
    """Return the entry of a case with two steps of reasoning."""
    steps = [{"step": 1, "text": f"Look at {name}."}, {"step": 2, "text": "A nodule."}]
    return {"case_id": name, "region": "Chest", "category": "nodule", "cot_reasoning": steps}


def write_omniabnorm_single(root: Path, names: Sequence[str] = ("a_1", "b_1", "c_1")) -> None:
    """Write cases of one picture and one mask; the last has its mask beside it."""
    for name in names:
        write_picture(root / f"images/{name}.jpg")
    for name in names[:-1]:
        write_picture(root / f"masks/{name}.jpg")
    write_picture(root / f"images/{names[-1]}_mask.jpg")
    write_json(root / f"cot/batch_{names[0]}.json", [reasoning(name) for name in names])


def cut_voxels(path: Path) -> None:
    """Damage a file's voxels and nothing that stands before them."""
    data = path.read_bytes()
    if path.suffix == ".nii":
        data = data[:352]
    elif path.suffix == ".gz":
        # Without the gzip's last bytes (checksum and length) a decoder of voxels would raise.
        data = data[:-8]
    elif path.suffix == ".npz":
        start = data.index(b"\x93NUMPY") + 200
        data = data[:start] + b"\xff" * 9 + data[start + 9 :]
    else:
        data = data[: data.rindex(b"\xff\xda") + 14]
    path.write_bytes(data)
