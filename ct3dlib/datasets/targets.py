"""What is learnt of each volume: labels of the catalog, or columns of a CSV.

Letter: K targets.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ct3dlib.cohort.labels import LABELS, label_names, label_vectors
from ct3dlib.cohort.store import records
from ct3dlib.config import Task
from ct3dlib.datasets.tables import join_names, place_of, volume_key
from ct3dlib.datasets.target_table import Row, parse_targets, read_target_rows
from ct3dlib.errors import ConfigError, DatasetError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Targets:
    """Numbers to learn, by volume; a volume of which nothing is known has none.

    Args:
        names: What each of the K numbers is of: a finding, a class, a column.
        values: K numbers by volume id: 0 or 1, a class as one-hot, or any; NaN where one is not
            known.
    """

    names: tuple[str, ...]
    values: Mapping[str, NDArray[np.float32]]


def catalog_targets(
    catalog: pd.DataFrame, names: Sequence[str] | None = None, *, task: Task
) -> Targets:
    """Return the findings of the catalog's volumes, or else their classes.

    For "multiclass" volumes of other classes than those named are left out; for the other tasks
    they have none of the named ones.

    Args:
        catalog: Of all splits.
        names: Which findings or classes, in this order; None: all.
        task: What they are learnt as.

    Raises:
        ConfigError: A name is not of the catalog, or what it says is of another task.
    """
    known = label_names(catalog)
    chosen = known if names is None else tuple(names)
    for name in chosen:
        if name not in known:
            raise ConfigError(
                f"findings: the catalog has no {name!r}; it has {', '.join(known) or 'no labels'}"
            )
    _check_labels(known, chosen, task)
    places = [known.index(name) for name in chosen]
    vectors = {
        volume: np.array(vector, np.float32)[places]
        for volume, vector in label_vectors(catalog).items()
        if vector is not None
    }
    if task == "multiclass":
        vectors = {volume: vector for volume, vector in vectors.items() if vector.any()}
    return Targets(chosen, vectors)


def _check_labels(known: Sequence[str], chosen: Sequence[str], task: Task) -> None:
    """Raise ConfigError where labels of the catalog cannot be learnt as a task."""
    if not known or task == "regression":
        what = "holds no numbers" if known else "has no labels"
        raise ConfigError(f"task {task}: the catalog {what}; give them in a table, labels.csv")
    if task == "binary" and len(chosen) != 1:
        raise ConfigError(
            f"task binary learns one label, not {len(chosen)} ({', '.join(chosen)}); name one in "
            f"findings, or set task to multilabel"
        )
    if task == "multiclass" and tuple(known) == LABELS:
        raise ConfigError(
            "task multiclass: the catalog has findings, and a volume any number of them; set task "
            "to multilabel"
        )
    if task == "multiclass" and len(chosen) < 2:
        raise ConfigError(
            f"task multiclass needs two classes or more, not {', '.join(chosen)}; set task to "
            f"binary to tell one from all others"
        )


def read_targets(
    table: Path,
    catalog: pd.DataFrame,
    *,
    task: Task,
    path_column: str = "Path",
    columns: Sequence[str] = ("Label",),
) -> Targets:
    """Return what a CSV says of the catalog's volumes.

    A cell is 0 or 1 ("binary", "multilabel"), the name or whole number of a class ("multiclass"),
    or a number ("regression"); a blank one is not known. Classes are all those of the table,
    whichever volumes the catalog has: whole numbers in their order, others by name.

    Args:
        table: Comma-separated, UTF-8.
        catalog: Of all splits.
        task: What is learnt.
        path_column: Path of the scan (relative to the raw root, or with more folders before it),
            its name, or the volume's id.
        columns: What is learnt; one for "binary" and "multiclass".

    Raises:
        DatasetError: The table cannot be read, lacks a column, has a cell of another kind,
            contradicts itself, or says nothing of any volume.
        ValueError: `columns` do not fit the task.
    """
    if task in ("binary", "multiclass") and len(columns) != 1:
        raise ValueError(f"task {task} has one column, not {tuple(columns)}")
    rows = list(read_target_rows(table, (path_column, *columns)))
    if not rows:
        raise DatasetError(f"{table}: no rows below the header; add one per volume")
    names, vectors = parse_targets(table, rows, columns=columns, task=task)
    values = _by_volume(table, rows, vectors=vectors, catalog=catalog)
    known = {volume: vector for volume, vector in values.items() if not np.isnan(vector).all()}
    if not known:
        raise DatasetError(f"{table}: {', '.join(columns)}: blank for every volume; fill it in")
    return Targets(names, known)


def _by_volume(
    table: Path,
    rows: Sequence[Row],
    *,
    vectors: Sequence[NDArray[np.float32]],
    catalog: pd.DataFrame,
) -> dict[str, NDArray[np.float32]]:
    """Return the vectors of rows by the volume that each names.

    Raises:
        DatasetError: Two rows contradict each other, or none names a volume.
    """
    volumes = _Volumes(catalog)
    values: dict[str, NDArray[np.float32]] = {}
    said: dict[str, Row] = {}
    unmatched: list[Row] = []
    for row, vector in zip(rows, vectors, strict=True):
        volume = volumes.find(row, table)
        if volume is None:
            unmatched.append(row)
            continue
        before = said.setdefault(volume, row)
        if not np.array_equal(values.setdefault(volume, vector), vector, equal_nan=True):
            raise DatasetError(
                f"{table}: rows {before.number} and {row.number} contradict each other about "
                f"volume {volume}, {_text(before)} and {_text(row)}; keep one of them"
            )
    _check_matches(table, rows, unmatched=unmatched, example=volumes.example)
    return values


def _check_matches(
    table: Path, rows: Sequence[Row], *, unmatched: Sequence[Row], example: str
) -> None:
    """Log a warning for rows that name no volume; raise DatasetError where all of them do."""
    if len(unmatched) == len(rows):
        raise DatasetError(
            f"{table}: none of {len(rows)} rows names a volume of the catalog; row "
            f"{rows[0].number} has {rows[0].path!r}, the catalog {example}; give paths relative "
            f"to the raw root, or ids of volumes"
        )
    if unmatched:
        first = ", ".join(str(row.number) for row in unmatched[:3])
        logger.warning(
            "%s: %s of %s rows name no volume of the catalog, the first are rows %s",
            table,
            len(unmatched),
            len(rows),
            first,
        )


class _Volumes:
    """The volumes of a catalog by what a table may call them."""

    def __init__(self, catalog: pd.DataFrame) -> None:
        rows = records(catalog.loc[:, ["volume", "kind", "dataset", "sources", "problem"]])
        first = rows[0] if rows else None
        self.example = (
            f"has {first['sources'][0]!r}, volume {first['volume']!r}" if first else "is empty"
        )
        # A damaged file lies in the folder of a sound series, which alone is called by it.
        sound = _by_name([row for row in rows if row["problem"] is None])
        every = _by_name(rows)
        self._names = [{**a, **b} for a, b in zip(every, sound, strict=True)]

    def find(self, row: Row, table: Path) -> str | None:
        """Return the volume that a row names: by path, by id, by last name, by a longer path.

        Raises:
            DatasetError: It names several.
        """
        key = volume_key(row.path.rstrip("/\\"))
        parts = key.split("/")
        places = self._names[0]
        found = [names[key] for names in self._names if key in names]
        tails = ("/".join(parts[start:]) for start in range(1, len(parts)))
        found += [places[tail] for tail in tails if tail in places]
        if not key or not found:
            return None
        volumes = sorted(found[0])
        if len(volumes) > 1:
            raise DatasetError(
                f"{table}: row {row.number}: {row.path!r} names {len(volumes)} volumes, "
                f"{', '.join(volumes[:3])}; give the path relative to the raw root, or the id"
            )
        return volumes[0]


def _by_name(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, set[str]], ...]:
    """Return volumes by their path, by their id, and by the last name of the path."""
    found: tuple[dict[str, set[str]], ...] = ({}, {}, {})
    for row in rows:
        sources, volume = row["sources"], row["volume"]
        place = place_of(sources, kind=row["kind"], dataset=row["dataset"])
        for names, key in zip(found, join_names(place, volume), strict=True):
            names.setdefault(key, set()).add(volume)
        if len(sources) == 1:
            found[0].setdefault(volume_key(sources[0]), set()).add(volume)
    return found


def _text(row: Row) -> str:
    """Return what a row says, for people."""
    return "/".join(cell or "blank" for cell in row.cells)
