"""Regions of stored volumes against reference masks: overlap, volume, missed and invented ones."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ct3dlib.cohort.location import Location
from ct3dlib.cohort.private import RawRoot
from ct3dlib.cohort.store import StoredVolume, read_status, records, stored_volumes
from ct3dlib.errors import StoreError, VolumeError
from ct3dlib.metrics.overlap import Overlap, overlaps, union_overlap
from ct3dlib.progress import progress
from ct3dlib.regions import Segmenter, sidecar
from ct3dlib.regions.drawn import on_scan, scan_record
from ct3dlib.regions.label_files import LabelMap, read_label_map
from ct3dlib.regions.label_map import LUNGS, REGIONS
from ct3dlib.regions.shard import segment_stored
from ct3dlib.scan.resample import resample_to

logger = logging.getLogger(__name__)

SCORES = (
    *("volume", "id", "region", "dice", "ml", "reference_ml", "volume_error"),
    *("status", "source", "agreement"),
)


@dataclass(frozen=True, eq=False)
class Found:
    """Regions of a stored volume that are to be scored.

    Args:
        mask: D H W on the volume's grid, ids 0-20.
        rows: What `sidecar` says of them.
    """

    mask: NDArray[np.uint8]
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class LeftOut:
    """A volume that could not be compared.

    Args:
        volume: Its id.
        reason: Code, as of a rejected row.
        message: What was wrong.
    """

    volume: str
    reason: str
    message: str


@dataclass(frozen=True, eq=False)
class Comparison:
    """Regions against references.

    Args:
        scores: One row per volume and region, and one for its lungs; columns `SCORES`.
        compared: Number of volumes that were compared.
        left_out: The others.
    """

    scores: pd.DataFrame
    compared: int
    left_out: Sequence[LeftOut]


def stored_regions(volume: StoredVolume) -> Found:
    """Return what a region store holds of a volume.

    Raises:
        StoreError: The stored mask is damaged.
    """
    return Found(volume.read_checked(), volume.array.attributes["ct3d"]["regions"])


def regions_by(segmenter: Segmenter) -> Callable[[StoredVolume], Found]:
    """Return a function that finds the regions of a volume of a volume store."""

    def find(volume: StoredVolume) -> Found:
        regions = segment_stored(volume, segmenter)
        return Found(regions.mask, sidecar(regions, volume.spacing))

    return find


def compare_regions(
    volumes: Sequence[StoredVolume],
    find: Callable[[StoredVolume], Found],
    reference: Callable[[StoredVolume], LabelMap],
) -> Comparison:
    """Return how the regions of volumes overlap with reference masks.

    A volume of which either cannot be had is left out, and the log says so.

    Args:
        volumes: Of a region store or a volume store.
        find: Gives the regions of one.
        reference: Gives the reference on a volume's grid; it is asked first, as a provider may
            take minutes.
    """
    rows: list[dict[str, Any]] = []
    left_out: list[LeftOut] = []
    for volume in progress(volumes, name="regions against references", unit="volume"):
        try:
            truth = reference(volume)
            found = find(volume)
        except VolumeError as error:
            logger.info("%s: left out: %s", volume.volume, error)
            left_out.append(LeftOut(volume.volume, error.reason, str(error)))
            continue
        scores = score_regions(found.mask, truth, voxel_ml=float(np.prod(volume.spacing)) / 1000)
        said = {row["id"]: row for row in found.rows}
        facts = ("status", "source", "agreement")
        rows += [
            {
                "volume": volume.volume,
                **score,
                **{fact: said.get(score["id"], {}).get(fact) for fact in facts},
            }
            for score in scores
        ]
    scores = pd.DataFrame(rows, columns=[*SCORES]).astype({"id": "Int64"})
    return Comparison(scores, len(volumes) - len(left_out), left_out)


def score_regions(
    mask: NDArray[np.uint8], reference: LabelMap, *, voxel_ml: float
) -> list[dict[str, Any]]:
    """Return one row per region, then one of the lungs as one object (id null).

    A region counts where the reference knows of it and one of the two masks holds it: the Dice of
    one that is missed or invented is 0. The lungs count where the reference knows all lobes.

    Args:
        mask: D H W, ids 0-20.
        reference: On the same grid.
        voxel_ml: Volume of a voxel.

    Raises:
        ValueError: The shapes differ.
    """
    truth = np.asarray(reference.volume.array, np.uint8)
    counted = overlaps(mask, truth, sorted(reference.known))
    objects: list[tuple[int | None, str, Overlap]] = [
        (i, REGIONS[i], o) for i, o in counted.items()
    ]
    if reference.known.issuperset(LUNGS):
        objects.append((None, "lungs", union_overlap(mask, truth, LUNGS)))
    return [
        {
            "id": i,
            "region": name,
            "dice": overlap.dice,
            "ml": overlap.predicted * voxel_ml,
            "reference_ml": overlap.truth * voxel_ml,
            "volume_error": overlap.volume_error,
        }
        for i, name, overlap in objects
        if overlap.predicted or overlap.truth
    ]


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row per region, by id, the lungs last.

    Args:
        scores: Of a comparison.

    Returns:
        Rows of `id` (null for the lungs), `region`, `n` (volumes where it counts), `dice` and
        `dice_median` over them, `volume_error` (mean; null where no reference holds it), `missed`
        (volumes where only the reference holds it), `invented` (where only the mask does).
    """
    rows = [
        {
            "id": None if name == "lungs" else REGIONS.index(str(name)),
            "region": name,
            "n": len(group),
            "dice": group["dice"].mean(),
            "dice_median": group["dice"].median(),
            "volume_error": group["volume_error"].mean(),
            "missed": np.count_nonzero(group["ml"] == 0),
            "invented": np.count_nonzero(group["reference_ml"] == 0),
        }
        for name, group in scores.groupby("region")
    ]
    names = ["id", "region", "n", "dice", "dice_median", "volume_error", "missed", "invented"]
    frame = pd.DataFrame(rows, columns=names).astype({"id": "Int64"})
    return frame.sort_values("id", na_position="last", ignore_index=True)


