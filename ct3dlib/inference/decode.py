"""From stored tokens back to a volume in HU."""

from pathlib import Path

import numpy as np
import torch

from ct3dlib.cohort.store import StoredArray, read_status, records, store_of
from ct3dlib.errors import CheckpointError, StoreError
from ct3dlib.inference.encode import read_indices
from ct3dlib.inference.loaded import Tokenizer, load_tokenizer
from ct3dlib.inference.reconstruct import decode_indices
from ct3dlib.models.exported import load_model
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
    table = tokens if tokens.suffix == ".parquet" else tokens.with_suffix(".parquet")
    if not table.exists():
        raise StoreError(f"{table}: no such table; give tokens/SPLIT of a run that has encoded it")
    frame = read_status(table)
    if "stage" not in frame.columns:
        raise StoreError(f"{table}: holds no tokens; give tokens/SPLIT")
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
    wanted = tokens.attributes["ct3d"]["tokenizer_sha256"]
    for spec in sorted(models.glob("*/spec.json")):
        if load_model(spec.parent).sha256 == wanted:
            return load_tokenizer(spec.parent, device)
    raise CheckpointError(
        f"{models}: no model here has the weights {wanted[:12]} that made these tokens; "
        f"encode again, or give the folder that holds them"
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
    recipe, record = tokenizer.recipe, Record.model_validate(ct3d["record"])
    depth, height, width = ct3d["volume_shape"]
    hu = decode_indices(
        tokenizer.model,
        torch.from_numpy(read_indices(tokens)),
        shape=(depth, height, width),
        window=record.window or recipe.window,
        value_range=recipe.range,
    )
    volume = Volume(hu, np.array(ct3d["affine"]))
    if not stored_grid:
        volume = restore(volume, record)
    array = np.clip(np.rint(volume.array), -1024, 3071).astype(np.int16)
    return Volume(array, volume.affine)
