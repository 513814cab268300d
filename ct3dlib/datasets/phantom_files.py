"""Write the synthetic cohort's files as CT-RATE and scanners do: NIfTI, DICOM, tables.

The raw side on purpose: nothing here goes through the library's own readers and writers.
"""

import csv
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from ct3dlib.config import Fault
from ct3dlib.datasets.phantom_space import Grid

# Columns of the metadata table that a DICOM slice repeats under the same name.
_COPIED = (
    *("Manufacturer", "ManufacturerModelName", "SeriesDescription"),
    *("PatientSex", "PatientAge", "PatientPosition"),
)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Series:
    """What a series says about itself beside its voxels.

    Args:
        name: As `train_1_a_1`.
        patient: As `train_1`.
        grid: In the scanner's frame.
        metadata: Its row of the metadata table.
    """

    name: str
    patient: str
    grid: Grid
    metadata: Mapping[str, str | int | float]


def replace_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file or folder under a temporary name, then rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    remove(partial)
    write(partial)
    if path.is_dir():
        shutil.rmtree(path)
    partial.replace(path)


def remove(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _save(array: NDArray[Any], affine: NDArray[np.float64], *, path: Path) -> None:
    """Write D H W as x y z; the affine maps D H W to LPS."""
    to_dhw = np.eye(4)[[2, 1, 0, 3]]
    image = Nifti1Image(array.transpose(2, 1, 0), _LPS_TO_RAS @ affine @ to_dhw)
    image.to_filename(path)


def write_truth(path: Path, array: NDArray[Any], *, grid: Grid) -> None:
    """Write HU, region or lesion ids with geometry in the header, as CT-RATE version 2."""
    replace_whole(path, lambda partial: _save(array, grid.affine, path=partial))


def write_stored(path: Path, stored: NDArray[Any]) -> None:
    """Write stored values under a blank header, as CT-RATE version 1; D H W becomes x y z."""
    image = Nifti1Image(stored.transpose(2, 1, 0), np.eye(4))
    replace_whole(path, lambda partial: image.to_filename(partial))


def damage(path: Path, fault: Fault) -> None:
    """Damage a NIfTI file in place.

    Args:
        path: A .nii.gz of version 1 or 2.
        fault: `no_metadata` leaves the file alone; its row is missing.
    """
    match fault:
        case "truncated":
            whole = path.read_bytes()
            replace_whole(path, lambda partial: partial.write_bytes(whole[: len(whole) * 3 // 5]))
        case "nan" | "single_slice":
            image = Nifti1Image.from_filename(path)
            values = np.asanyarray(image.dataobj)
            if fault == "nan":
                values = values.astype(np.float32)
                values[tuple(slice(n // 3, n // 2) for n in values.shape)] = np.nan
            else:
                values = values[:, :, :1]
            spoilt = Nifti1Image(values, image.affine)
            replace_whole(path, lambda partial: spoilt.to_filename(partial))
        case "no_metadata":
            pass


def write_dicom_series(folder: Path, hu: NDArray[np.int16], *, series: Series) -> None:
    """Write a CT series, one file a slice, top slice first; identifiers follow from its name.

    Args:
        folder: Replaced as a whole.
        hu: D H W.
        series: Names, grid and metadata.
    """

    def write(partial: Path) -> None:
        partial.mkdir(parents=True)
        for number in range(1, len(hu) + 1):
            index = len(hu) - number
            dataset = _slice(hu[index], series, index=index, number=number)
            dataset.save_as(partial / f"{number:04d}.dcm", enforce_file_format=True)

    replace_whole(folder, write)


def _uid(*names: str) -> UID:
    return generate_uid(entropy_srcs=list(names))


def _slice(hu: NDArray[np.int16], series: Series, *, index: int, number: int) -> FileDataset:
    """Return the dataset of one slice of a series; `index` counts from below."""
    row, scan = series.metadata, series.name.rsplit("_", 1)[0]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(series.name, str(number))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = _uid(scan, "study")
    dataset.SeriesInstanceUID = _uid(series.name, "series")
    dataset.FrameOfReferenceUID = _uid(scan, "frame")
    dataset.PatientName = dataset.PatientID = series.patient
    dataset.PatientIdentityRemoved = "YES"
    dataset.PatientBirthDate = dataset.AccessionNumber = dataset.StudyTime = ""
    dataset.ReferringPhysicianName = dataset.PositionReferenceIndicator = ""
    dataset.StudyDate, dataset.StudyID = str(row["StudyDate"]), "1"
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SeriesNumber = int(series.name.rsplit("_", 1)[1])
    dataset.AcquisitionNumber, dataset.InstanceNumber, dataset.KVP = 1, number, "120"
    for name in _COPIED:
        setattr(dataset, name, row[name])
    dataset.ConvolutionKernel = re.findall(r"[^\[\]', ]+", str(row["ConvolutionKernel"]))
    _set_pixels(dataset, hu, intercept=int(row["RescaleIntercept"]))
    _set_place(dataset, series.grid, index=index)
    return dataset


def _set_place(dataset: FileDataset, grid: Grid, *, index: int) -> None:
    """Say where the slice `index` of a grid lies."""
    dz, dy, dx = grid.spacing
    x, y, z = grid.origin
    height = f"{z + index * dz:.6f}"
    dataset.ImagePositionPatient = [f"{x:.6f}", f"{y:.6f}", height]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.SliceLocation = height
    dataset.SliceThickness = dataset.SpacingBetweenSlices = f"{dz:.6f}"
    dataset.PixelSpacing = [f"{dy:.6f}", f"{dx:.6f}"]


def _set_pixels(dataset: FileDataset, hu: NDArray[np.int16], *, intercept: int) -> None:
    """Store HU as unsigned values above the intercept."""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = hu.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 0
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = intercept, 1, "HU"
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    dataset.PixelData = (hu.astype(np.int32) - intercept).astype("<u2").tobytes()


def write_csv(path: Path, columns: Sequence[str], *, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table with exactly these columns."""

    def write(partial: Path) -> None:
        with partial.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns, lineterminator="\n")
            table.writeheader()
            table.writerows(rows)

    replace_whole(path, write)


def write_json(path: Path, value: object) -> None:
    """Write JSON."""
    text = json.dumps(value, indent=1, sort_keys=False) + "\n"
    replace_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