def evaluate_regions(
    catalog: pd.DataFrame, tables: Sequence[Path], *, raw: RawRoot
) -> dict[str, Any]:
    """Return how a region store overlaps with the true masks that a catalog names.

    Args:
        catalog: Names the true mask of each volume, as a source.
        tables: Status tables of the region store.
        raw: Where the masks are.

    Returns:
        `dice`, `dice_median`, `volume_error`, `missed`, `invented`, `n_by_region`: a number for
        each region, and for the lungs as a whole, as `summarise`. `n` volumes were compared and
        `left_out` could not be; `backend` names all who had a part in the masks, `spacing` is
        theirs, mm.

    Raises:
        StoreError: No volume of the tables has a true mask, or one is not of its scan.
    """
    truths = {row["volume"]: row["regions_truth"] for row in records(catalog)}
    volumes = [volume for volume in stored_volumes(tables) if truths.get(volume.volume)]
    if not volumes:
        raise StoreError("no volume of these region tables has a true mask in the catalog")
    found = compare_regions(
        volumes,
        stored_regions,
        lambda volume: _on_grid(raw.path(truths[volume.volume]), volume),
    )
    if not found.compared:
        raise StoreError(
            f"none of {len(volumes)} true masks can be used; {found.left_out[0].message}"
        )
    by_region = records(summarise(found.scores))
    names = ("dice", "dice_median", "volume_error", "missed", "invented")
    return {
        **{name: {row["region"]: row[name] for row in by_region} for name in names},
        "n_by_region": {row["region"]: row["n"] for row in by_region},
        "backend": backends(tables),
        "spacing": list(volumes[0].spacing),
        "n": found.compared,
        "left_out": len(found.left_out),
    }


def backends(tables: Sequence[Location]) -> str:
    """Return all who had a part in the masks of region tables, as "labelmap+classical"."""
    rows = [row for table in tables for row in records(read_status(table))]
    named = [row["backend"].split("+") for row in rows if row["status"] == "stored"]
    return "+".join(dict.fromkeys(part for parts in named for part in parts))


def _on_grid(path: Path, volume: StoredVolume) -> LabelMap:
    """Return a true mask on the grid of a stored volume."""
    record = scan_record(volume)
    truth = read_label_map(path, numbering="regions")
    try:
        placed = on_scan(path, truth.volume, record)
    except VolumeError as error:
        raise StoreError(str(error)) from error
    found = resample_to(placed, affine=volume.affine, shape=volume.shape, fill=0, nearest=True)
    return LabelMap(found, truth.known)
