"""Regions of one shard: from its volume store to a region store on the same grid."""

import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from ct3dlib.cohort.private import RawRoot
from ct3dlib.cohort.stage import OpenShard, Row, fill_shard
from ct3dlib.cohort.status_rows import FIRST_COLUMNS, rejected_row, stored_row
from ct3dlib.cohort.store import StoredVolume, key_of, read_status, records, stored_volumes
from ct3dlib.cohort.stored_array import StoredArray
from ct3dlib.config import RegionsSpec
from ct3dlib.errors import VolumeError
from ct3dlib.regions import Regions, Segmenter, build_segmenter, sidecar
from ct3dlib.regions.drawn import record_of
from ct3dlib.regions.label_map import LABEL_MAP_VERSION
from ct3dlib.regions.mask_node import write_mask_node
from ct3dlib.scan.volume import Volume

# Where things lie and how fast they run; what they are is in hashes beside it.
_ELSEWHERE = {
    "labelmap": {"folder", "strip"},
    "totalsegmentator": {"command", "device"},
    "medsam2": {"weights", "device", "slices_at_a_time"},
}
COLUMNS = {**FIRST_COLUMNS, "backend": "str", "regions": "str", "skipped": "str"}


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
            return _segmented_row(volume.volume, StoredArray(shard.store, node))
        except VolumeError as error:
            rejected = rejected_row(row["volume"], error, message=str(error))
            return {**dict.fromkeys(COLUMNS, ""), **rejected}

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
    facts = {
        "backend": regions.backend,
        "skipped": [asdict(skipped) for skipped in regions.skipped],
        "label_map": LABEL_MAP_VERSION,
        "regions": sidecar(regions, volume.spacing),
    }
    write_mask_node(store, node, regions.mask, volume=volume, kind="regions", facts=facts)


def _segmented_row(volume: str, array: StoredArray) -> Row:
    """Return the row of a segmented volume from what stands in the store."""
    ct3d = array.attributes["ct3d"]
    return {
        **stored_row(volume, array),
        "backend": ct3d["backend"],
        "regions": json.dumps(ct3d["regions"], sort_keys=True),
        "skipped": json.dumps(ct3d["skipped"], sort_keys=True),
    }
