"""One shard of volumes: from raw series to int16 HU in a store, bad ones as rejected rows."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from ct3dlib.cohort.catalog import without_root
from ct3dlib.cohort.stage import OpenShard, Row, fill_shard
from ct3dlib.cohort.store import key_of, records, write_node
from ct3dlib.config import RecipeSpec
from ct3dlib.errors import VolumeError
from ct3dlib.scan.dicom import read_dicom
from ct3dlib.scan.intensity import to_hu
from ct3dlib.scan.nifti import read_nifti
from ct3dlib.scan.normalize import normalize
from ct3dlib.scan.reading import Reading

logger = logging.getLogger(__name__)

COLUMNS = {
    "volume": "str",
    "status": "str",
    "reason": "str",
    "message": "str",
    "node": "str",
    "sha256": "str",
    "source_sha256": "str",
    "shape": "object",
    "spacing": "object",
    "hu_state": "str",
    "lost": "float64",
    "facts": "str",
}
_PROVENANCE = ("sources", "size", "mtime_ns", "metadata_hash", "slope", "intercept", "spacing")


def store_shard(
    rows: pd.DataFrame, root: Path, *, recipe: RecipeSpec, code: str, status: Path
) -> pd.DataFrame:
    """Store every series of a shard and write its status table.

    Finished volumes whose key (source, recipe, code) is unchanged are kept. A volume that cannot
    be used becomes a rejected row; only a fault of the store itself raises.

    Args:
        rows: The shard's slice of the catalog.
        root: Folder that the rows' sources are relative to.
        recipe: How volumes are normalised.
        code: Fingerprint of the code that does it.
        status: Where the status table goes; the store lies beside it.

    Returns:
        The status table: exactly one row per row of `rows`, in the same order.

    Raises:
        StoreError: The store holds something else, or does not read back what was written.
    """

    def make_row(row: Row, shard: OpenShard) -> Row:
        return _store_row(row, root, recipe=recipe, code=code, shard=shard)

    return fill_shard(records(rows), make_row, status=status, kind="volumes", columns=COLUMNS)


def _store_row(row: Row, root: Path, *, recipe: RecipeSpec, code: str, shard: OpenShard) -> Row:
    """Return the status row of one series, stored or rejected."""
    volume = row["volume"]
    made_by = recipe.model_dump(mode="json", exclude={"window", "range"})
    key = key_of({k: row[k] for k in _PROVENANCE}, made_by, code)
    node = f"{volume}@{key}"
    try:
        if row["problem"]:
            raise VolumeError(row["problem"], row["problem_message"])
        shard.ensure(
            node,
            lambda: _store_volume(row, root, recipe=recipe, store=shard.store, node=node),
        )
        return _status_row(volume, shard.store, node)
    except VolumeError as error:
        logger.warning("%s: rejected, %s: %s", volume, error.reason, error)
        empty = dict.fromkeys(COLUMNS, "")
        return {
            **empty,
            "volume": volume,
            "status": "rejected",
            "reason": error.reason,
            "message": without_root(str(error), root),
            "shape": None,
            "spacing": None,
            "lost": float("nan"),
        }


def _store_volume(row: Row, root: Path, *, recipe: RecipeSpec, store: Path, node: str) -> None:
    """Read, rescale, normalise and write one series."""
    reading = read_series(row, root)
    hu = to_hu(reading, slope=row["slope"], intercept=row["intercept"], state=recipe.hu_state)
    volume, record = normalize(hu.volume, recipe)
    spacing = list(volume.spacing)
    facts = {**reading.facts, **hu.evidence}
    attributes = {
        "ome": _multiscales(str(row["volume"]), spacing),
        "ct3d": {
            "volume": row["volume"],
            "source": list(row["sources"]),
            "source_sha256": reading.sha256,
            "affine": volume.affine.tolist(),
            "domain": volume.domain,
            "hu_state": hu.state,
            "record": record.model_dump(mode="json"),
            "facts": json.loads(json.dumps(facts, default=str)),
        },
    }
    write_node(store, node, volume.array, attributes=attributes)


def read_series(row: Mapping[str, Any], root: Path) -> Reading:
    """Read the series of a catalog row.

    Raises:
        VolumeError: The series cannot be read, or a source points out of `root`.
    """
    for source in row["sources"]:
        pure = PurePosixPath(source)
        if pure.is_absolute() or ".." in pure.parts:
            raise VolumeError("UNSAFE_PATH", f"{source}: points out of {root}; correct the catalog")
    paths = [root / source for source in row["sources"]]
    if row["kind"] == "dicom":
        return read_dicom(paths)
    if row["spacing"] is None:
        return read_nifti(paths[0])
    depth, height, width = row["spacing"]
    return read_nifti(paths[0], spacing=(depth, height, width))


def _multiscales(name: str, spacing: list[float]) -> dict[str, Any]:
    """Return OME-Zarr 0.5 metadata of one level."""
    axes = [{"name": axis, "type": "space", "unit": "millimeter"} for axis in "zyx"]
    scale = [{"type": "scale", "scale": spacing}]
    level = {"path": "0", "coordinateTransformations": scale}
    return {"version": "0.5", "multiscales": [{"name": name, "axes": axes, "datasets": [level]}]}


def _status_row(volume: str, store: Path, node: str) -> Row:
    """Return the row of a stored volume from what stands in the store."""
    group = json.loads((store / node / "zarr.json").read_text())["attributes"]
    shape = json.loads((store / node / "0" / "zarr.json").read_text())["shape"]
    ct3d = group["ct3d"]
    scale = group["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"]
    return {
        "volume": volume,
        "status": "stored",
        "reason": "",
        "message": "",
        "node": node,
        "sha256": ct3d["sha256"],
        "source_sha256": ct3d["source_sha256"],
        "shape": shape,
        "spacing": scale,
        "hu_state": ct3d["hu_state"],
        "lost": float(ct3d["record"].get("lost", 0.0)),
        "facts": json.dumps(ct3d["facts"], sort_keys=True),
    }
