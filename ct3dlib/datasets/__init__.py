"""Readers of raw data sets: raw root to catalog rows, and the catalog of a raw root."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ct3dlib.cohort.catalog import Row, arrange, without_root
from ct3dlib.cohort.private import hide, save_hidden
from ct3dlib.cohort.pseudonyms import UNKEYED, Pseudonyms
from ct3dlib.cohort.split import Assignments
from ct3dlib.config import CatalogSpec, Dataset, Split
from ct3dlib.datasets.brats import read_brats
from ct3dlib.datasets.ct_rate import read_ct_rate
from ct3dlib.datasets.folder import read_folder
from ct3dlib.datasets.medmnist3d import read_medmnist3d
from ct3dlib.datasets.omniabnorm import read_omniabnorm
from ct3dlib.datasets.pictures import read_pictures
from ct3dlib.datasets.split_table import SplitTable, read_split_table
from ct3dlib.errors import DatasetError

logger = logging.getLogger(__name__)


def read_dataset(name: Dataset, root: Path, names: Pseudonyms = UNKEYED) -> Iterator[Row]:
    """Yield a row for every series under a raw root, ids unique.

    Args:
        name: The reader.
        root: What it lists.
        names: Stand for what identifies a person in a header.

    Raises:
        DatasetError: The root, or a table that the data set needs, is missing or unreadable.
    """
    if not root.is_dir():
        raise DatasetError(
            f"{root.absolute()}: no such folder; set raw_root (or CT3D_RAW) to the folder of the "
            f"scans; a relative one starts at the working directory (--directory)"
        )
    match name:
        case "ct_rate":
            yield from read_ct_rate(root)
        case "folder":
            yield from read_folder(root, names)
        case "brats":
            yield from read_brats(root)
        case "medmnist3d":
            yield from read_medmnist3d(root)
        case "omniabnorm":
            yield from read_omniabnorm(root)
        case "pictures":
            yield from read_pictures(root, names)


def build_catalog(
    root: Path,
    spec: CatalogSpec,
    *,
    names: Pseudonyms = UNKEYED,
    previous: Assignments | None = None,
) -> pd.DataFrame:
    """Return the catalog of a raw root, sorted by volume: one row per series found.

    Headers and tables are read, voxels are not. A patient is in one split only. Of a pseudonymised
    catalog the private table is written, beside the key.

    Args:
        root: Folder that the rows' sources are relative to.
        spec: Reader, split and shards.
        names: Stand for what identifies a person.
        previous: Splits of patients in earlier catalogs; they are kept.

    Raises:
        DatasetError: Nothing is found, a table is missing or damaged, or the patients cannot be
            split as asked.
    """
    rows = list(read_dataset(spec.dataset, root, names))
    if not rows:
        raise DatasetError(
            f"{root}: no NIfTI or DICOM series found; set raw_root (or CT3D_RAW) to the folder of "
            f"the scans"
        )
    rows = [
        replace(row, problem_message=without_root(row.problem_message, root))
        if row.problem_message
        else row
        for row in rows
    ]
    given: dict[str, Split] = {}
    if spec.split_csv is not None:
        rows, given = _apply(read_split_table(root / spec.split_csv), rows)
    if spec.pseudonymise:
        rows, hidden = hide(rows, names)
        save_hidden(hidden, names.folder)
        given = {names.of("patient", patient): split for patient, split in given.items()}
    return arrange(rows, spec, given=given, previous=previous or Assignments())


def _apply(table: SplitTable, rows: list[Row]) -> tuple[list[Row], dict[str, Split]]:
    """Return the rows with the patients of a table, and the splits it gives them."""
    given: dict[str, Split] = {}
    applied = []
    used: set[str] = set()
    for row in rows:
        key = table.find(row)
        patient, split = (None, None) if key is None else table.entries[key]
        patient = patient or row.patient
        if split is not None and given.setdefault(patient, split) != split:
            raise DatasetError(
                f"{table.path}: patient {patient} is in {given[patient]} and in {split}; a "
                f"patient has one split"
            )
        used |= set() if key is None else {key}
        applied.append(replace(row, patient=patient))
    if unused := len(table.entries) - len(used):
        logger.warning("%s: %s rows name no volume under the root", table.path, unused)
    return applied, given
