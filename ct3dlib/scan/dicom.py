"""DICOM series: found in any tree of files, read on their true geometry."""

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ct3dlib.config import Triple
from ct3dlib.errors import VolumeError
from ct3dlib.scan.dicom_file import Header, read_header
from ct3dlib.scan.dicom_layout import Layout, largest_group, lay_out
from ct3dlib.scan.dicom_pixels import read_planes
from ct3dlib.scan.reading import JSON, Reading, files_sha256
from ct3dlib.scan.volume import Volume

logger = logging.getLogger(__name__)

_PADDING = -1024  # HU; whatever lies below is no tissue, and PixelPaddingValue is often wrong
_LOW, _HIGH = -3100.0, 4100.0  # HU that the 0.1 and 99.9 percentiles of real scans stay within
_SAMPLE = 4  # every n-th row and column tells the percentiles


@dataclass(frozen=True)
class Series:
    """One series as its headers describe it; no pixel was read.

    Args:
        uid: SeriesInstanceUID; empty where a header could not be read.
        files: Its files, sorted by path.
        patient: PatientID, only to keep a patient's series in one split.
        rows: Pixels of a column.
        columns: Pixels of a row.
        num_slices: Slices, the interpolated ones included.
        spacing: (D, H, W), mm; null where the geometry has a problem.
        facts: Scanner settings and what was left out.
        problem: Reason code and message where the series cannot be read as a volume.
    """

    uid: str
    files: tuple[Path, ...]
    patient: str = ""
    rows: int = 0
    columns: int = 0
    num_slices: int = 0
    spacing: Triple | None = None
    facts: Mapping[str, JSON] = field(default_factory=dict)
    problem: tuple[str, str] | None = None


def list_series(folder: Path) -> list[Series]:
    """Return every DICOM series below a folder, from headers alone.

    Files are grouped by what they say, not by where they lie; files that are no DICOM images are
    passed over. A damaged file and a series that is no volume are listed with their problem.

    Args:
        folder: Any tree; links to folders are followed.

    Returns:
        One entry per series id and one per damaged file, sorted by first file.
    """
    found: dict[tuple[str, str], list[Header]] = defaultdict(list)
    series = []
    for path in _files(folder):
        try:
            header = read_header(path)
        except VolumeError as error:
            series.append(Series("", (path,), problem=(error.reason, str(error))))
            continue
        if header is not None:
            found[header.patient, header.uid].append(header)
    series.extend(_series(uid, headers) for (_, uid), headers in found.items())
    return sorted(series, key=lambda one: one.files)


