"""Rows of a metadata table, one for each way in which a row can be of no use to a blank file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.corpus.nifti_cases import BLANK, HU, nifti
from tests.datasets.trees import METADATA_COLUMNS, metadata_row, write_csv

STORED = nifti((HU + 1024).tobytes(), pixdim=[1] * 8, **BLANK)


@dataclass(frozen=True)
class TableCase:
    """A blank file of stored values and what the table says of it.

    Args:
        name: Of the case.
        reason: Code that the row must have; "" where it must be stored.
        match: Regular expression for the message.
        cells: Cells of the table's row that are not sound.
    """

    name: str
    reason: str
    match: str
    cells: Mapping[str, object] = field(default_factory=dict)


def wrong(name: str, **cells: object) -> TableCase:
    """Return the case of a row with one cell of no use."""
    ((column, value),) = cells.items()
    return TableCase(name, "BAD_METADATA", f"{column} is '{value}'", cells)


TABLE_CASES = [
    TableCase("sound", "", ""),
    TableCase("plane-in-one-number", "", "", {"XYSpacing": 0.75}),
    wrong("z-nan", ZSpacing="nan"),
    wrong("z-text", ZSpacing="thin"),
    wrong("z-zero", ZSpacing=0),
    wrong("z-negative", ZSpacing=-1.5),
    wrong("z-infinite", ZSpacing="inf"),
    wrong("z-two-numbers", ZSpacing="1 5"),
    wrong("plane-zero", XYSpacing="0, 0.75"),
    wrong("plane-three-numbers", XYSpacing="1 1 1"),
    wrong("slope-text", RescaleSlope="one"),
    wrong("intercept-nan", RescaleIntercept="nan"),
]


def volume_of(number: int) -> str:
    """Return the name of the n-th case's volume as CT-RATE would call it."""
    return f"train_{number}_a_1"


def write_volumes(folder: Path, cases: Sequence[TableCase]) -> list[list[object]]:
    """Write the cases' volumes and return the rows of their table."""
    folder.mkdir(parents=True)
    rows = []
    for number, case in enumerate(cases):
        name = f"{volume_of(number)}.nii"
        (folder / name).write_bytes(STORED)
        rows.append(metadata_row(name, **case.cells))
    return rows


def write_table(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """Write a metadata table."""
    write_csv(path, METADATA_COLUMNS, rows)
