"""Tables beside the scans: CSV rows by volume, and the geometry and rescale they state."""

import csv
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ct3dlib.datasets.files import stem
from ct3dlib.errors import DatasetError

logger = logging.getLogger(__name__)

NAME = "VolumeName"
RESCALE = ("RescaleSlope", "RescaleIntercept")
GEOMETRY = ("XYSpacing", "ZSpacing")
# Reports are longer than the 131072 characters that the module takes for a cell.
csv.field_size_limit(1 << 30)
_BETWEEN = re.compile(r"[\s,;\\'\"\[\]()]+")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Metadata:
    """One row of a metadata table.

    Args:
        text: The row as JSON with sorted keys, blank cells left out.
        slope: Rescale slope, None where it is not a number.
        intercept: Rescale intercept, HU, None where it is not a number.
        spacing: (D, H, W), mm, None where a part is not a positive number.
        faults: The cells that were not understood, for people.
    """

    text: str
    slope: float | None
    intercept: float | None
    spacing: tuple[float, float, float] | None
    faults: tuple[str, ...] = ()


def volume_key(name: str) -> str:
    """Return what a volume is joined by: its name or path without ending, one word for valid."""
    folder, slash, last = stem(name.strip().replace("\\", "/").removeprefix("./")).rpartition("/")
    if last.startswith("validation_"):
        last = f"valid_{last.removeprefix('validation_')}"
    return f"{folder}{slash}{last}"


def join_names(place: str, volume: str) -> tuple[str, str, str]:
    """Return the keys by which a table may name a series: its path, its id, its last name.

    Args:
        place: File or folder of the series, POSIX path relative to the raw root.
        volume: Its id.
    """
    return volume_key(place), volume_key(volume), volume_key(place.rpartition("/")[2])


def place_of(sources: Sequence[str], *, kind: str, dataset: str) -> str:
    """Return the file or folder of a catalog's series, relative to the raw root."""
    # A series of many files is its folder; in a data set of pictures each is its own.
    if kind in ("dicom", "pictures") and dataset != "pictures":
        return os.path.commonpath([source.rpartition("/")[0] for source in sources])
    return sources[0]


def read_columns(path: Path) -> tuple[str, ...]:
    """Return the columns of a CSV, without the spaces around their names.

    Raises:
        DatasetError: The file cannot be read.
    """
    with _table(path) as reader:
        return tuple(reader.fieldnames or ())


@contextmanager
def _table(path: Path) -> Iterator["csv.DictReader[str]"]:
    """Open a CSV; what is wrong with it while it is read becomes a DatasetError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restkey="", restval="")
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            yield reader
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); restore the table") from error


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the key and the cells of every row of a CSV with a column `VolumeName`.

    A name that comes again is left out with a warning.

    Raises:
        DatasetError: The file cannot be read or lacks one of `columns`.
    """
    seen: set[str] = set()
    again = 0
    with _table(path) as reader:
        found = reader.fieldnames or ()
        for column in (NAME, *columns):
            if column not in found:
                raise DatasetError(
                    f"{path}: no column {column!r}, found {', '.join(map(repr, found)) or 'none'}; "
                    f"columns are separated by commas: restore the original table"
                )
        for cells in reader:
            key = volume_key(cells[NAME])
            if key in seen:
                again += 1
                continue
            seen.add(key)
            yield key, cells
    if again:
        logger.warning("%s: %s rows repeat a name; the first of each counts", path, again)


def read_metadata(path: Path, columns: Sequence[str] = ()) -> dict[str, Metadata]:
    """Return the metadata of every volume of a CSV.

    Raises:
        DatasetError: The file cannot be read or lacks one of `columns`.
    """
    return {key: parse_metadata(cells) for key, cells in read_rows(path, columns)}


def parse_metadata(cells: Mapping[str, str]) -> Metadata:
    """Return what a metadata row states.

    `XYSpacing` is one or two numbers in any brackets: the steps from row to row and from column
    to column, mm.
    """
    kept = {name: text for name, value in cells.items() if name and (text := str(value).strip())}
    faults = []

    def number(name: str, *, positive: bool = False) -> float | None:
        found = _numbers(kept.get(name, ""))
        if len(found) == 1 and (found[0] > 0 or not positive):
            return found[0]
        faults.append(f"{name} is {kept.get(name, '')!r}")
        return None

    slope, intercept = number("RescaleSlope"), number("RescaleIntercept")
    z = number("ZSpacing", positive=True)
    plane = _numbers(kept.get("XYSpacing", ""))
    if len(plane) not in (1, 2) or min(plane) <= 0:
        faults.append(f"XYSpacing is {kept.get('XYSpacing', '')!r}")
        plane = []
    return Metadata(
        text=json.dumps(kept, sort_keys=True, ensure_ascii=False),
        slope=slope,
        intercept=intercept,
        spacing=(z, plane[0], plane[-1]) if z is not None and plane else None,
        faults=tuple(faults),
    )


def _numbers(text: str) -> list[float]:
    """Return the numbers of a cell, nothing where a part of it is something else."""
    parts = [part for part in _BETWEEN.split(text) if part]
    if not all(_NUMBER.fullmatch(part) for part in parts):
        return []
    return [number for number in map(float, parts) if math.isfinite(number)]
