"""From the frames of a series to one grid: which belong together, in what order, how far apart.

Only positions and orientations count: never file names, instance numbers, slice thickness,
SpacingBetweenSlices or GantryDetectorTilt, which real files get wrong.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ct3dlib.errors import VolumeError
from ct3dlib.scan.dicom_file import Frame, Header, Place

_SAME_PLACE = 1e-3  # mm
_SAME_DIRECTION = 2e-3  # of cosines, which some headers round to three digits
_EVEN_MM, _EVEN_SHARE = 0.1, 0.02  # headers round positions to 0.1 mm
_MAX_MISSING, _MAX_MISSING_SHARE = 2, 0.1
_MIN_TILT = 0.01  # in-plane shift per slice, share of the slice distance
_SCOUTS = {"LOCALIZER", "SCREEN SAVE"}


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


def kind_of(header: Header) -> tuple[object, ...]:
    """Return what all files of one volume share beside their series."""
    place = header.frames[0].place
    plane = None
    if place is not None:
        plane = tuple(round(number, 3) for number in (*place.orientation, *place.spacing))
    return header.multi_frame, header.rows, header.columns, plane, is_scout(header)


def is_scout(header: Header) -> bool:
    """Return whether a file is a localizer or a screen save."""
    return not _SCOUTS.isdisjoint(header.image_type)


def largest_group(headers: Sequence[Header]) -> list[Header]:
    """Return the files of a series that make up its largest volume.

    Scouts, other matrices and other orientations under the same series id fall away; where
    positions repeat, so do all acquisitions but the largest.
    """
    groups = defaultdict(list)
    for header in headers:
        groups[kind_of(header)].append(header)
    best = max(groups.values(), key=lambda group: (not is_scout(group[0]), _num_frames(group)))
    acquisitions = defaultdict(list)
    for header in best:
        acquisitions[header.acquisition].append(header)
    positions = {frame.place and frame.place.position for header in best for frame in header.frames}
    if len(positions) < _num_frames(best) and len(acquisitions) > 1:
        return max(acquisitions.values(), key=_num_frames)
    return best


def _num_frames(headers: Sequence[Header]) -> int:
    """Count the frames of files."""
    return sum(len(header.frames) for header in headers)


def lay_out(headers: Sequence[Header], name: str) -> Layout:
    """Find the grid of a series from the positions of its frames.

    Args:
        headers: Files of one volume, in any order.
        name: What messages call the series.

    Raises:
        VolumeError: `NOT_CT`, `NOT_HU`, `LOCALIZER`, `MIXED_SERIES`, `SINGLE_SLICE`, `NO_GEOMETRY`,
            `BAD_GEOMETRY`, `DUPLICATE_POSITIONS` or `UNEVEN_SPACING`.
    """
    _check_kind(headers, name)
    frames = [(header.path, frame) for header in headers for frame in header.frames]
    places = [_place(path, frame) for path, frame in frames]
    rows, columns = _axes(places, name)
    normal = np.cross(rows, columns)
    points = np.array([place.position for place in places])
    heights = points @ normal
    order = np.argsort(heights, kind="stable")
    first = np.concatenate([[True], np.diff(heights[order]) >= _SAME_PLACE])
    slices, step = _regular(points[order][first], normal, name)
    rank = np.cumsum(first) - 1
    slots = {(frames[i][0], frames[i][1].index): int(slices[rank[k]]) for k, i in enumerate(order)}
    row_distance, column_distance = places[0].spacing
    affine = np.eye(4)
    affine[:3, :3] = np.stack([step, columns * row_distance, rows * column_distance], axis=1)
    affine[:3, 3] = points[order[0]]
    missing = tuple(sorted(set(range(int(slices[-1]))) - set(slices.tolist())))
    return Layout(slots, int(slices[-1]) + 1, missing, affine, _tilt(step, normal))


def _check_kind(headers: Sequence[Header], name: str) -> None:
    """Refuse what is no CT volume, and files that do not belong together."""
    first = headers[0]
    if first.modality not in ("CT", ""):
        raise VolumeError("NOT_CT", f"{name}: modality {first.modality}, wanted CT; drop it")
    if first.rescale_type not in ("", "HU", "US"):  # US: not specified, as enhanced CT often says
        raise VolumeError("NOT_HU", f"{name}: rescales to {first.rescale_type}, wanted HU; drop it")
    if all(map(is_scout, headers)):
        raise VolumeError("LOCALIZER", f"{name}: a scout view or screen save, no volume; drop it")
    if len({(header.uid, *kind_of(header)) for header in headers}) > 1:
        raise VolumeError(
            "MIXED_SERIES",
            f"{name}: its files differ in series, matrix or orientation; give the files of one "
            f"series, as list_series groups them",
        )
    if _num_frames(headers) == 1:
        raise VolumeError("SINGLE_SLICE", f"{name}: a single slice, no volume; drop it")


def _place(path: Path, frame: Frame) -> Place:
    """Return where a frame lies."""
    if frame.place is None:
        raise VolumeError(
            "NO_GEOMETRY",
            f"{path}: no position, orientation or pixel spacing; fetch the original file",
        )
    return frame.place


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


def _regular(
    points: NDArray[np.float64], normal: NDArray[np.float64], name: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the slice number of each position on a regular grid, and the step between slices.

    Every position must lie within 0.1 mm or 2 % of a step of that grid. Slices may be missing one
    at a time, at most two of them and a tenth of all.
    """
    if len(points) == 1:
        raise VolumeError(
            "DUPLICATE_POSITIONS",
            f"{name}: all its slices lie at one position; it is no volume, drop it",
        )
    steps = np.diff(points @ normal)
    usual = float(np.median(steps))
    counts = np.rint(steps / usual).astype(np.int64)
    slices = np.concatenate([[0], np.cumsum(counts)])
    step = (points[-1] - points[0]) / slices[-1]
    off = np.linalg.norm(points - (points[0] + slices[:, None] * step), axis=1).max()
    missing = int((counts - 1).sum())
    few = missing <= min(_MAX_MISSING, _MAX_MISSING_SHARE * len(points)) and counts.max() <= 2
    if counts.min() < 1 or not few or off > max(_EVEN_MM, _EVEN_SHARE * usual):
        raise VolumeError(
            "UNEVEN_SPACING",
            f"{name}: {len(points)} slices {steps.min():.2f} to {steps.max():.2f} mm apart, "
            f"wanted {usual:.2f} mm throughout; fetch the missing slices or drop it",
        )
    return slices, step


def _tilt(step: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    """Return the angle between the stack and the slice normal, degrees; 0 if negligible."""
    along = float(step @ normal)
    across = float(np.linalg.norm(step - along * normal))
    return float(np.degrees(np.arctan2(across, along))) if across > _MIN_TILT * along else 0.0
