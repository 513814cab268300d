"""Whole-dataset encoding: a shard of volumes to packed token indices, and the split's table."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ct3dlib.cohort.packing import pack_indices, unpack_indices
from ct3dlib.cohort.store import StoredArray, StoredVolume, records
from ct3dlib.config import TokensSpec
from ct3dlib.errors import StoreError
from ct3dlib.inference.loaded import Tokenizer, bit_order
from ct3dlib.inference.reconstruct import encode_volume
from ct3dlib.inference.shards import Encoding, VolumeShard, fill_encoded, join_tables


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
        CheckpointError: The volumes are of another recipe than the tokenizer's, or the model
            makes no tokens.
        StoreError: The store of the volumes is damaged, or holds something else.
    """
    bits = tokenizer.quantizer.bits
    source = VolumeShard(volumes, tokenizer, spec, code)

    def encode(volume: StoredVolume) -> tuple[NDArray[np.uint8], Mapping[str, Any]]:
        encoded = encode_volume(
            tokenizer,
            volume.read_checked(),
            window=source.window(volume),
            windows_per_batch=spec.windows_per_batch,
        )
        indices = encoded.indices.cpu().numpy()
        attributes = {
            "shape": list(indices.shape),
            "bits": bits,
            "bit_order": bit_order(tokenizer.model.spec),
            "windows_per_batch": spec.windows_per_batch,
        }
        return pack_indices(indices, bits), attributes

    return fill_encoded(source, Encoding("tokens", encode, {"bits": "int64"}), status=status)


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
    table, counts = join_tables(tables)
    wanted, found = sorted(volumes), table["volume"].tolist()
    if found != wanted:
        odd = sorted(set(wanted) ^ set(found)) or [v for v in found if found.count(v) > 1]
        raise StoreError(
            f"the token tables hold {len(found)} rows, the catalog {len(wanted)}; they differ at "
            f"{odd[0]}; delete the split's token tables and run again"
        )
    encoded = [row for row in records(table) if row["status"] == "encoded"]
    lines = "\n".join(f"{row['volume']} {row['sha256']}" for row in encoded)
    bits = sorted({row["bits"] for row in encoded})
    summary = {
        **counts,
        "tokens": sum(math.prod(row["shape"]) for row in encoded),
        "bits_per_token": bits[0] if len(bits) == 1 else bits,
        "digest": hashlib.sha256(lines.encode()).hexdigest(),
    }
    return table, summary
