"""Studies: what is of one examination, as the catalog says, among the volumes of a store."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from ct3dlib.cohort.store import StoredVolume
from ct3dlib.errors import StoreError

logger = logging.getLogger(__name__)

_NAMES = ("volume", "study", "patient")


@dataclass(frozen=True, eq=False)
class Study:
    """An examination with its stored reconstructions, which share its report.

    Args:
        name: Of the catalog.
        patient: Whose it is.
        volumes: At least one, sorted by name.
    """

    name: str
    patient: str
    volumes: tuple[StoredVolume, ...]


def group_studies(
    volumes: Sequence[StoredVolume],
    catalog: pd.DataFrame,
    *,
    exclusions: Mapping[str, bool] | None = None,
) -> list[Study]:
    """Return the studies of stored volumes, sorted by name.

    Args:
        volumes: Of one recipe; of any splits.
        catalog: Of all splits; its columns `volume`, `study` and `patient` are read.
        exclusions: Volumes, studies or patients and whether each is left out; of a volume the
            nearest name counts, so that one may be taken in of a study that is left out.

    Raises:
        StoreError: A volume is not in the catalog.
    """
    listed = exclusions or {}
    rows = {row[0]: row for row in catalog[[*_NAMES]].itertuples(index=False, name=None)}
    _warn_of_unknown(listed, catalog)
    grouped: dict[tuple[str, str], list[StoredVolume]] = defaultdict(list)
    left_out = 0
    for volume in sorted(volumes, key=lambda one: one.volume):
        if (names := rows.get(volume.volume)) is None:
            raise StoreError(
                f"{volume.volume}: is stored and not in the catalog; run the rule volumes again"
            )
        if next((listed[name] for name in names if name in listed), False):
            left_out += 1
        else:
            grouped[names[1], names[2]].append(volume)
    logger.info(
        "%s studies of %s volumes, %s volumes left out by the exclusions",
        *(len(grouped), len(volumes) - left_out, left_out),
    )
    return [Study(name, patient, tuple(of)) for (name, patient), of in sorted(grouped.items())]


def _warn_of_unknown(listed: Mapping[str, bool], catalog: pd.DataFrame) -> None:
    """Log a warning for names that are of nothing in the catalog: they may be misspelt."""
    known = {name for column in _NAMES for name in catalog[column]}
    if unknown := [name for name in listed if name not in known]:
        logger.warning(
            "%s of %s exclusions are of no volume, study or patient of the catalog, first %s",
            *(len(unknown), len(listed), unknown[0]),
        )
