"""Whole-dataset encoding: a shard of volumes to packed token indices, and the split's table."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ct3dlib.cohort.packing import pack_indices, unpack_indices
from ct3dlib.cohort.stage import OpenShard, Row, fill_shard
from ct3dlib.cohort.store import (
    StoredArray,
    StoredVolume,
    has_node,
    key_of,
    read_status,
    records,
    store_of,
    stored_volumes,
    write_node,
)
from ct3dlib.config import TokensSpec
from ct3dlib.errors import StoreError, VolumeError
from ct3dlib.inference.contract import check_volumes
from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.inference.reconstruct import encode_volume

COLUMNS = {
    "volume": "str",
    "status": "str",
    "stage": "str",
    "reason": "str",
    "message": "str",
    "node": "str",
    "sha256": "str",
    "shape": "object",
    "bits": "int64",
    "source_sha256": "str",
    "volume_sha256": "str",
    "tokenizer_sha256": "str",
    "code": "str",
}


def encode_shard(
    volumes: Path, tokenizer: Tokenizer, spec: TokensSpec, *, code: str, status: Path
) -> pd.DataFrame:
    """Encode every stored volume of a shard and write the token store's status table.

    Args:
        volumes: Status table of the volume shard.
        tokenizer: A trained tokenizer, on the device to use.
        spec: How windows are batched; part of the token format.
        code: Fingerprint of the code that does it.
        status: Where the status table goes; the store lies beside it.

    Returns:
        The status table, one row per row of `volumes`.

    Raises:
        CheckpointError: The volumes are of another recipe than the tokenizer's.
        StoreError: The store of the volumes is damaged, or holds something else.
    """
    stored = {v.volume: v for v in stored_volumes([volumes])}
    check_volumes(tokenizer.recipe, stored.values(), model=tokenizer.name)

    def make_row(row: Row, shard: OpenShard) -> Row:
        provenance = {
            "volume": row["volume"],
            "source_sha256": row["source_sha256"],
            "volume_sha256": row["sha256"],
            "tokenizer_sha256": tokenizer.sha256,
            "code": code,
        }
        if row["status"] != "stored":
            return _rejected(provenance, "volumes", row["reason"], row["message"])
        volume = stored[row["volume"]]
        key = key_of(volume.identity, tokenizer.sha256, spec.windows_per_batch, code)
        node = f"{volume.volume}@{key}"
        try:
            shard.ensure(
                node,
                lambda: _encode_volume(volume, tokenizer, spec, store=shard.store, node=node),
            )
            return {**provenance, **_encoded(shard.store, node)}
        except VolumeError as error:
            return _rejected(provenance, "tokens", error.reason, str(error))

    rows = records(read_status(volumes))
    return fill_shard(rows, make_row, status=status, kind="tokens", columns=COLUMNS)


def _encode_volume(
    volume: StoredVolume, tokenizer: Tokenizer, spec: TokensSpec, *, store: Path, node: str
) -> None:
    """Encode one volume and write its packed indices."""
    recipe = tokenizer.recipe
    encoded = encode_volume(
        tokenizer.model,
        volume.read_checked(),
        window=volume.own_window or recipe.window,
        value_range=recipe.range,
        windows_per_batch=spec.windows_per_batch,
    )
    indices = encoded.indices.cpu().numpy()
    bits = tokenizer.model.quantizer.bits
    ct3d = {
        "volume": volume.volume,
        "volume_sha256": volume.sha256,
        "tokenizer_sha256": tokenizer.sha256,
        "shape": list(indices.shape),
        "bits": bits,
        "volume_shape": list(volume.shape),
        "affine": volume.affine.tolist(),
        "bit_order": "msb_first_channel0",
        "axis_order": "dhw",
        "windows_per_batch": spec.windows_per_batch,
        "record": volume.array.attributes["ct3d"]["record"],
    }
    write_node(store, node, pack_indices(indices, bits), attributes={"ct3d": ct3d})


def _encoded(store: Path, node: str) -> Row:
    """Return the row of an encoded volume from what stands in the store."""
    ct3d = StoredArray(store, node).attributes["ct3d"]
    return {
        "status": "encoded",
        "stage": "",
        "reason": "",
        "message": "",
        "node": node,
        "sha256": ct3d["sha256"],
        "shape": ct3d["shape"],
        "bits": ct3d["bits"],
    }


def _rejected(provenance: Row, stage: str, reason: str, message: str) -> Row:
    """Return the row of a volume without tokens."""
    return {
        **provenance,
        "status": "rejected",
        "stage": stage,
        "reason": reason,
        "message": message,
        "node": "",
        "sha256": "",
        "shape": None,
        "bits": 0,
    }


def read_indices(array: StoredArray) -> NDArray[np.int64]:
    """Return the token indices of a volume, d h w."""
    ct3d = array.attributes["ct3d"]
    return unpack_indices(array.read(), int(ct3d["bits"]), tuple(ct3d["shape"]))


def collect_tokens(
    volumes: Sequence[str], tables: Sequence[Path]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Join the shards' token tables of one split and hold them against the catalog.

    Args:
        volumes: Ids of the split's catalog rows.
        tables: Status tables of its token shards.

    Returns:
        The table with exactly one row per catalog row, sorted by volume, with its shard, and a
        summary: counts, reasons, tokens, digest of the indices' hashes.

    Raises:
        StoreError: A volume of the catalog is missing, or there twice, or its tokens are not in
            the store that its table names.
    """
    frames = []
    for path in tables:
        frame = read_status(path)
        for node in frame.loc[frame["status"] == "encoded", "node"]:
            if not has_node(store_of(path), node):
                raise StoreError(f"{store_of(path) / node}: gone; delete {path} and run again")
        frames.append(frame.assign(shard=int(path.stem)))
    table = pd.concat(frames).sort_values("volume").reset_index(drop=True)
    wanted, found = sorted(volumes), table["volume"].tolist()
    if found != wanted:
        odd = sorted(set(wanted) ^ set(found)) or [v for v in found if found.count(v) > 1]
        raise StoreError(
            f"the token tables hold {len(found)} rows, the catalog {len(wanted)}; they differ at "
            f"{odd[0]}; delete the split's token tables and run again"
        )
    rows = records(table)
    encoded = [row for row in rows if row["status"] == "encoded"]
    lines = "\n".join(f"{row['volume']} {row['sha256']}" for row in encoded)
    bits = sorted({row["bits"] for row in encoded})
    rejected = Counter(row["reason"] for row in rows if row["status"] == "rejected")
    summary = {
        "volumes": len(rows),
        "encoded": len(encoded),
        "rejected": dict(sorted(rejected.items())),
        "tokens": sum(math.prod(row["shape"]) for row in encoded),
        "bits_per_token": bits[0] if len(bits) == 1 else bits,
        "digest": hashlib.sha256(lines.encode()).hexdigest(),
    }
    return table, summary
