"""From stored tokens back to a volume in HU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ct3dlib.cohort.store import Kind, StoredArray, read_status, records, store_of
from ct3dlib.config import Domain
from ct3dlib.errors import CheckpointError, StoreError
from ct3dlib.inference.encode import read_indices
from ct3dlib.inference.loaded import Tokenizer, load_tokenizer
from ct3dlib.inference.reconstruct import decode_indices
from ct3dlib.models.exported import load_model
from ct3dlib.scan.intensity import HU_MAX, HU_MIN
from ct3dlib.scan.normalize import Record, restore
from ct3dlib.scan.volume import Volume


def find_tokens(tokens: Path, volume: str) -> StoredArray:
    """Return the stored tokens of a volume.

    Args:
        tokens: A split's folder or table (`tokens/valid`, `tokens/valid.parquet`), or the table or
            store of one shard of it.
        volume: Id of the volume.

    Raises:
        StoreError: There is no such table, the volume is not in it, or it was rejected.
    """
    return find_encoded(tokens, volume, kind="tokens", column="bits")


def find_encoded(path: Path, volume: str, *, kind: Kind, column: str) -> StoredArray:
    """Return what a store of one kind keeps of a volume.

    Args:
        path: A split's folder or table, or the table or store of one shard of it.
        volume: Id of the volume.
        kind: Of the store.
        column: One that tables of this kind alone have.

    Raises:
        StoreError: There is no such table, the volume is not in it, or it was rejected.
    """
    table = path if path.suffix == ".parquet" else path.with_suffix(".parquet")
    if not table.exists():
        raise StoreError(f"{table}: no such table; give {kind}/SPLIT of a run that has encoded it")
    frame = read_status(table)
    if column not in frame.columns:
        raise StoreError(f"{table}: holds no {kind}; give {kind}/SPLIT")
    rows = [row for row in records(frame) if row["volume"] == volume]
    if not rows:
        raise StoreError(f"{table}: no volume {volume!r}; `ct3d describe {table}` lists them")
    row = rows[0]
    if row["status"] != "encoded":
        raise StoreError(
            f"{volume}: was rejected at {row['stage']}, {row['reason']}: {row['message']}"
        )
    shard = table.with_suffix("") / f"{row['shard']:04d}.parquet" if "shard" in row else table
    return StoredArray(store_of(shard), row["node"])


def find_tokenizer(models: Path, tokens: StoredArray, device: torch.device) -> Tokenizer:
    """Return the tokenizer below a folder that made some tokens.

    Raises:
        CheckpointError: None of the models there made them.
    """
    return find_model(models, tokens.attributes["ct3d"]["tokenizer_sha256"], device)


def find_model(models: Path, sha256: str, device: torch.device) -> Tokenizer:
    """Return the tokenizer that has certain weights.

    Args:
        models: Folder of models, or of the one.
        sha256: Hash of the weights.
        device: Where it goes.

    Raises:
        CheckpointError: None of the models there has them.
    """
    if not models.is_dir():
        raise CheckpointError(f"{models}: no such folder of models")
    for spec in (*models.glob("spec.json"), *sorted(models.glob("*/spec.json"))):
        if load_model(spec.parent).sha256 == sha256:
            return load_tokenizer(spec.parent, device)
    raise CheckpointError(
        f"{models}: no model here has the weights {sha256[:12]} that made these tokens; "
        f"encode or train again, or give the folder that holds them"
    )


def decode_volume(
    tokens: StoredArray, tokenizer: Tokenizer, *, stored_grid: bool = False
) -> Volume:
    """Decode a volume's tokens to int16 HU.

    Args:
        tokens: What `find_tokens` returned.
        tokenizer: The tokenizer that made them.
        stored_grid: Stay on the store's grid instead of going back to the scan's own.
    """
    ct3d = tokens.attributes["ct3d"]
    depth, height, width = ct3d["volume_shape"]
    hu = decode_indices(
        tokenizer,
        torch.from_numpy(read_indices(tokens)),
        shape=(depth, height, width),
        window=window_of(ct3d, tokenizer),
    )
    return to_volume(hu, ct3d, domain=tokenizer.recipe.domain, stored_grid=stored_grid)


def window_of(ct3d: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[float, float]:
    """Return the window of a volume: its own, as MR has one, or the recipe's."""
    return Record.model_validate(ct3d["record"]).window or tokenizer.recipe.window


def to_volume(
    hu: NDArray[np.float32], ct3d: Mapping[str, Any], *, domain: Domain, stored_grid: bool = False
) -> Volume:
    """Return decoded values as an int16 volume.

    Args:
        hu: D H W on the store's grid.
        ct3d: Attributes of what they were made from: `affine` and `record`.
        domain: What the values mean; HU are clipped to [-1024, 3071], others to int16.
        stored_grid: Stay on the store's grid instead of going back to the scan's own.
    """
    volume = Volume(hu, np.array(ct3d["affine"]), domain)
    in_hu, int16 = domain == "hu", np.iinfo(np.int16)
    if not stored_grid:
        record = Record.model_validate(ct3d["record"])
        volume = restore(volume, record, fill=HU_MIN if in_hu else 0)
    low, high = (HU_MIN, HU_MAX) if in_hu else (int16.min, int16.max)
    array = np.clip(np.rint(volume.array), low, high).astype(np.int16)
    return Volume(array, volume.affine, domain)
