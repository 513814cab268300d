"""DICOM series for the corpus: sound ones, whose tags and files a case then spoils."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from tests.corpus.case import body

STORED = (body() + 1024).astype(np.uint16)
STEP = 2.5

Tags = Mapping[str, Any]


def uid_of(*parts: object) -> str:
    """Return a UID that the parts alone decide."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()
    return f"1.2.826.0.1.{int(digest[:24], 16)}"


def one_slice(path: Path, number: int, stored: NDArray[Any] | None = None, **tags: Any) -> Path:
    """Write a sound axial CT slice with some tags replaced; None removes a tag."""
    pixels = STORED[number % len(STORED)] if stored is None else stored
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = uid_of(path)
    dataset.SeriesInstanceUID = uid_of(path.parent)
    dataset.StudyInstanceUID = uid_of(path.parent, "study")
    dataset.PatientID = path.parent.name
    dataset.Modality = "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.InstanceNumber = number + 1
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelSpacing = [2.5, 2.5]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [-30, -25, STEP * number]
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelData = np.ascontiguousarray(pixels).tobytes()
    dataset["PixelData"].VR = "OW"
    for tag, value in tags.items():
        if value is None:
            delattr(dataset, tag)
        else:
            setattr(dataset, tag, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def series(folder: Path, each: Callable[[int], Tags], *, numbers: range = range(10)) -> list[Path]:
    """Write a series whose n-th slice has the tags that `each` gives."""
    return [one_slice(folder / f"{n:02}.dcm", n, **each(n)) for n in numbers]


def alike(**tags: Any) -> Callable[[Path], object]:
    """Return a writer of a series whose slices all have some tags replaced."""
    return lambda folder: series(folder, lambda _: tags)


def each_its_own(each: Callable[[int], Tags]) -> Callable[[Path], object]:
    """Return a writer of a series whose tags depend on the number of the slice."""
    return lambda folder: series(folder, each)


def all_edited(change: Callable[[Dataset], object]) -> Callable[[Path], object]:
    """Return a writer of a series whose files are read, changed and saved."""

    def write(folder: Path) -> None:
        for path in series(folder, lambda _: {}):
            dataset = pydicom.dcmread(path)
            change(dataset)
            dataset.save_as(path)

    return write


def enhanced(folder: Path, *, count: int = 10, places: int = 10, **tags: Any) -> None:
    """Write one enhanced CT file; tags of the functional groups are replaced.

    Args:
        folder: Where it goes.
        count: Frames.
        places: Frames that have a position.
        tags: `orientation` of the n-th frame, `rescale_type`, or any of the file's own.
    """
    turn = tags.pop("orientation", lambda _: [1, 0, 0, 0, 1, 0])
    unit = tags.pop("rescale_type", "HU")
    shared = Dataset()
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [2.5, 2.5]
    shared.PixelValueTransformationSequence = [Dataset()]
    rescale = shared.PixelValueTransformationSequence[0]
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1024, unit
    frames = []
    for number in range(places):
        frame = Dataset()
        frame.PlanePositionSequence = [Dataset()]
        frame.PlanePositionSequence[0].ImagePositionPatient = [-30, -25, STEP * number]
        frame.PlaneOrientationSequence = [Dataset()]
        frame.PlaneOrientationSequence[0].ImageOrientationPatient = turn(number)
        frames.append(frame)
    own = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    one_slice(
        folder / "all.dcm",
        0,
        STORED[:count],
        **dict.fromkeys((*own, "RescaleSlope", "RescaleIntercept")),
        SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1",
        NumberOfFrames=count,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=frames,
        **tags,
    )
