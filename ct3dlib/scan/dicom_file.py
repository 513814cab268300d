"""The header of one DICOM file: what series it is of, where its frames lie.

Single-frame and enhanced multi-frame files look the same from here on: frames, each with its own
position, orientation, spacing, slope and intercept (DICOM PS3.3 C.7.6.2 and C.7.6.16).
"""

import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from ct3dlib.errors import VolumeError
from ct3dlib.scan.reading import JSON, check_size

_FACTS = {
    "ConvolutionKernel": "kernel",
    "KVP": "kvp",
    "LossyImageCompression": "lossy",
    "LossyImageCompressionRatio": "lossy_ratio",
    "Manufacturer": "manufacturer",
    "PatientPosition": "patient_position",
    "PhotometricInterpretation": "photometric",
    "SliceThickness": "slice_thickness",
}
_TAGS = [
    *_FACTS,
    "AcquisitionNumber",
    "Columns",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImageType",
    "Modality",
    "NumberOfFrames",
    "PatientID",
    "PerFrameFunctionalGroupsSequence",
    "PixelSpacing",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "Rows",
    "SOPClassUID",
    "SamplesPerPixel",
    "SeriesInstanceUID",
    "SharedFunctionalGroupsSequence",
    "TemporalPositionIdentifier",
]
_CT_CLASSES = "1.2.840.10008.5.1.4.1.1.2"  # CT Image Storage, and its enhanced kinds below it
# What pydicom raises on damaged files; it parses lazily, so nearly anything can come.
BROKEN = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Place:
    """Where a plane lies.

    Args:
        position: Centre of the first voxel, LPS mm.
        orientation: Direction cosines along a row, then along a column of pixels.
        spacing: Distance of rows and of columns, mm.
    """

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]


@dataclass(frozen=True)
class Frame:
    """One plane of a file.

    Args:
        index: Which of the file's planes.
        place: Where it lies; null unless the header says it all.
        rescale: Slope and intercept to HU; null where the header does not say.
    """

    index: int
    place: Place | None
    rescale: tuple[float, float] | None


@dataclass(frozen=True)
class Header:
    """What a file's header says about its series; only `patient` names a person."""

    path: Path
    uid: str
    patient: str
    modality: str
    image_type: tuple[str, ...]
    acquisition: str
    multi_frame: bool
    rows: int
    columns: int
    syntax: str
    rescale_type: str
    frames: tuple[Frame, ...]
    facts: Mapping[str, JSON]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings: half of real files bend some rule, and what matters is checked here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_header(path: Path) -> Header | None:
    """Return the header of a DICOM image; null for anything else.

    Raises:
        VolumeError: `FILE_MISSING`; a DICOM image whose header is cut short, damaged, in colour or
            without frames: `FILE_TRUNCATED`, `FILE_UNREADABLE`, `NOT_CT`, `NO_GEOMETRY`,
            `TOO_LARGE`.
    """
    if not path.is_file():
        raise VolumeError("FILE_MISSING", f"{path}: no such file; correct the catalog")
    marked = _is_marked(path)
    if not marked and path.suffix.lower() != ".dcm":
        return None
    try:
        with quiet():
            dataset = pydicom.dcmread(
                path, stop_before_pixels=True, specific_tags=_TAGS, force=not marked
            )
            return _header(path, dataset)
    except InvalidDicomError:
        return None
    except BROKEN as error:
        if not marked:
            return None
        raise VolumeError(
            "FILE_UNREADABLE", f"{path}: damaged DICOM header ({error}); fetch it again"
        ) from error


def _is_marked(path: Path) -> bool:
    """Return whether a file carries the DICOM mark behind its preamble."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError as error:
        raise VolumeError(
            "FILE_UNREADABLE", f"{path}: {error.strerror}; check its permissions"
        ) from error


def _header(path: Path, dataset: Dataset) -> Header | None:
    """Turn a parsed header into ours."""
    meta = getattr(dataset, "file_meta", Dataset())
    if "Rows" not in dataset or "Columns" not in dataset:
        kinds = meta.get("MediaStorageSOPClassUID"), dataset.get("SOPClassUID")
        if any(str(kind).startswith(_CT_CLASSES) for kind in kinds):
            raise VolumeError(
                "FILE_TRUNCATED", f"{path}: the file ends within its header; fetch it again"
            )
        return None
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise VolumeError("NOT_CT", f"{path}: a colour picture, wanted CT; drop it")
    count = int(dataset.get("NumberOfFrames") or 1)
    multi = count > 1 or "PerFrameFunctionalGroupsSequence" in dataset
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    check_size(path, (count, rows, columns))
    sources = _sources(path, dataset, count) if multi else [[dataset]]
    facts = {ours: dataset.get(theirs) for theirs, ours in _FACTS.items()}
    return Header(
        path=path,
        uid=str(dataset.get("SeriesInstanceUID") or ""),
        patient=str(dataset.get("PatientID") or ""),
        modality=str(dataset.get("Modality") or "").upper(),
        image_type=tuple(str(part).upper() for part in _listed(dataset.get("ImageType"))),
        acquisition="/".join(
            str(dataset.get(tag, "")) for tag in ("AcquisitionNumber", "TemporalPositionIdentifier")
        ),
        multi_frame=multi,
        rows=rows,
        columns=columns,
        syntax=str(meta.get("TransferSyntaxUID") or ""),
        rescale_type=_rescale_type(sources[0]),
        frames=tuple(_frame(index, held) for index, held in enumerate(sources)),
        facts={name: str(value) for name, value in facts.items() if value not in (None, "")},
    )


def _listed(value: Any) -> list[Any]:
    """Return a value of any multiplicity as a list."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _sources(path: Path, dataset: Dataset, count: int) -> list[list[Dataset]]:
    """Return the functional group macros of each frame of an enhanced multi-frame file."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if len(own) != count:
        raise VolumeError(
            "NO_GEOMETRY",
            f"{path}: {count} frames, but positions of {len(own)}; convert it to enhanced CT",
        )
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    return [_macros([group, *shared]) for group in own]


def _macros(groups: list[Dataset]) -> list[Dataset]:
    """Return the functional group macros that hold geometry and rescale, a frame's own first."""
    names = (
        "PlanePositionSequence",
        "PlaneOrientationSequence",
        "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
    )
    return [item for name in names for group in groups for item in (group.get(name) or [])[:1]]


def _frame(index: int, sources: list[Dataset]) -> Frame:
    """Return a frame from the first dataset that holds each of its values."""
    position = _numbers(sources, "ImagePositionPatient", 3)
    orientation = _numbers(sources, "ImageOrientationPatient", 6)
    spacing = _numbers(sources, "PixelSpacing", 2)
    slope = _numbers(sources, "RescaleSlope", 1)
    intercept = _numbers(sources, "RescaleIntercept", 1)
    return Frame(
        index=index,
        place=Place(position, orientation, spacing)
        if position and orientation and spacing
        else None,
        rescale=(slope[0], intercept[0]) if slope and intercept else None,
    )


def _rescale_type(sources: list[Dataset]) -> str:
    """Return the unit that rescaled values are said to have, or nothing."""
    return next((str(source.RescaleType) for source in sources if source.get("RescaleType")), "")


def _numbers(sources: list[Dataset], tag: str, count: int) -> tuple[float, ...] | None:
    """Return finite numbers of a tag, or null."""
    for source in sources:
        value = source.get(tag)
        if value is None or value == "":
            continue
        listed = list(value) if count > 1 else [value]
        numbers = tuple(float(number) for number in listed)
        return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None
    return None
