"""The header of one DICOM file: what series it is of, where its frames lie.

Single-frame and enhanced multi-frame files look the same from here on: frames, each with its own
position, orientation, spacing, slope and intercept.
"""

import logging
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException

from ct3dlib.errors import VolumeError
from ct3dlib.scan.dicom_facts import ALLOWED, facts_of, named_modality
from ct3dlib.scan.dicom_frame import Frame, frame_of, frame_sources, listed, rescale_type
from ct3dlib.scan.reading import JSON, check_size, cut_short
from ct3dlib.scan.tree import may_be_dicom

logger = logging.getLogger(__name__)

_TAGS = [
    *ALLOWED,
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
_DIRECTORY = "1.2.840.10008.1.3.10"  # a list of files, which are all found without it
# How a data set without a mark may start: kinds of values, or lengths of the first elements.
_FIRST_KINDS = (b"UL", b"OB", b"UI", b"CS", b"DA", b"TM", b"SH", b"LO")
_FIRST_ELEMENTS = (0x0000, 0x0001, 0x0005, 0x0008, 0x0012, 0x0013, 0x0014, 0x0016, 0x0018)
_LONGEST_FIRST = 256
# What pydicom raises on damaged files; it parses lazily, so nearly anything can come.
BROKEN = (
    ArithmeticError,
    AttributeError,
    BytesLengthException,
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
    """Return the header of a DICOM image; null for what neither looks like DICOM nor says so.

    A file without the mark behind its preamble, as old archives hold them, is parsed where it
    starts like a DICOM data set.

    Raises:
        VolumeError: `FILE_MISSING`; a DICOM file, or one that ends in .dcm, that is cut short,
            damaged, no picture, in colour or without frames: `FILE_TRUNCATED`, `FILE_UNREADABLE`,
            `NOT_CT`, `NO_GEOMETRY`, `TOO_LARGE`.
    """
    start = _start(path)
    named = path.suffix.lower() == ".dcm"
    marked = start[128:] == b"DICM"
    if not marked and not named and not (may_be_dicom(path) and _starts_like_dicom(start)):
        return None
    if not start:
        raise cut_short(path, "it is empty")
    try:
        with quiet():
            dataset = pydicom.dcmread(
                path, stop_before_pixels=True, specific_tags=_TAGS, force=not marked
            )
            if not marked and not named and "SOPClassUID" not in dataset:
                return None
            return _header(path, dataset)
    except BROKEN as error:
        # What pydicom says may hold the value of a tag.
        logger.info("%s: %s", path, error)
        raise VolumeError(
            "FILE_UNREADABLE",
            f"{path}: damaged DICOM header ({type(error).__name__}); fetch it again",
        ) from error


def _start(path: Path) -> bytes:
    """Return a file's preamble and mark."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise VolumeError("FILE_UNREADABLE", f"{path}: no regular file; remove it")
        with path.open("rb") as stream:
            return stream.read(132)
    except FileNotFoundError as error:
        what = "a link that leads nowhere" if path.is_symlink() else "no such file"
        raise VolumeError(
            "FILE_MISSING", f"{path}: {what}; put it back, or remove it and build the catalog again"
        ) from error
    except PermissionError as error:
        raise VolumeError(
            "FILE_UNREADABLE", f"{path}: no permission to read it; change its owner or mode"
        ) from error
    except OSError as error:
        raise VolumeError(
            "FILE_UNREADABLE", f"{path}: {error.strerror}; check the disk and fetch it again"
        ) from error


def _starts_like_dicom(start: bytes) -> bool:
    """Return whether a file starts with an element of group 0002 or 0008 (DICOM PS3.5, 7.1)."""
    if start[:2] not in (b"\x02\x00", b"\x08\x00"):
        return False
    if start[4:6] in _FIRST_KINDS:
        return True
    element, length = struct.unpack("<HI", start[2:8].ljust(6, b"\xff"))
    return element in _FIRST_ELEMENTS and 0 < length <= _LONGEST_FIRST and length % 2 == 0


def _header(path: Path, dataset: Dataset) -> Header | None:
    """Turn a parsed header into ours."""
    meta = getattr(dataset, "file_meta", Dataset())
    modality = str(dataset.get("Modality") or "").upper()
    if "Rows" not in dataset or "Columns" not in dataset:
        kinds = meta.get("MediaStorageSOPClassUID"), dataset.get("SOPClassUID")
        kind = next((str(kind) for kind in kinds if kind), "")
        if kind == _DIRECTORY:
            return None
        raise _no_picture(path, kind, modality)
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise VolumeError("NOT_CT", f"{path}: a colour picture, wanted CT; drop it")
    count = int(dataset.get("NumberOfFrames") or 1)
    multi = count > 1 or "PerFrameFunctionalGroupsSequence" in dataset
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    check_size(path, (count, rows, columns))
    if multi and modality not in ("CT", ""):  # other modalities keep their positions elsewhere
        raise VolumeError("NOT_CT", f"{path}: {named_modality(modality)}; drop it")
    sources = frame_sources(path, dataset, count) if multi else [[dataset]]
    return Header(
        path=path,
        uid=str(dataset.get("SeriesInstanceUID") or ""),
        patient=str(dataset.get("PatientID") or ""),
        modality=modality,
        image_type=tuple(str(part).upper() for part in listed(dataset.get("ImageType"))),
        acquisition="/".join(
            str(dataset.get(tag, "")) for tag in ("AcquisitionNumber", "TemporalPositionIdentifier")
        ),
        multi_frame=multi,
        rows=rows,
        columns=columns,
        syntax=str(meta.get("TransferSyntaxUID") or ""),
        rescale_type=rescale_type(sources[0]),
        frames=tuple(frame_of(index, held) for index, held in enumerate(sources)),
        facts=facts_of(dataset),
    )


def _no_picture(path: Path, kind: str, modality: str) -> VolumeError:
    """Return the error of a file without rows and columns, whose SOP class is `kind`."""
    if kind.startswith(_CT_CLASSES):
        return VolumeError(
            "FILE_TRUNCATED", f"{path}: the file ends within its header; fetch it again"
        )
    if kind:
        return VolumeError("NOT_CT", f"{path}: no picture, {named_modality(modality)}; drop it")
    return VolumeError(
        "FILE_UNREADABLE", f"{path}: no DICOM image, whatever its name says; fetch or remove it"
    )
