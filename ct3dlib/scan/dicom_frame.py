"""The frames of one DICOM file: where each lies and how its values become HU.

A single-frame file states both at its top, an enhanced one in functional groups (DICOM PS3.3
C.7.6.2 and C.7.6.16).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from ct3dlib.errors import VolumeError


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
        rescale: Slope and intercept to HU, NaN for what is no number; null where the header does
            not say.
    """

    index: int
    place: Place | None
    rescale: tuple[float, float] | None


def frame_of(index: int, sources: list[Dataset]) -> Frame:
    """Return a frame from the first dataset that holds each of its values."""
    position = _numbers(sources, "ImagePositionPatient", 3)
    orientation = _numbers(sources, "ImageOrientationPatient", 6)
    spacing = _numbers(sources, "PixelSpacing", 2)
    slope, intercept = (_number(sources, tag) for tag in ("RescaleSlope", "RescaleIntercept"))
    return Frame(
        index=index,
        place=Place(position, orientation, spacing)
        if position and orientation and spacing
        else None,
        rescale=None if slope is None or intercept is None else (slope, intercept),
    )


def frame_sources(path: Path, dataset: Dataset, count: int) -> list[list[Dataset]]:
    """Return the functional group macros of each frame of an enhanced multi-frame file.

    Raises:
        VolumeError: `NO_GEOMETRY` where not every frame has its own group.
    """
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


def rescale_type(sources: list[Dataset]) -> str:
    """Return the unit that rescaled values are said to have, in upper case, or nothing."""
    units = (str(source.get("RescaleType") or "").strip().upper() for source in sources)
    return next(filter(None, units), "")


def listed(value: Any) -> list[Any]:
    """Return a value of any multiplicity as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, MultiValue | list) else [value]


def _number(sources: list[Dataset], tag: str) -> float | None:
    """Return the number of a tag, NaN where it is none or several, null where it is absent."""
    value = next((v for source in sources if (v := source.get(tag)) not in (None, "")), None)
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return math.nan


def _numbers(sources: list[Dataset], tag: str, count: int) -> tuple[float, ...] | None:
    """Return finite numbers of a tag, or null unless there are so many."""
    for source in sources:
        value = source.get(tag)
        if value is None or value == "":
            continue
        numbers = tuple(float(number) for number in listed(value))
        return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None
    return None
