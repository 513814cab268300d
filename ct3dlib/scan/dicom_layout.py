"""From the frames of a series to one grid: which belong together, in what order, how far apart.

Only positions and orientations count: never file names, instance numbers, slice thickness,
SpacingBetweenSlices or GantryDetectorTilt, which real files get wrong.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ct3dlib.errors import VolumeError
from ct3dlib.scan.dicom_facts import UNITS, named_modality
from ct3dlib.scan.dicom_file import Header
from ct3dlib.scan.dicom_frame import Frame, Place
from ct3dlib.scan.geometry import FINEST, check_grid

_SAME_PLACE = 1e-3  # mm
_ROUNDING = 1e-6  # mm; of positions that are the same
_SAME_DIRECTION = 2e-3  # of cosines, which some headers round to three digits
_EVEN_MM, _EVEN_SHARE = 0.1, 0.02  # headers round positions to 0.1 mm
_MAX_MISSING, _MAX_MISSING_SHARE = 2, 0.1
_MIN_TILT = 0.01  # in-plane shift per slice, share of the slice distance
_SCOUTS = {"LOCALIZER", "SCREEN SAVE"}
_NAMED = 3  # folders that a message names
_FARTHEST = 1e6  # mm; a position beyond is damaged


@dataclass(frozen=True, eq=False)
class Layout:
    """The grid of a series.

    Args:
        slots: Slice of each frame (file, index of the frame).
        count: Slices of the grid, the missing ones included.
        missing: Slices that no frame fills; each lies between two that are filled.
        affine: Voxel (d, h, w, 1) to LPS mm, sheared where the gantry was tilted.
        tilt: Angle between the slice normal and the stack, degrees; 0 where they agree.
    """

    slots: Mapping[tuple[Path, int], int]
    count: int
    missing: tuple[int, ...]
    affine: NDArray[np.float64]
    tilt: float


def same_kind(one: Header, other: Header) -> bool:
    """Return whether two files can be of one volume: matrix, orientation, spacing, unit."""
    if (one.multi_frame, one.rows, one.columns) != (other.multi_frame, other.rows, other.columns):
        return False
    if _is_ct(one) != _is_ct(other) or _is_hu(one) != _is_hu(other):
        return False
    if is_scout(one) != is_scout(other):
        return False
    here, there = one.frames[0].place, other.frames[0].place
    if here is None or there is None:
        return here is there
    return bool(
        _differ(here.orientation, there.orientation) <= _SAME_DIRECTION
        and _differ(here.spacing, there.spacing) <= _SAME_PLACE
    )


def _differ(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the largest difference between two rows of numbers."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def is_scout(header: Header) -> bool:
    """Return whether a file is a localizer or a screen save."""
    return not _SCOUTS.isdisjoint(header.image_type)


def num_frames(headers: Sequence[Header]) -> int:
    """Count the frames of files."""
    return sum(len(header.frames) for header in headers)


def series_name(headers: Sequence[Header]) -> str:
    """Return what messages call a series: its first file, and its folders if there are several."""
    first = min(header.path for header in headers)
    if len(headers) == 1:
        return str(first)
    folders = sorted({header.path.parent for header in headers})
    if len(folders) == 1:
        return f"{first} ({len(headers)} files)"
    named = ", ".join(map(str, folders[:_NAMED]))
    more = f" and {len(folders) - _NAMED} more" if len(folders) > _NAMED else ""
    return f"{first} ({len(headers)} files in {named}{more})"


def lay_out(headers: Sequence[Header], name: str) -> Layout:
    """Find the grid of a series from the positions of its frames.

    Args:
        headers: Files of one volume, in any order.
        name: What messages call the series.

    Raises:
        VolumeError: `NOT_CT`, `NOT_HU`, `LOCALIZER`, `MIXED_SERIES`, `SINGLE_SLICE`, `BAD_RESCALE`,
            `NO_GEOMETRY`, `BAD_GEOMETRY`, `DUPLICATE_POSITIONS` or `UNEVEN_SPACING`.
    """
    check_unit(headers, name)
    _check_kind(headers, name)
    _check_rescale(headers, name)
    frames = [(header.path, frame) for header in headers for frame in header.frames]
    places = [_place(path, frame) for path, frame in frames]
    rows, columns = _axes(places, name)
    normal = np.cross(rows, columns)
    points = np.array([place.position for place in places])
    heights = points @ normal
    order = np.argsort(heights, kind="stable")
    first = distinct(heights[order])
    _check_extent(heights, name)
    slices, step = _regular(points[order][first], normal, name)
    rank = np.cumsum(first) - 1
    slots = {(frames[i][0], frames[i][1].index): int(slices[rank[k]]) for k, i in enumerate(order)}
    row_distance, column_distance = places[0].spacing
    affine = np.eye(4)
    affine[:3, :3] = np.stack([step, columns * row_distance, rows * column_distance], axis=1)
    affine[:3, 3] = points[order[0]]
    check_grid(name, affine)
    missing = tuple(sorted(set(range(int(slices[-1]))) - set(slices.tolist())))
    return Layout(slots, int(slices[-1]) + 1, missing, affine, _tilt(step, normal))


def _is_ct(header: Header) -> bool:
    """Return whether a file does not say that it is something else than CT."""
    return header.modality in ("CT", "")


def _is_hu(header: Header) -> bool:
    """Return whether a file does not say another unit; US is "not specified", as enhanced CT."""
    return header.rescale_type in ("", "HU", "US")


def check_unit(headers: Sequence[Header], name: str) -> None:
    """Refuse what is no CT picture in HU.

    Raises:
        VolumeError: `NOT_CT`, `NOT_HU` or `LOCALIZER`.
    """
    first = headers[0]
    if not _is_ct(first):
        raise VolumeError("NOT_CT", f"{name}: {named_modality(first.modality)}; drop it")
    if not _is_hu(first):
        unit = first.rescale_type if first.rescale_type in UNITS else "a unit of its own"
        raise VolumeError("NOT_HU", f"{name}: rescales to {unit}, wanted HU; drop it")
    if all(map(is_scout, headers)):
        raise VolumeError("LOCALIZER", f"{name}: a scout view or screen save, no volume; drop it")


def _check_kind(headers: Sequence[Header], name: str) -> None:
    """Refuse files that do not belong together, and those that are no volume."""
    first = headers[0]
    if not all(header.uid == first.uid and same_kind(first, header) for header in headers):
        raise VolumeError(
            "MIXED_SERIES",
            f"{name}: its files differ in series, matrix or orientation; give the files of one "
            f"series, as list_series groups them",
        )
    if num_frames(headers) == 1:
        raise VolumeError("SINGLE_SLICE", f"{name}: a single slice, no volume; drop it")


def _check_rescale(headers: Sequence[Header], name: str) -> None:
    """Refuse a slope that turns a slice into one value or upside down, and slices without one."""
    without = 0
    for header in headers:
        for frame in header.frames:
            without += frame.rescale is None
            slope, intercept = frame.rescale or (1.0, 0.0)
            if not (0 < slope < math.inf and math.isfinite(intercept)):
                raise VolumeError(
                    "BAD_RESCALE",
                    f"{header.path}: slope {slope:g} and intercept {intercept:g}, wanted numbers "
                    f"and a slope above 0; fetch it again",
                )
    if 0 < without < num_frames(headers):
        raise VolumeError(
            "BAD_RESCALE",
            f"{name}: {without} of {num_frames(headers)} slices state no slope and intercept, "
            f"the others do; fetch it again",
        )


def _place(path: Path, frame: Frame) -> Place:
    """Return where a frame lies."""
    if frame.place is None:
        raise VolumeError(
            "NO_GEOMETRY",
            f"{path}: no position, orientation or pixel spacing; fetch the original file",
        )
    if max(map(abs, frame.place.position)) > _FARTHEST:
        raise VolumeError(
            "BAD_GEOMETRY",
            f"{path}: position {frame.place.position}, wanted at most {_FARTHEST:g} mm; fetch the "
            f"original file",
        )
    return frame.place


def _check_extent(heights: NDArray[np.float64], name: str) -> None:
    """Refuse slices that all but lie at one place: their positions are in another unit."""
    extent = float(np.ptp(heights))
    if _ROUNDING < extent < FINEST * (len(heights) - 1):
        raise VolumeError(
            "BAD_GEOMETRY",
            f"{name}: {len(heights)} slices within {extent:g} mm; fetch the original files",
        )


def _axes(places: Sequence[Place], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the unit vectors along a row and along a column of pixels, which all frames share."""
    first = places[0]
    orientations = np.array([place.orientation for place in places])
    if np.abs(orientations - first.orientation).max() > _SAME_DIRECTION:
        raise VolumeError(
            "MIXED_SERIES", f"{name}: its frames differ in orientation; split them by orientation"
        )
    rows, columns = np.array(first.orientation).reshape(2, 3)
    lengths = np.linalg.norm(rows), np.linalg.norm(columns)
    square = abs(rows @ columns) < _SAME_DIRECTION and np.allclose(lengths, 1, atol=_SAME_DIRECTION)
    if not square or min(first.spacing) <= 0:
        raise VolumeError(
            "BAD_GEOMETRY",
            f"{name}: orientation {first.orientation} and spacing {first.spacing} mm are no grid; "
            f"fetch the original files",
        )
    return rows / lengths[0], columns / lengths[1]


