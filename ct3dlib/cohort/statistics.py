"""What a recipe's store holds, measured: counts, grids, intensities, losses, duplicates, disk."""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ct3dlib.cohort.histogram import pool
from ct3dlib.cohort.split import check_patients
from ct3dlib.cohort.store import read_status, records, store_of
from ct3dlib.cohort.verify import stores_without_table
from ct3dlib.config import SPLITS
from ct3dlib.errors import StoreError

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]

HEAVY_LOSS = 0.1  # share of the body that a crop cut off
_LIGHT_LOSS = 0.01
_TILT = 0.1  # degrees; less is rounding
_QUANTILES = {"min": 0, "p5": 5, "p50": 50, "p95": 95, "max": 100}

# Name -> whether the facts of a volume say so.
FACTS: dict[str, Callable[[Row], bool]] = {
    "tilted": lambda facts: abs(facts.get("tilt") or 0) > _TILT,
    "interpolated": lambda facts: bool(facts.get("interpolated")),
    "lossy": lambda facts: facts.get("LossyImageCompression") == "01",
    "duplicate_slices": lambda facts: bool(facts.get("duplicates")),
    "assumed_orientation": lambda facts: bool(facts.get("assumed_orientation")),
    "spacing_differs": lambda facts: bool(
        facts.get("header_spacing_differs") or facts.get("metadata_spacing_differs")
    ),
}


def measure(catalog: pd.DataFrame, tables: Sequence[Path]) -> dict[str, Any]:
    """Return the statistics of a recipe's store, ready for JSON.

    `splits` has a part for each split and for `all`; `duplicates` lists volumes made of the same
    file or holding the same voxels; `disk` is what the groups of the stored volumes take. Lengths
    are (D, H, W), in voxels or mm; `lost` is the share of body voxels that the crop cut off.

    Args:
        catalog: The catalog that the tables were made from.
        tables: Status tables of all shards of the recipe.

    Raises:
        StoreError: A table is missing or damaged, or a volume is in no or in two tables or not
            in the catalog.
        DatasetError: A patient is in two splits.
    """
    rows = _joined(catalog, tables)
    check_patients((row["patient"], row["split"]) for row in rows)
    for store in stores_without_table(tables):
        logger.warning("%s: no shard of the catalog; delete it with its status table", store)
    groups = {"all": rows, **{s: [r for r in rows if r["split"] == s] for s in SPLITS}}
    return {
        "splits": {name: _group(group) for name, group in groups.items()},
        "duplicates": _duplicates(rows),
        "disk": _disk(rows),
    }


def _joined(catalog: pd.DataFrame, tables: Sequence[Path]) -> list[dict[str, Any]]:
    """Return a row per volume of the catalog: its columns, and its status row under `stored`."""
    found: dict[str, dict[str, Any]] = {}
    for table in tables:
        for row in records(read_status(table)):
            if row["volume"] in found:
                raise StoreError(
                    f"{table}: volume {row['volume']} is in another table too; run the volumes' "
                    f"rule again, or delete the table of a shard that is no longer in the catalog"
                )
            found[row["volume"]] = {**row, "store": store_of(table)}
    rows = records(catalog)
    if missing := [row["volume"] for row in rows if row["volume"] not in found]:
        raise StoreError(f"volume {missing[0]} is in no status table; run the volumes' rule again")
    if strays := found.keys() - {row["volume"] for row in rows}:
        raise StoreError(f"volume {min(strays)} is not in the catalog; run the volumes' rule again")
    return [{**row, "stored": found[row["volume"]]} for row in rows]


def _group(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the statistics of some volumes."""
    kept = [row["stored"] for row in rows if row["stored"]["status"] == "stored"]
    facts = [json.loads(row["facts"]) for row in kept]
    return {
        "series": len(rows),
        "patients": len({row["patient"] for row in rows}),
        "stored": len(kept),
        "rejected": len(rows) - len(kept),
        "reasons": _counts(row["stored"]["reason"] for row in rows if row["stored"]["reason"]),
        "hu_state": _counts(row["hu_state"] for row in kept),
        "facts": {name: sum(holds(f) for f in facts) for name, holds in FACTS.items()},
        "source": {name: _lengths(row[name] for row in rows) for name in ("shape", "spacing")},
        "grid": {name: _lengths(row[name] for row in kept) for name in ("shape", "spacing")},
        "lost": _losses([row["lost"] for row in kept]),
        "intensity": pool([json.loads(row["intensity"]) for row in kept]),
    }


def _counts(values: Iterable[str]) -> dict[str, int]:
    """Return how often each value occurs, by name."""
    return dict(sorted(Counter(values).items()))


def _lengths(triples: Iterable[Sequence[float] | None]) -> dict[str, Any]:
    """Return quantiles per axis, D H W, of the lengths that are known."""
    known = np.array([triple for triple in triples if triple is not None], dtype=np.float64)
    if not known.size:
        return {"n": 0}
    values = {name: np.percentile(known, q, axis=0).tolist() for name, q in _QUANTILES.items()}
    return {"n": len(known), **values}


def _losses(lost: Sequence[float]) -> dict[str, Any]:
    """Return how much of the body crops cut off."""
    if not lost:
        return {"n": 0}
    return {
        "n": len(lost),
        "mean": float(np.mean(lost)),
        "p50": float(np.percentile(lost, 50)),
        "p95": float(np.percentile(lost, 95)),
        "max": float(np.max(lost)),
        "over_1_percent": sum(share > _LIGHT_LOSS for share in lost),
        "over_10_percent": sum(share > HEAVY_LOSS for share in lost),
    }


def _duplicates(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the groups of volumes of the same source, and of the same voxels else."""
    groups: dict[tuple[str, tuple[Any, ...]], list[Row]] = defaultdict(list)
    for row in rows:
        stored = row["stored"]
        if stored["status"] == "stored":
            groups["source", (stored["source_sha256"], row["item"])].append(row)
            groups["voxels", (stored["sha256"],)].append(row)
    listed = []
    seen: set[tuple[str, ...]] = set()
    for (same, _), group in sorted(groups.items(), key=lambda item: item[0][0]):
        names = tuple(row["volume"] for row in group)
        if len(names) > 1 and names not in seen:
            seen.add(names)
            splits = sorted({row["split"] for row in group}, key=SPLITS.index)
            listed.append({"same": same, "volumes": list(names), "splits": splits})
    return sorted(listed, key=lambda group: (-len(group["splits"]), group["volumes"]))


def _disk(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what the groups of the stored volumes take."""
    kept = [row["stored"] for row in rows if row["stored"]["status"] == "stored"]
    if not kept:
        return {"volumes": 0, "files": 0, "bytes": 0}
    sizes = [
        file.stat().st_size
        for row in kept
        for file in (row["store"] / row["node"]).rglob("*")
        if file.is_file()
    ]
    voxels = sum(int(np.prod(row["shape"], dtype=np.int64)) for row in kept)
    return {
        "volumes": len(kept),
        "files": len(sizes),
        "bytes": sum(sizes),
        "files_per_volume": len(sizes) / len(kept),
        "bytes_per_volume": sum(sizes) / len(kept),
        "bytes_per_voxel": sum(sizes) / voxels,
    }
