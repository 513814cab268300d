"""From the files of one series id to volumes: one is kept, and what is left out is told why."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct3dlib.errors import VolumeError
from ct3dlib.scan.dicom_file import Header
from ct3dlib.scan.dicom_layout import (
    check_unit,
    distinct,
    num_frames,
    numbered,
    same_kind,
    series_name,
)

_SAME_HEIGHT = 1e-3  # mm
_REPEATED = 0.5  # share of an acquisition's slices that another one has too, or surrounds


@dataclass(frozen=True)
class Group:
    """Files of one volume.

    Args:
        headers: Sorted by path.
        problem: Reason code and message where they were left out of the series' volume.
    """

    headers: tuple[Header, ...]
    problem: tuple[str, str] | None = None


@dataclass(frozen=True, eq=False)
class _Acquisition:
    """One acquisition of a series: its files and the distinct heights of their slices.

    Args:
        headers: Its files.
        heights: Along the slice normal, ascending, mm.
    """

    headers: list[Header]
    heights: NDArray[np.float64]


def group_series(headers: Sequence[Header]) -> list[Group]:
    """Return the volumes that the files of a series make up: the one that is kept, then the others.

    The largest volume in HU is kept. Other matrices, orientations and pixel spacings, scouts, and
    acquisitions that cover the same region again are left out. Copies and acquisitions that
    follow one another belong to one volume.

    Args:
        headers: Files of one series id.
    """
    kinds: list[list[Header]] = []
    for header in sorted(headers, key=lambda one: one.path):
        for kind in kinds:
            if same_kind(kind[0], header):
                kind.append(header)
                break
        else:
            kinds.append([header])
    kinds.sort(key=lambda kind: (_wrong_unit(kind) is not None, -num_frames(kind)))
    main, *repeats = _by_acquisition(kinds[0])
    kept = series_name(main)
    groups = [Group(tuple(main))]
    groups += [Group(tuple(repeat), _repetition(repeat, kept)) for repeat in repeats]
    groups += [Group(tuple(kind), _wrong_unit(kind) or _other(kind, kept)) for kind in kinds[1:]]
    return groups


def _wrong_unit(headers: Sequence[Header]) -> tuple[str, str] | None:
    """Return why files are no CT picture in HU, if so."""
    try:
        check_unit(headers, series_name(headers))
    except VolumeError as error:
        return error.reason, str(error)
    return None


def _other(headers: Sequence[Header], kept: str) -> tuple[str, str]:
    """Return the problem of files of another matrix, orientation or pixel spacing, or of none."""
    name = series_name(headers)
    if headers[0].frames[0].place is None:
        return "NO_GEOMETRY", (
            f"{name}: no position, orientation or pixel spacing, unlike {kept} of the same "
            f"series; fetch the original file"
        )
    return "MIXED_SERIES", (
        f"{name}: another matrix, orientation or pixel spacing than {kept} of the same series; "
        f"give each a series id of its own"
    )


def _repetition(headers: Sequence[Header], kept: str) -> tuple[str, str]:
    """Return the problem of an acquisition of what another one shows."""
    return "FOUR_D", (
        f"{series_name(headers)}: another acquisition of the region of {kept} in the same series; "
        f"give each a series id of its own"
    )


def _by_acquisition(headers: list[Header]) -> list[list[Header]]:
    """Split files of one kind where their acquisitions repeat one another; the largest first."""
    parts = _acquisitions(headers)
    crossing = [pair for pair in itertools.combinations(parts, 2) if _cross(*pair)]
    if not crossing or (_is_regular(headers) and not any(_shared(*pair) for pair in crossing)):
        return [headers]
    volumes: list[list[_Acquisition]] = []
    for part in parts:
        for volume in volumes:
            if not any(_cross(part, other) for other in volume):
                volume.append(part)
                break
        else:
            volumes.append([part])
    split = [[header for part in volume for header in part.headers] for volume in volumes]
    split.sort(key=num_frames, reverse=True)
    return [sorted(volume, key=lambda one: one.path) for volume in split]


def _acquisitions(headers: Sequence[Header]) -> list[_Acquisition]:
    """Return the acquisitions of files, the largest first; none where a frame has no place."""
    named: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        named[header.acquisition].append(header)
    placed = _placed(headers)
    if len(named) == 1 or placed is None:
        return []
    normal = placed[1]
    parts = []
    for part in named.values():
        points, _ = _placed(part) or placed
        parts.append(_Acquisition(part, points @ normal))
    return sorted(parts, key=lambda part: (-num_frames(part.headers), part.heights[0]))


def _placed(headers: Sequence[Header]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return distinct positions by ascending height, and the slice normal; null without a place."""
    places = [frame.place for header in headers for frame in header.frames]
    known = [place for place in places if place is not None]
    if len(known) < len(places):
        return None
    normal = np.cross(known[0].orientation[:3], known[0].orientation[3:])
    points = np.array([place.position for place in known])
    heights = points @ normal
    order = np.argsort(heights, kind="stable")
    return points[order][distinct(heights[order])], normal


def _cross(one: _Acquisition, other: _Acquisition) -> bool:
    """Return whether most of the shorter acquisition's slices lie within the range of the other.

    Acquisitions of one position each are the shots of a step-and-shoot scan.
    """
    short, long = sorted((one.heights, other.heights), key=len)
    if len(long) == 1:
        return False
    inside = (short >= long[0] - _SAME_HEIGHT) & (short <= long[-1] + _SAME_HEIGHT)
    return bool(inside.mean() > _REPEATED)


def _shared(one: _Acquisition, other: _Acquisition) -> bool:
    """Return whether most of the shorter acquisition's positions are the other's too."""
    short, long = sorted((one.heights, other.heights), key=len)
    after = np.searchsorted(long, short)
    above = np.abs(long[np.minimum(after, len(long) - 1)] - short)
    below = np.abs(long[np.maximum(after - 1, 0)] - short)
    return bool((np.minimum(above, below) < _SAME_HEIGHT).mean() > _REPEATED)


def _is_regular(headers: Sequence[Header]) -> bool:
    """Return whether acquisitions that take turns make up one regular grid."""
    placed = _placed(headers)
    return placed is not None and len(placed[0]) > 1 and numbered(*placed) is not None
