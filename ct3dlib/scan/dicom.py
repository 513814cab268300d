"""DICOM series: found in any tree of files, read on their true geometry."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ct3dlib.config import Triple
from ct3dlib.errors import VolumeError
from ct3dlib.scan.dicom_file import Header, read_header
from ct3dlib.scan.dicom_groups import Group, group_series
from ct3dlib.scan.dicom_layout import Layout, lay_out, num_frames, series_name
from ct3dlib.scan.dicom_pixels import read_planes
from ct3dlib.scan.reading import JSON, Reading, files_sha256
from ct3dlib.scan.tree import may_be_dicom, walk
from ct3dlib.scan.volume import Volume

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
        facts: Scanner settings.
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

    Files are grouped by what they say, not by where they lie; only those without a series id are
    kept apart by folder. Files that are no DICOM images are passed over, hidden ones too. What is
    damaged, missing or no volume is listed with its problem: nothing vanishes.

    Args:
        folder: Any tree; links to folders are followed.

    Returns:
        One entry per volume, one per group of files that was left out of its series' volume and
        one per folder and reason of damaged files, sorted by first file.
    """
    found: dict[tuple[str, str, Path | None], list[Header]] = defaultdict(list)
    refused: dict[tuple[Path, str], list[tuple[Path, VolumeError]]] = defaultdict(list)
    for path in walk(folder):
        try:
            header = read_header(path)
        except VolumeError as error:
            if error.reason != "FILE_MISSING" or may_be_dicom(path):
                refused[path.parent, error.reason].append((path, error))
            continue
        if header is not None:
            place = None if header.uid else path.parent
            found[header.patient, header.uid, place].append(header)
    series = [_refused(files) for files in refused.values()]
    for (_, uid, _), headers in found.items():
        series.extend(_series(uid, group) for group in group_series(headers))
    return sorted(series, key=lambda one: one.files)


def _refused(files: Sequence[tuple[Path, VolumeError]]) -> Series:
    """Describe the files of one folder that cannot be read for one reason."""
    _, first = files[0]
    more = f" ({len(files)} files of this folder alike)" if len(files) > 1 else ""
    paths = tuple(sorted(path for path, _ in files))
    return Series("", paths, problem=(first.reason, f"{first}{more}"))


def _series(uid: str, group: Group) -> Series:
    """Describe one volume of a series, or what was left out of it."""
    first = group.headers[0]
    problem, spacing = group.problem, None
    num_slices = num_frames(group.headers)
    if problem is None:
        try:
            layout = lay_out(group.headers, series_name(group.headers))
            num_slices = layout.count
            spacing = Volume(np.zeros((1, 1, 1), np.int16), layout.affine).spacing
        except VolumeError as error:
            problem = error.reason, str(error)
    return Series(
        uid=uid,
        files=tuple(header.path for header in group.headers),
        patient=first.patient,
        rows=first.rows,
        columns=first.columns,
        num_slices=num_slices,
        spacing=spacing,
        facts=dict(first.facts),
        problem=problem,
    )


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
    name = series_name(headers)
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
