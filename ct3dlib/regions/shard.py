"""Regions of one shard: from its volume store to a region store on the same grid."""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from ct3dlib.cohort.attempts import Attempts
from ct3dlib.cohort.store import (
    StoredVolume,
    create_store,
    has_node,
    key_of,
    prune,
    read_status,
    records,
    store_of,
    stored_volumes,
    write_node,
    write_table,
)
from ct3dlib.config import RegionsSpec
from ct3dlib.errors import VolumeError
from ct3dlib.progress import progress
from ct3dlib.regions import segment, sidecar
from ct3dlib.regions.label_map import LABEL_MAP_VERSION
from ct3dlib.scan.volume import Volume

logger = logging.getLogger(__name__)

COLUMNS = {
    "volume": "str",
    "status": "str",
    "reason": "str",
    "message": "str",
    "node": "str",
    "sha256": "str",
    "shape": "object",
    "backend": "str",
    "regions": "str",
}


def segment_shard(volumes: Path, spec: RegionsSpec, *, code: str, status: Path) -> pd.DataFrame:
    """Segment every stored volume of a shard and write the region store's status table.

    Volumes that were rejected before keep their reason; finished ones whose key (volume, spec,
    code) is unchanged are kept.

    Args:
        volumes: Status table of the volume shard.
        spec: Which backend, and its settings.
        code: Fingerprint of the code that does it.
        status: Where the status table goes; the store lies beside it.

    Returns:
        The status table, one row per row of `volumes`.
    """
    store = store_of(status)
    store.parent.mkdir(parents=True, exist_ok=True)
    stored = {v.volume: v for v in stored_volumes([volumes])}
    with FileLock(store.with_name(f"{store.name}.lock")):
        create_store(store, "regions")
        attempts = Attempts(status.with_suffix(".attempts.json"))
        done = []
        rows = records(read_status(volumes))
        for row in progress(rows, name=f"regions {status.stem}", unit="volume"):
            try:
                if row["status"] != "stored":
                    raise VolumeError(row["reason"], row["message"])
                volume = stored[row["volume"]]
                node = f"{volume.volume}@{key_of(volume.sha256, spec.model_dump(), code)}"
                if not has_node(store, node):
                    with attempts.guard(volume.volume):
                        _segment_volume(volume, spec, store=store, node=node)
                done.append(_stored_row(volume.volume, store, node))
            except VolumeError as error:
                done.append(_rejected_row(row["volume"], error))
        frame = pd.DataFrame(done, columns=list(COLUMNS)).astype(COLUMNS)
        write_table(frame, status)
        prune(store, set(frame["node"]))
    logger.info("%s: %s segmented", status, sum(row["status"] == "stored" for row in done))
    return frame


def _segment_volume(volume: StoredVolume, spec: RegionsSpec, *, store: Path, node: str) -> None:
    """Segment one volume and write its mask."""
    regions = segment(Volume(volume.read(), volume.affine), spec)
    attributes: dict[str, Any] = {
        "ome": volume.array.attributes["ome"],
        "ct3d": {
            "volume": volume.volume,
            "volume_sha256": volume.sha256,
            "affine": volume.affine.tolist(),
            "domain": "regions",
            "record": volume.array.attributes["ct3d"]["record"],
            "backend": spec.backend,
            "label_map": LABEL_MAP_VERSION,
            "regions": sidecar(regions, volume.spacing),
        },
    }
    write_node(store, node, regions.mask, attributes=attributes)


def _stored_row(volume: str, store: Path, node: str) -> dict[str, Any]:
    """Return the row of a segmented volume from what stands in the store."""
    ct3d = json.loads((store / node / "zarr.json").read_text())["attributes"]["ct3d"]
    shape = json.loads((store / node / "0" / "zarr.json").read_text())["shape"]
    return {
        "volume": volume,
        "status": "stored",
        "reason": "",
        "message": "",
        "node": node,
        "sha256": ct3d["sha256"],
        "shape": shape,
        "backend": ct3d["backend"],
        "regions": json.dumps(ct3d["regions"], sort_keys=True),
    }


def _rejected_row(volume: str, error: VolumeError) -> dict[str, Any]:
    """Return the row of a volume that has no regions."""
    return {
        **dict.fromkeys(COLUMNS, ""),
        "volume": volume,
        "status": "rejected",
        "reason": error.reason,
        "message": str(error),
        "shape": None,
    }