def distinct(heights: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which of ascending heights lie farther than 0.001 mm above the one before."""
    return np.concatenate([[True], np.diff(heights) >= _SAME_PLACE])


def numbered(
    points: NDArray[np.float64], normal: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
    """Return the slice number of each position on a regular grid, and the step between slices.

    Every position must lie within 0.1 mm or 2 % of a step of that grid. Slices may be missing one
    at a time, at most two of them and a tenth of all. Null where that does not hold.

    Args:
        points: Distinct positions in the order of their heights, N 3, LPS mm; at least two.
        normal: Of the slices.
    """
    steps = np.diff(points @ normal)
    usual = float(np.median(steps))
    counts = np.rint(steps / usual).astype(np.int64)
    slices = np.concatenate([[0], np.cumsum(counts)])
    if counts.min() < 1 or counts.max() > 2:
        return None
    step = (points[-1] - points[0]) / slices[-1]
    off = np.linalg.norm(points - (points[0] + slices[:, None] * step), axis=1).max()
    missing = int((counts - 1).sum())
    few = missing <= min(_MAX_MISSING, _MAX_MISSING_SHARE * len(points))
    return (slices, step) if few and off <= max(_EVEN_MM, _EVEN_SHARE * usual) else None


def _regular(
    points: NDArray[np.float64], normal: NDArray[np.float64], name: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the slice number of each position, and the step; refuse what is not regular."""
    if len(points) == 1:
        raise VolumeError(
            "DUPLICATE_POSITIONS",
            f"{name}: all its slices lie at one position, no volume; drop it",
        )
    found = numbered(points, normal)
    if found is None:
        steps = np.diff(points @ normal)
        raise VolumeError(
            "UNEVEN_SPACING",
            f"{name}: {len(points)} slices {steps.min():.2f} to {steps.max():.2f} mm apart, "
            f"wanted {np.median(steps):.2f} mm throughout; fetch the missing slices or drop it",
        )
    return found


def _tilt(step: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    """Return the angle between the stack and the slice normal, degrees; 0 if negligible."""
    along = float(step @ normal)
    across = float(np.linalg.norm(step - along * normal))
    return float(np.degrees(np.arctan2(across, along))) if across > _MIN_TILT * along else 0.0
