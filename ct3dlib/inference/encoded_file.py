"""Tokens or latents of one scan in one file, from which the scan is decoded without a store.

A `.npz` of three arrays: `indices` (int32, d h w, as the model sees the grid) or, where a model
makes no tokens, `latents` (float32, C d h w); `record` and `provenance`, JSON as text. Nothing in
it is pickled, and nothing names the file or the patient that it is from.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from ct3dlib import __version__
from ct3dlib.cohort.durable import publish, room_for
from ct3dlib.errors import StoreError
from ct3dlib.inference.decode import to_volume, window_of
from ct3dlib.inference.loaded import Tokenizer, bit_order
from ct3dlib.inference.reconstruct import (
    decode_indices,
    decode_latents,
    encode_to_latents,
    encode_volume,
)
from ct3dlib.inference.single import WINDOWS_PER_BATCH, Scan
from ct3dlib.inference.windows import describe_windows
from ct3dlib.scan.normalize import Record
from ct3dlib.scan.volume import Volume

SUFFIX = ".npz"
FORMAT_VERSION = 1
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, TypeError)


@dataclass(frozen=True, eq=False)
class EncodedScan:
    """One scan as a model encodes it.

    Args:
        values: Indices, int32 d h w, or latents, float32 C d h w.
        record: The way back to the scan's own grid.
        provenance: What made it, as JSON: `tokenizer_sha256`, `source_sha256`, windows.
    """

    values: NDArray[np.int32] | NDArray[np.float32]
    record: Record
    provenance: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """Name of the array of values."""
        return "indices" if self.values.ndim == 3 else "latents"


def encode_scan(tokenizer: Tokenizer, scan: Scan) -> EncodedScan:
    """Return the tokens of a scan, or its latents where the model makes no tokens."""
    model, array = tokenizer.model, scan.volume.array
    if model.quantizer is None:
        found = encode_to_latents(
            tokenizer, array, window=scan.window, windows_per_batch=WINDOWS_PER_BATCH
        )
        values = found.cpu().numpy()
    else:
        encoded = encode_volume(
            tokenizer, array, window=scan.window, windows_per_batch=WINDOWS_PER_BATCH
        )
        values = encoded.indices.cpu().numpy().astype(np.int32)
    provenance = {
        "format_version": FORMAT_VERSION,
        "ct3dlib": __version__,
        "tokenizer_sha256": tokenizer.sha256,
        "source_sha256": scan.sha256,
        "hu_state": scan.hu_state,
        "bit_order": bit_order(model.spec),
        "windows": describe_windows(
            model, windows_per_batch=WINDOWS_PER_BATCH, sliding=tokenizer.sliding
        ),
        "recipe": tokenizer.recipe.model_dump(mode="json"),
    }
    return EncodedScan(values, scan.record, provenance)


def decode_scan(tokenizer: Tokenizer, encoded: EncodedScan, *, stored_grid: bool = False) -> Volume:
    """Decode a scan's tokens or latents to int16 HU.

    Args:
        tokenizer: The model that made them.
        encoded: What `encode_scan` or `read_encoded` returned.
        stored_grid: Stay on the recipe's grid instead of going back to the scan's own.

    Raises:
        StoreError: The values are not those of such a model.
    """
    record = encoded.record
    ct3d = {"affine": record.affine, "record": record.model_dump(mode="json")}
    window = window_of(ct3d, tokenizer)
    values = torch.from_numpy(encoded.values)
    try:
        if encoded.kind == "indices":
            hu = decode_indices(tokenizer, values.long(), shape=record.shape, window=window)
        else:
            hu = decode_latents(tokenizer, values, shape=record.shape, window=window)
    except (ValueError, RuntimeError) as error:
        raise StoreError(
            f"{encoded.kind} {tuple(values.shape)} are none of {tokenizer.name} ({error}); encode "
            f"the scan again"
        ) from error
    return to_volume(hu, ct3d, domain=tokenizer.recipe.domain, stored_grid=stored_grid)


def write_encoded(path: Path, encoded: EncodedScan) -> None:
    """Write an encoded scan; the file appears whole or not at all.

    Args:
        path: Ends in .npz.
        encoded: Of one scan.

    Raises:
        StoreError: The disk is full.
    """
    texts = {
        "record": encoded.record.model_dump_json(),
        "provenance": json.dumps(encoded.provenance, allow_nan=False),
    }
    arrays = {encoded.kind: encoded.values, **{k: np.array(v) for k, v in texts.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with room_for(partial, encoded.values.nbytes):
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        publish(partial, path)


def read_encoded(path: Path) -> EncodedScan:
    """Read an encoded scan.

    Raises:
        StoreError: The file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise StoreError(f"{path}: no such file; give one that `ct3d encode` wrote")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            kind = "indices" if "indices" in archive.files else "latents"
            values = archive[kind]
            record = Record.model_validate_json(str(archive["record"]))
            provenance = json.loads(str(archive["provenance"]))
    except ValidationError as error:
        raise StoreError(f"{path}: its record is none ({error}); encode the scan again") from error
    except (*_DAMAGED, AttributeError) as error:
        raise StoreError(
            f"{path}: damaged, or not a file of `ct3d encode` ({error}); encode the scan again"
        ) from error
    _check(path, kind, values, provenance=provenance)
    return EncodedScan(values, record, provenance)


def _check(path: Path, kind: str, values: NDArray[Any], *, provenance: Any) -> None:
    """Refuse arrays and provenance that `write_encoded` does not write.

    Raises:
        StoreError: Something differs.
    """
    dtype, axes = (np.int32, 3) if kind == "indices" else (np.float32, 4)
    if values.dtype != dtype or values.ndim != axes or not values.size:
        raise StoreError(
            f"{path}: {kind} of type {values.dtype} and shape {values.shape}, wanted "
            f"{np.dtype(dtype)} with {axes} axes; encode the scan again"
        )
    made_by = provenance if isinstance(provenance, dict) else {}
    if not isinstance(made_by.get("tokenizer_sha256"), str):
        raise StoreError(f"{path}: does not say which model made it; encode the scan again")
    if (version := made_by.get("format_version")) != FORMAT_VERSION:
        raise StoreError(
            f"{path}: format version {version}, this program reads {FORMAT_VERSION}; encode the "
            f"scan again"
        )
