"""The user's own table of splits and patients."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ct3dlib.cohort.catalog import Row
from ct3dlib.config import SPLITS, Split
from ct3dlib.datasets.tables import join_names, place_of, read_rows
from ct3dlib.errors import DatasetError


@dataclass(frozen=True)
class SplitTable:
    """Patient and split by volume; None where the table leaves a cell blank."""

    path: Path
    entries: Mapping[str, tuple[str | None, Split | None]]

    def find(self, row: Row) -> str | None:
        """Return the key of the entry of a row: by path, by id or by the last name of the path."""
        place = place_of(row.sources, kind=row.kind, dataset=row.dataset)
        names = join_names(place, row.volume)
        return next((name for name in names if name in self.entries), None)


def read_split_table(path: Path) -> SplitTable:
    """Return the table: columns `VolumeName`, `split` and, if wanted, `patient`.

    `VolumeName` is a path below the raw root, a file or folder name, or an id of the catalog.

    Raises:
        DatasetError: The file cannot be read, lacks a column or names another split.
    """
    entries: dict[str, tuple[str | None, Split | None]] = {}
    for key, cells in read_rows(path, ("split",)):
        text = cells["split"].strip()
        split: Split | None = next((known for known in SPLITS if known == text), None)
        if text and split is None:
            raise DatasetError(
                f"{path}: {key} is in split {text!r}; the splits are {', '.join(SPLITS)}"
            )
        entries[key] = cells.get("patient", "").strip() or None, split
    return SplitTable(path, entries)
