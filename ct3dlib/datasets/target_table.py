"""A CSV of what is learnt of each volume: its rows, and what their cells say.

Letter: K targets.
"""

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ct3dlib.config import Task
from ct3dlib.errors import DatasetError

_WANTED: dict[Task, str] = {
    "binary": "0, 1 or nothing (not known); more than two classes are of task multiclass",
    "multilabel": "0, 1 or nothing (not known)",
    "multiclass": "the name or whole number of a class, or nothing (not known); other numbers are "
    "of task regression",
    "regression": "a number with a decimal point, or nothing (not known)",
}
Value = TypeVar("Value", float, str)


@dataclass(frozen=True)
class Row:
    """A row of a table: its number as a spreadsheet shows it, whose it is, its wanted cells."""

    number: int
    path: str
    cells: tuple[str, ...]


def read_target_rows(table: Path, wanted: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a CSV that are not blank: the first of the columns `wanted`, the others.

    Raises:
        DatasetError: It cannot be read, lacks a column or has it twice, or a row is too long.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = [[cell.strip() for cell in row] for row in csv.reader(stream)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{table}: cannot be read ({error}); save it as CSV, UTF-8") from error
    header = rows[0] if rows else []
    for column in wanted:
        if header.count(column) != 1:
            what = "twice the" if column in header else "no"
            raise DatasetError(
                f"{table}: {what} column {column!r}, found {', '.join(map(repr, header)) or 'none'}"
                f"; columns are separated by commas, and named in labels"
            )
    places = [header.index(column) for column in wanted]
    for number, row in enumerate(rows[1:], start=2):
        if any(row[len(header) :]):
            raise DatasetError(
                f"{table}: row {number} has {len(row)} cells, the header {len(header)}; put what "
                f"holds a comma in double quotes"
            )
        if any(row):
            row += [""] * (len(header) - len(row))
            path, *cells = (row[place] for place in places)
            yield Row(number, path, tuple(cells))


def parse_targets(
    table: Path, rows: Sequence[Row], *, columns: Sequence[str], task: Task
) -> tuple[tuple[str, ...], list[NDArray[np.float32]]]:
    """Return the names of targets and the targets of every row, NaN where they are not known."""
    if task == "multiclass":
        return _parse_classes(table, rows, column=columns[0])
    read = _finite if task == "regression" else _truth
    values = _read_cells(table, rows, columns=columns, task=task, read=read)
    return tuple(columns), [
        np.array([math.nan if x is None else x for x in row], np.float32) for row in values
    ]


def _parse_classes(
    table: Path, rows: Sequence[Row], *, column: str
) -> tuple[tuple[str, ...], list[NDArray[np.float32]]]:
    """Return the classes of a table and each row's as one-hot, NaN where it is not known."""
    values = _read_cells(table, rows, columns=(column,), task="multiclass", read=_class)
    classes = {name for (name,) in values if name is not None}
    numbered = all(_whole(name) for name in classes)
    names = tuple(sorted(classes, key=int) if numbered else sorted(classes))
    if len(names) < 2:
        raise DatasetError(
            f"{table}: column {column!r} has {len(names)} classes ({', '.join(names) or 'none'}); "
            f"task multiclass needs two or more"
        )
    unknown = np.full(len(names), np.nan, np.float32)
    vectors = dict(zip(names, np.eye(len(names), dtype=np.float32), strict=True))
    return names, [unknown if name is None else vectors[name] for (name,) in values]


def _read_cells(
    table: Path,
    rows: Sequence[Row],
    *,
    columns: Sequence[str],
    task: Task,
    read: Callable[[str], Value | None],
) -> list[list[Value | None]]:
    """Return what the cells of each row say, None where they are blank.

    Args:
        table: For messages.
        rows: Its rows.
        columns: Names of their cells.
        task: For messages.
        read: Returns what a cell says, None where it is of another kind.

    Raises:
        DatasetError: A cell is of another kind.
    """
    found = []
    for row in rows:
        values = [read(cell) if cell else None for cell in row.cells]
        for column, cell, value in zip(columns, row.cells, values, strict=True):
            if cell and value is None:
                raise DatasetError(
                    f"{table}: row {row.number}, column {column!r} is {cell!r}; wanted "
                    f"{_WANTED[task]}"
                )
        found.append(values)
    return found


def _finite(cell: str) -> float | None:
    """Return a finite number (of 32 bits), None where a cell is none."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if abs(value) <= float(np.finfo(np.float32).max) else None


def _truth(cell: str) -> float | None:
    """Return 0 or 1, None where a cell is neither."""
    value = _finite(cell)
    return value if value in (0, 1) else None


def _class(cell: str) -> str | None:
    """Return the name of a class; a number that is not whole is none, and 1.0 is 1."""
    try:
        value = float(cell)
    except ValueError:
        return cell
    return str(int(value)) if value.is_integer() else None


def _whole(name: str) -> bool:
    """Return whether a class is a whole number."""
    return name.removeprefix("-").isdecimal()
