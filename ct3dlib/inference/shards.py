"""A shard of stored volumes through a trained autoencoder: keys, provenance, rejected rows.

What is kept of a volume, its tokens, its latents or its reconstruction, is up to the caller.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from ct3dlib.cohort.stage import OpenShard, Row, fill_shard
from ct3dlib.cohort.store import (
    Kind,
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
from ct3dlib.inference.windows import describe_windows

COLUMNS = {
    "volume": "str",
    "status": "str",
    "stage": "str",
    "reason": "str",
    "message": "str",
    "node": "str",
    "sha256": "str",
    "shape": "object",
}
PROVENANCE = {
    "source_sha256": "str",
    "volume_sha256": "str",
    "tokenizer_sha256": "str",
    "code": "str",
}


@dataclass(frozen=True, eq=False)
class VolumeShard:
    """The volumes of a shard, and the tokenizer that they go through.

    Args:
        table: Status table of the volume shard.
        tokenizer: On the device to use.
        spec: How windows of a causal model are batched.
        code: Fingerprint of the code that does it.
    """

    table: Path
    tokenizer: Tokenizer
    spec: TokensSpec
    code: str

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of the table.

        Raises:
            CheckpointError: The volumes are of another recipe than the tokenizer's.
            StoreError: The store of the volumes is damaged, or holds something else.
        """
        check_volumes(self.tokenizer.recipe, self._stored.values(), model=self.tokenizer.name)
        return records(read_status(self.table))

    @property
    def windows(self) -> dict[str, Any]:
        """What the tokens depend on beside the weights."""
        return describe_windows(
            self.tokenizer.model,
            windows_per_batch=self.spec.windows_per_batch,
            sliding=self.tokenizer.sliding,
        )

    def window(self, volume: StoredVolume) -> tuple[float, float]:
        """Return the values that a volume's darkest and brightest are for the model."""
        return volume.own_window or self.tokenizer.recipe.window

    def make_row(self, row: Row, make: Callable[[StoredVolume, str], Row], *, stage: str) -> Row:
        """Return the row of what was made of a volume, or why there is none.

        Args:
            row: Of the volumes' table.
            make: Takes the volume and the name of what is made of it, which changes with all that
                it depends on; returns the columns that say what it is.
            stage: What a rejection by `make` is put down to.
        """
        provenance = {
            "volume": row["volume"],
            "source_sha256": row["source_sha256"],
            "volume_sha256": row["sha256"],
            "tokenizer_sha256": self.tokenizer.sha256,
            "code": self.code,
        }
        if row["status"] != "stored":
            return {**provenance, **_rejected("volumes", row["reason"], row["message"])}
        volume = self._stored[row["volume"]]
        key = key_of(volume.identity, self.tokenizer.sha256, self.windows, self.code)
        try:
            made = make(volume, f"{volume.volume}@{key}")
        except VolumeError as error:
            return {**provenance, **_rejected(stage, error.reason, str(error))}
        return {**provenance, "status": "encoded", "stage": "", "reason": "", "message": "", **made}

    @cached_property
    def _stored(self) -> dict[str, StoredVolume]:
        return {volume.volume: volume for volume in stored_volumes([self.table])}


@dataclass(frozen=True)
class Encoding:
    """What a store keeps of each volume.

    Args:
        kind: Of the store.
        encode: Returns the array and what its attributes say of it beside its provenance.
        columns: Columns of the status table taken from these attributes, with their types.
    """

    kind: Kind
    encode: Callable[[StoredVolume], tuple[NDArray[Any], Mapping[str, Any]]]
    columns: Mapping[str, str]


def fill_encoded(source: VolumeShard, encoding: Encoding, *, status: Path) -> pd.DataFrame:
    """Encode every stored volume of a shard and write the status table of their store.

    Args:
        source: The volumes.
        encoding: What is kept of them.
        status: Where the status table goes; the store lies beside it.

    Returns:
        The status table, one row per row of the volumes'.

    Raises:
        CheckpointError: The volumes are of another recipe than the tokenizer's.
        StoreError: The store of the volumes is damaged, or holds something else.
    """

    def make_row(row: Row, shard: OpenShard) -> Row:
        def make(volume: StoredVolume, node: str) -> Row:
            shard.ensure(
                node, lambda: _write(source, encoding, volume, store=shard.store, node=node)
            )
            ct3d = StoredArray(shard.store, node).attributes["ct3d"]
            kept = {name: ct3d[name] for name in encoding.columns}
            return {"node": node, "sha256": ct3d["sha256"], "shape": ct3d["shape"], **kept}

        found = source.make_row(row, make, stage=encoding.kind)
        return {**dict.fromkeys(encoding.columns, 0), **found}

    columns = {**COLUMNS, **encoding.columns, **PROVENANCE}
    return fill_shard(source.rows, make_row, status=status, kind=encoding.kind, columns=columns)


def _write(
    source: VolumeShard, encoding: Encoding, volume: StoredVolume, *, store: Path, node: str
) -> None:
    """Encode one volume and write what is kept of it."""
    array, attributes = encoding.encode(volume)
    ct3d = {
        "volume": volume.volume,
        "volume_sha256": volume.sha256,
        "tokenizer_sha256": source.tokenizer.sha256,
        "volume_shape": list(volume.shape),
        "affine": volume.affine.tolist(),
        "axis_order": source.tokenizer.recipe.axes,
        "windows": source.windows,
        "record": volume.array.attributes["ct3d"]["record"],
        **attributes,
    }
    write_node(store, node, array, attributes={"ct3d": ct3d})


def _rejected(stage: str, reason: str, message: str) -> Row:
    """Return the columns of a volume that nothing was made of."""
    told = {"status": "rejected", "stage": stage, "reason": reason, "message": message}
    return {**told, "node": "", "sha256": "", "shape": None}


def join_tables(tables: Sequence[Path]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Join the status tables of a split's shards.

    Returns:
        All rows, sorted by volume, with their shard, and counts: volumes, encoded, and rejected
        by reason.

    Raises:
        StoreError: What a table names is not in its store.
    """
    frames = []
    for path in tables:
        frame = read_status(path)
        for node in frame.loc[frame["status"] == "encoded", "node"]:
            if not has_node(store_of(path), node):
                raise StoreError(f"{store_of(path) / node}: gone; delete {path} and run again")
        frames.append(frame.assign(shard=int(path.stem)))
    table = pd.concat(frames).sort_values("volume").reset_index(drop=True)
    rows = records(table)
    reasons = Counter(row["reason"] for row in rows if row["status"] == "rejected")
    counts = {
        "volumes": len(rows),
        "encoded": sum(row["status"] == "encoded" for row in rows),
        "rejected": dict(sorted(reasons.items())),
    }
    return table, counts
