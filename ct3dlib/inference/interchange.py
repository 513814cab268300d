"""Tokens of this program as files of BTB3D, and theirs as a token store. Ids stay the same."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ct3dlib.cohort.packing import pack_indices
from ct3dlib.cohort.stage import OpenShard, Row, fill_shard
from ct3dlib.cohort.store import (
    StoredArray,
    StoredVolume,
    key_of,
    read_status,
    records,
    stored_volumes,
    write_node,
)
from ct3dlib.config import Shape, Triple
from ct3dlib.errors import CheckpointError, StoreError
from ct3dlib.inference.btb3d_files import SUFFIX, read_btb3d, write_btb3d
from ct3dlib.inference.contract import check_tokens, check_volumes
from ct3dlib.inference.decode import find_tokens
from ct3dlib.inference.encode import read_indices
from ct3dlib.inference.latents import find_latents, read_latents
from ct3dlib.inference.loaded import Tokenizer, bit_order
from ct3dlib.inference.shards import COLUMNS, PROVENANCE
from ct3dlib.quantizers import LFQ
from ct3dlib.scan.axes import swapped
from ct3dlib.scan.normalize import Record

ENCODED = "encoded"


def encoded_volumes(tokens: Path) -> list[str]:
    """Return the ids of the volumes that a table has tokens of.

    Args:
        tokens: As for `find_tokens`.

    Raises:
        StoreError: There is no such table, or it names no encoded volume.
    """
    table = tokens if tokens.suffix == ".parquet" else tokens.with_suffix(".parquet")
    volumes = [r["volume"] for r in records(read_status(table)) if r["status"] == "encoded"]
    if not volumes:
        raise StoreError(f"{table}: no volume is encoded; `ct3d describe {table}` says why")
    return volumes


def export_tokens(
    tokens: Path,
    tokenizer: Tokenizer,
    volumes: Sequence[str],
    *,
    folder: Path,
    latents: Path | None = None,
) -> Iterator[Path]:
    """Write the tokens of volumes as files of BTB3D, and yield each path once it is written.

    Args:
        tokens: As for `find_tokens`.
        tokenizer: The one that made them.
        volumes: Their ids, which become names of files.
        folder: Made if it is not there.
        latents: As for `find_latents`; they go to `folder/encoded`. None: codes alone.

    Raises:
        CheckpointError: The tokenizer's codes are not -1 and +1, or another one made the tokens.
        StoreError: A volume has no tokens, or no latents.
    """
    quantizer, axes = _signs(tokenizer), tokenizer.recipe.axes
    for volume in volumes:
        array = find_tokens(tokens, volume)
        check_tokens(array, tokenizer)
        indices = torch.from_numpy(read_indices(array)).to(quantizer.powers.device)
        codes = quantizer.indices_to_codes(indices[None])[0].cpu().numpy()
        path = folder / f"{volume}{SUFFIX}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_btb3d(path, codes, axes=axes)
        yield path
        if latents is not None:
            encoded = find_latents(latents, volume)
            check_tokens(encoded, tokenizer)
            path = folder / ENCODED / path.name
            path.parent.mkdir(exist_ok=True)
            write_btb3d(path, read_latents(encoded), axes=axes)
            yield path


@dataclass(frozen=True)
class _File:
    """A file of tokens and, where there is one, the stored volume that it is of."""

    path: Path
    sha256: str
    stored: StoredVolume | None

    @property
    def volume(self) -> str:
        """Id of the volume."""
        return self.path.name.removesuffix(SUFFIX)


def import_tokens(
    folder: Path, tokenizer: Tokenizer, *, tables: Sequence[Path], status: Path
) -> pd.DataFrame:
    """Store the tokens of BTB3D's files as tokens of a tokenizer here.

    The files know nothing of the scans. Tokens of a volume that `tables` names get its grid; those
    of any other get the recipe's spacing, their first voxel at the origin.

    Args:
        folder: Holds `{volume}.nii_embedded.npz`.
        tokenizer: The model that decodes them.
        tables: Status tables of stored volumes; may be none.
        status: Where the status table goes; the store lies beside it.

    Returns:
        The status table. The attributes of a stored array have `imported`: the format, the file,
        its hash, and whose `grid` the array has, the volume's or the recipe's.

    Raises:
        CheckpointError: The tokenizer's codes are not -1 and +1, or the stored volumes are not of
            its recipe.
        StoreError: There is no file, or one cannot be read or has another grid than its volume.
    """
    bits = _signs(tokenizer).bits
    stored = {volume.volume: volume for volume in stored_volumes(tables)}
    check_volumes(tokenizer.recipe, stored.values(), model=tokenizer.name)
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    if not paths:
        raise StoreError(f"{folder}: no file *{SUFFIX}; give the folder that holds them")

    def make_row(row: Row, shard: OpenShard) -> Row:
        volume = stored.get(row["volume"])
        file = _File(row["path"], _sha256(row["path"]), volume)
        key = key_of(file.sha256, tokenizer.sha256, volume and volume.identity)
        node = f"{file.volume}@{key}"
        shard.ensure(node, lambda: _store(file, tokenizer, store=shard.store, node=node))
        ct3d = StoredArray(shard.store, node).attributes["ct3d"]
        return {
            **dict.fromkeys(("stage", "reason", "message"), ""),
            **{name: ct3d[name] for name in ("volume", "sha256", "shape", "volume_sha256")},
            "status": "encoded",
            "node": node,
            "bits": bits,
            "source_sha256": file.sha256,
            "tokenizer_sha256": tokenizer.sha256,
            "code": "imported from btb3d",
        }

    rows = [{"volume": path.name.removesuffix(SUFFIX), "path": path} for path in paths]
    columns = {**COLUMNS, "bits": "int64", **PROVENANCE}
    return fill_shard(rows, make_row, status=status, kind="tokens", columns=columns)


def _store(file: _File, tokenizer: Tokenizer, *, store: Path, node: str) -> None:
    """Write the tokens of one file."""
    bits, recipe = tokenizer.quantizer.bits, tokenizer.recipe
    indices = read_btb3d(file.path, bits=bits, axes=recipe.axes)
    depth, height, width = indices.shape
    seen = _voxels(tokenizer, (depth, height, width))
    if file.stored is None:
        grid = _assumed_grid(swapped(seen, recipe.axes), recipe.spacing or (1.0, 1.0, 1.0))
    else:
        grid = _grid_of(file.stored, tokenizer, seen, path=file.path)
    ct3d = {
        "volume": file.volume,
        "tokenizer_sha256": tokenizer.sha256,
        "shape": list(indices.shape),
        "bits": bits,
        "bit_order": bit_order(tokenizer.model.spec),
        "axis_order": recipe.axes,
        "imported": {
            "format": "btb3d",
            "file": file.path.name,
            "sha256": file.sha256,
            "grid": "recipe" if file.stored is None else "volume",
        },
        **grid,
    }
    write_node(store, node, pack_indices(indices, bits), attributes={"ct3d": ct3d})


def _signs(tokenizer: Tokenizer) -> LFQ:
    """Return the quantizer of a tokenizer whose codes are signs."""
    quantizer = tokenizer.quantizer
    if not isinstance(quantizer, LFQ):
        raise CheckpointError(
            f"{tokenizer.name}: its quantizer is {type(quantizer).__name__}; BTB3D's files hold "
            f"codes of -1 and +1, which only a tokenizer with an lfq quantizer has"
        )
    return quantizer


def _voxels(tokenizer: Tokenizer, tokens: Shape) -> Shape:
    """Return the voxels that a grid of tokens decodes to, in the order that the model sees."""
    depth, height, width = (
        n * step for n, step in zip(tokens, tokenizer.model.downsampling, strict=True)
    )
    if tokenizer.model.spec.name == "causal":
        depth -= tokenizer.model.downsampling[0] - 1  # the first token is one slice
    return depth, height, width


def _grid_of(
    stored: StoredVolume, tokenizer: Tokenizer, voxels: Shape, *, path: Path
) -> dict[str, Any]:
    """Return what attributes say of a volume's grid, if it fills up to these voxels."""
    seen = swapped(stored.shape, tokenizer.recipe.axes)
    filled = tuple(n + more for n, more in zip(seen, tokenizer.model.padding(seen), strict=True))
    if filled != voxels:
        raise StoreError(
            f"{path}: its tokens decode to {voxels} voxels, the stored volume fills {filled}; give "
            f"the tokenizer and the volumes that the file was made with"
        )
    return {
        "volume_sha256": stored.sha256,
        "volume_shape": list(stored.shape),
        "affine": stored.affine.tolist(),
        "record": stored.array.attributes["ct3d"]["record"],
    }


def _assumed_grid(shape: Shape, spacing: Triple) -> dict[str, Any]:
    """Return what attributes say of a grid that nothing is known of but shape and spacing."""
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (*spacing, 1)
    rows = affine.tolist()
    record = {"source_shape": shape, "source_affine": rows}
    record |= {"permutation": (0, 1, 2), "flips": (False, False, False), "straightened": False}
    record |= {"resampled_shape": shape, "resampled_affine": rows, "start": (0, 0, 0)}
    whole = Record.model_validate({**record, "shape": shape, "affine": rows, "lost": 0.0})
    return {
        "volume_sha256": "",
        "volume_shape": list(shape),
        "affine": rows,
        "record": whole.model_dump(mode="json"),
    }


def _sha256(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
