"""Tables of scans that a person wants something of: a CSV of files, or tables of a store."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ct3dlib.cohort.location import location
from ct3dlib.config import RecipeSpec
from ct3dlib.errors import ConfigError, DatasetError
from ct3dlib.inference.scans import Reader, refusal, scan_reader, stored_readers


@dataclass(frozen=True, eq=False)
class ScanTable:
    """Rows of scans, in the order in which they were given.

    Args:
        frame: What the rows say, as text.
        key: Column that names the scans.
        readers: One for each row.
    """

    frame: pd.DataFrame
    key: str
    readers: tuple[Reader, ...]

    def with_columns(self, added: pd.DataFrame) -> pd.DataFrame:
        """Return the rows with what was made of them behind."""
        return pd.concat([self.frame.reset_index(drop=True), added], axis=1)

    def check_columns(self, added: Sequence[str]) -> None:
        """Refuse rows that have a column which is to be added.

        Raises:
            ConfigError: They have.
        """
        if taken := [name for name in added if name in self.frame.columns]:
            raise ConfigError(
                f"the input has a column {taken[0]!r} already, which the output gets; rename it"
            )


def read_scans(
    inputs: Sequence[str],
    recipe: RecipeSpec,
    *,
    model: str,
    path_column: str = "Path",
    root: Path | None = None,
) -> ScanTable:
    """Read a CSV of scans, or the status tables (.parquet) of a volume store.

    Args:
        inputs: One CSV, or any number of tables, their URLs too.
        recipe: Of the model that the scans are for.
        model: What messages call it.
        path_column: Of a CSV; status tables name volumes in `volume`.
        root: Where relative paths of a CSV start; None: in its folder.

    Raises:
        DatasetError: The CSV cannot be read, lacks the column or has no row.
        CheckpointError: Stored volumes are of another recipe than the model's.
        StoreError: A status table cannot be read.
        ConfigError: The inputs are of both kinds, or several CSV files.
    """
    if all(name.endswith(".parquet") for name in inputs):
        rows = stored_readers([location(name) for name in inputs], recipe, model=model)
        frame = pd.DataFrame({"volume": [row["volume"] for row, _ in rows]}, dtype=str)
        if frame.empty:
            raise DatasetError(f"{', '.join(inputs)}: no volume; give other tables")
        return ScanTable(frame, "volume", tuple(reader for _, reader in rows))
    if len(inputs) > 1:
        raise ConfigError(
            f"{len(inputs)} inputs, not all .parquet; give one CSV, or tables of stored volumes"
        )
    table = Path(inputs[0])
    frame = _read_csv(table, path_column)
    folder = table.parent if root is None else root
    readers = [
        scan_reader(folder / path, recipe) if path else _no_path(number, path_column)
        for number, path in zip(frame.index, frame[path_column].str.strip(), strict=True)
    ]
    return ScanTable(frame, path_column, tuple(readers))


def _no_path(number: int, column: str) -> Reader:
    """Return the refusal of a row that names no scan."""
    return refusal("FILE_MISSING", f"row {number}: its {column} is empty; fill it in")


def _read_csv(table: Path, path_column: str) -> pd.DataFrame:
    """Return a CSV as text; its index is the number of the line that a row starts as in a sheet."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = [(i, row) for i, row in enumerate(csv.reader(stream), start=1) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{table}: cannot be read ({error}); save it as CSV, UTF-8") from error
    header = [name.strip() for name in rows[0][1]] if rows else []
    if header.count(path_column) != 1 or len(set(header)) < len(header):
        problem = f"no column {path_column!r}" if path_column not in header else "a column twice"
        raise DatasetError(
            f"{table}: {problem}, found {', '.join(map(repr, header)) or 'none'}; name the column "
            f"of the scans with --path-column"
        )
    if len(rows) < 2:
        raise DatasetError(f"{table}: no row below its header; list a scan in each")
    for number, row in rows[1:]:
        if len(row) > len(header):
            raise DatasetError(
                f"{table}: row {number} has {len(row)} cells, the header {len(header)}; put what "
                f"holds a comma in double quotes"
            )
    cells = [row + [""] * (len(header) - len(row)) for _, row in rows[1:]]
    return pd.DataFrame(cells, columns=header, index=[i for i, _ in rows[1:]], dtype=str)
