"""Whole-dataset latents: a shard of volumes to float arrays, and how their channels are spread.

Letters: C latent channels, d h w latent grid.

Latents are what a model encodes before quantization, of a variational one the mean. They are
kept as float32: 16 bits would round some across the border between two codes, so that they would
not decode to what the tokens do, and they are small beside the volumes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ct3dlib.cohort.store import StoredArray, StoredVolume, records, store_of
from ct3dlib.config import TokensSpec
from ct3dlib.errors import StoreError
from ct3dlib.inference.decode import find_encoded, to_volume, window_of
from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.inference.reconstruct import decode_latents, encode_to_latents
from ct3dlib.inference.shards import Encoding, VolumeShard, fill_encoded, join_tables
from ct3dlib.metrics.latents import ChannelStatistics
from ct3dlib.scan.volume import Volume


def store_latents_shard(
    volumes: Path, tokenizer: Tokenizer, spec: TokensSpec, *, code: str, status: Path
) -> pd.DataFrame:
    """Store the latents of every stored volume of a shard; finished ones are kept.

    Args:
        volumes: Status table of the volume shard.
        tokenizer: A trained model of any kind, on the device to use.
        spec: How windows of a causal model are batched.
        code: Fingerprint of the code that does it.
        status: Where the status table goes; the store lies beside it.

    Returns:
        The status table, one row per row of `volumes`.

    Raises:
        CheckpointError: The volumes are of another recipe than the model's.
        StoreError: The store of the volumes is damaged, or holds something else.
    """
    source = VolumeShard(volumes, tokenizer, spec, code)

    def encode(volume: StoredVolume) -> tuple[NDArray[np.float32], Mapping[str, Any]]:
        latents = encode_to_latents(
            tokenizer,
            volume.read_checked(),
            window=source.window(volume),
            windows_per_batch=spec.windows_per_batch,
        )
        attributes = {"shape": list(latents.shape), "channels": latents.shape[0]}
        return latents.cpu().numpy(), attributes

    encoding = Encoding("latents", encode, {"channels": "int64"})
    return fill_encoded(source, encoding, status=status)


def find_latents(latents: Path, volume: str) -> StoredArray:
    """Return the stored latents of a volume.

    Args:
        latents: A split's folder or table (`latents/valid`, `latents/valid.parquet`), or the table
            or store of one shard of it.
        volume: Id of the volume.

    Raises:
        StoreError: There is no such table, the volume is not in it, or it was rejected.
    """
    return find_encoded(latents, volume, kind="latents", column="channels")


def read_latents(array: StoredArray) -> NDArray[np.float32]:
    """Return the latents of a volume, C d h w."""
    return array.read()


def decode_stored_latents(
    latents: StoredArray, tokenizer: Tokenizer, *, stored_grid: bool = False
) -> Volume:
    """Decode a volume's latents to int16 HU.

    Args:
        latents: What `find_latents` returned.
        tokenizer: The model that made them.
        stored_grid: Stay on the store's grid instead of going back to the scan's own.
    """
    ct3d = latents.attributes["ct3d"]
    depth, height, width = ct3d["volume_shape"]
    hu = decode_latents(
        tokenizer,
        torch.from_numpy(read_latents(latents)),
        shape=(depth, height, width),
        window=window_of(ct3d, tokenizer),
    )
    return to_volume(hu, ct3d, domain=tokenizer.recipe.domain, stored_grid=stored_grid)


def collect_latents(tables: Sequence[Path]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Join the shards' tables of one split and measure the latents.

    Args:
        tables: Status tables of its latent shards.

    Returns:
        The table, sorted by volume, with its shard, and a summary: counts, reasons, `mean` and
        `std` of each channel over all positions, digest of the latents' hashes.

    Raises:
        StoreError: A volume is there twice, latents are missing or damaged, or two volumes have
            another number of channels.
    """
    table, counts = join_tables(tables)
    if twice := sorted(table.loc[table["volume"].duplicated(), "volume"]):
        raise StoreError(f"{twice[0]}: in two latent tables; delete the one whose shard is gone")
    encoded = [row for row in records(table) if row["status"] == "encoded"]
    channels = sorted({row["channels"] for row in encoded})
    if len(channels) > 1:
        raise StoreError(
            f"latents of {channels} channels are of several models; delete the split's latent "
            f"tables and run again"
        )
    stores = {int(path.stem): store_of(path) for path in tables}
    statistics = ChannelStatistics(channels[0] if channels else 0)
    for row in encoded:
        statistics.add(read_latents(StoredArray(stores[row["shard"]], row["node"])))
    lines = "\n".join(f"{row['volume']} {row['sha256']}" for row in encoded)
    summary = {
        **counts,
        "channels": statistics.channels,
        "positions": statistics.count,
        "mean": statistics.mean.tolist() if encoded else [],
        "std": statistics.std.tolist() if encoded else [],
        "digest": hashlib.sha256(lines.encode()).hexdigest(),
    }
    return table, summary
