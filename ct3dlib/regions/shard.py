"""Regions of one shard: from its volume store to a region store on the same grid."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from ct3dlib.cohort.private import RawRoot
from ct3dlib.cohort.stage import OpenShard, Row, fill_shard
from ct3dlib.cohort.store import (
    StoredVolume,
    key_of,
    read_status,
    records,
    stored_volumes,
    write_node,
)
from ct3dlib.config import RegionsSpec
from ct3dlib.errors import VolumeError
from ct3dlib.regions import Regions, Segmenter, build_segmenter, sidecar
from ct3dlib.regions.drawn import record_of
from ct3dlib.regions.label_map import LABEL_MAP_VERSION
from ct3dlib.scan.volume import Volume

# Where things lie and how fast they run; what they are is in hashes beside it.
_ELSEWHERE = {
    "labelmap": {"folder", "strip"},
    "totalsegmentator": {"command", "device"},
    "medsam2": {"weights", "device", "slices_at_a_time"},
}
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
    "skipped": "str",
}


def segment_shard(
    volumes: Path, spec: RegionsSpec, *, raw: RawRoot, code: str, status: Path
) -> pd.DataFrame:
    """Segment every stored volume of a shard and write the region store's status table.

    Volumes that were rejected before keep their reason; finished ones whose key (volume, what
    providers know of it, spec, code) is unchanged are kept.

    Args:
        volumes: Status table of the volume shard.
        spec: Who finds regions, and how.
        raw: The raw root, where label maps lie.
        code: Fingerprint of the code that does it.
        status: Where the status table goes; the store lies beside it.

    Returns:
        The status table, one row per row of `volumes`.

    Raises:
        StoreError, ConfigError, CheckpointError: As `build_segmenter`.
    """
    stored = {v.volume: v for v in stored_volumes([volumes])}
    segmenter = build_segmenter(spec, raw)
    unused = {"labelmap", "totalsegmentator"} - set(spec.providers)
    settings = spec.model_dump(mode="json", exclude={**_ELSEWHERE, **dict.fromkeys(unused, True)})

    def make_row(row: Row, shard: OpenShard) -> Row:
        try:
            if row["status"] != "stored":
                raise VolumeError(row["reason"], row["message"])
            volume = stored[row["volume"]]
            known = segmenter.identity(volume.volume, volume.sources)
            node = f"{volume.volume}@{key_of(volume.identity, known, settings, code)}"
            shard.ensure(
                node,
                lambda: _segment_volume(volume, segmenter, store=shard.store, node=node),
            )
            return _stored_row(volume.volume, shard.store, node)
        except VolumeError as error:
            return _rejected_row(row["volume"], error)

    rows = records(read_status(volumes))
    return fill_shard(rows, make_row, status=status, kind="regions", columns=COLUMNS)


def segment_stored(volume: StoredVolume, segmenter: Segmenter) -> Regions:
    """Return the regions of a stored volume.

    Raises:
        VolumeError: As the segmenter.
        StoreError: The stored volume is damaged.
    """
    ct3d = volume.array.attributes["ct3d"]
    return segmenter(
        Volume(volume.read_checked(), volume.affine, ct3d["domain"]),
        name=volume.volume,
        sources=volume.sources,
        record=record_of(volume),
    )


def _segment_volume(volume: StoredVolume, segmenter: Segmenter, *, store: Path, node: str) -> None:
    """Segment one volume and write its mask."""
    regions = segment_stored(volume, segmenter)
    attributes: dict[str, Any] = {
        "ome": volume.array.attributes["ome"],
        "ct3d": {
            "volume": volume.volume,
            "volume_sha256": volume.sha256,
            "source": list(volume.sources),
            "affine": volume.affine.tolist(),
            "domain": "regions",
            "record": volume.array.attributes["ct3d"].get("record"),
            "backend": regions.backend,
            "skipped": [asdict(skipped) for skipped in regions.skipped],
            "label_map": LABEL_MAP_VERSION,
            "regions": sidecar(regions, volume.spacing),
        },
    }
    write_node(store, node, regions.mask, attributes=attributes)


def _stored_row(volume: str, store: Path, node: str) -> Row:
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
        "skipped": json.dumps(ct3d["skipped"], sort_keys=True),
    }


def _rejected_row(volume: str, error: VolumeError) -> Row:
    """Return the row of a volume that has no regions."""
    return {
        **dict.fromkeys(COLUMNS, ""),
        "volume": volume,
        "status": "rejected",
        "reason": error.reason,
        "message": str(error),
        "shape": None,
    }