def _files(folder: Path) -> Iterator[Path]:
    """Walk a tree in a fixed order, through links, each folder once."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            if path.is_file():
                yield path


def _series(uid: str, headers: Sequence[Header]) -> Series:
    """Describe the files that share a series id."""
    group = largest_group(headers)
    first = group[0]
    facts = dict(first.facts)
    if len(group) < len(headers):
        facts["left_out"] = len(headers) - len(group)
        logger.info("series %s: %s files left out of its volume", uid, facts["left_out"])
    problem, spacing = None, None
    num_slices = sum(len(header.frames) for header in group)
    try:
        layout = lay_out(group, _name(group))
        num_slices = layout.count
        spacing = Volume(np.zeros((1, 1, 1), np.int16), layout.affine).spacing
    except VolumeError as error:
        problem = error.reason, str(error)
    return Series(
        uid=uid,
        files=tuple(sorted(header.path for header in group)),
        patient=first.patient,
        rows=first.rows,
        columns=first.columns,
        num_slices=num_slices,
        spacing=spacing,
        facts=facts,
        problem=problem,
    )


def _name(headers: Sequence[Header]) -> str:
    """Return what messages call a series."""
    first = min(header.path for header in headers)
    return f"{first} ({len(headers)} files)" if len(headers) > 1 else str(first)


def read_dicom(files: Sequence[Path]) -> Reading:
    """Read the files of one series as one volume in HU.

    Slices are ordered by position; identical copies are dropped; one or two single slices that are
    missing are interpolated; a tilted gantry gives a sheared affine. What was done is in `facts`.

    Args:
        files: Files of one series, in any order, as `list_series` groups them.

    Returns:
        D along the slice normal, H down a column, W along a row of pixels; int16 HU, float32 where
        a slope or intercept is no integer; nothing under -1024. Where a frame has no rescale the
        values are as stored and `hu` is null.

    Raises:
        VolumeError: A reason that docs/data.md lists.
        ValueError: No files.
    """
    if not files:
        raise ValueError("a series has at least one file")
    headers = [_required(path) for path in files]
    name = _name(headers)
    layout = lay_out(headers, name)
    rescales = {frame.rescale for header in headers for frame in header.frames}
    known = None not in rescales
    array, duplicates = _stack(headers, layout, name, known=known)
    facts: dict[str, JSON] = {
        **headers[0].facts,
        "format": "dicom",
        "files": len(files),
        "slices": layout.count,
        "duplicates": duplicates,
        "interpolated": list(layout.missing),
        "tilt": round(layout.tilt, 3),
    }
    slope, intercept = (rescales.pop() if len(rescales) == 1 else None) or (None, None)
    return Reading(
        volume=Volume(array, layout.affine),
        slope=slope,
        intercept=intercept,
        hu=True if known else None,
        sha256=files_sha256(files),
        facts=facts,
        source=name,
    )


def _required(path: Path) -> Header:
    """Read the header of a file that must be a DICOM image."""
    header = read_header(path)
    if header is None:
        raise VolumeError("FILE_UNREADABLE", f"{path}: not a DICOM image; correct the catalog")
    return header


def _stack(
    headers: Sequence[Header], layout: Layout, name: str, *, known: bool
) -> tuple[NDArray[np.generic], int]:
    """Decode all frames into their slices; returns the number of identical copies dropped too."""
    rescales = [frame.rescale or (1.0, 0.0) for header in headers for frame in header.frames]
    whole = all(value.is_integer() for rescale in rescales for value in rescale)
    shape = layout.count, headers[0].rows, headers[0].columns
    stack = np.zeros(shape, dtype=np.int16 if whole else np.float32)
    filled: set[int] = set()
    sample = []
    for header in headers:
        planes = read_planes(header)
        sample.append(planes[:, ::_SAMPLE, ::_SAMPLE].ravel())
        low = _PADDING if known else np.iinfo(np.int16).min
        planes = np.clip(planes, low, np.iinfo(np.int16).max).astype(stack.dtype)
        for frame, plane in zip(header.frames, planes, strict=True):
            slot = layout.slots[header.path, frame.index]
            if slot in filled and not np.array_equal(stack[slot], plane):
                raise _repeated(layout, name)
            filled.add(slot)
            stack[slot] = plane
    _check_range(np.concatenate(sample), name, known=known)
    for slot in layout.missing:
        middle = (stack[slot - 1].astype(np.float32) + stack[slot + 1]) / 2
        stack[slot] = np.rint(middle) if whole else middle
    return stack, len(rescales) - len(filled)


def _repeated(layout: Layout, name: str) -> VolumeError:
    """Return the error of a position at which slices differ."""
    counts = Counter(layout.slots.values())
    if min(counts.values()) > 1:
        return VolumeError(
            "FOUR_D",
            f"{name}: {min(counts.values())} different slices at every position, wanted one; "
            f"split it into one series per time point",
        )
    return VolumeError(
        "DUPLICATE_POSITIONS",
        f"{name}: different slices at one position, wanted one; split or drop it",
    )


def _check_range(sample: NDArray[np.float32], name: str, *, known: bool) -> None:
    """Refuse HU that no scanner gives: the sign or the rescale of the pixels is wrong."""
    inner = sample[sample > sample.min()]  # without the padding
    if not known or not inner.size:
        return
    low, high = np.percentile(inner, [0.1, 99.9])
    if low < _LOW or high > _HIGH:
        raise VolumeError(
            "HU_OUT_OF_RANGE",
            f"{name}: values from {low:.0f} to {high:.0f}, wanted HU within {_LOW:.0f} to "
            f"{_HIGH:.0f}; its rescale or pixel representation is wrong, fetch it again",
        )
