"""Zarr v3 stores of a shard: one group per volume, visible only when it is whole.

A shard's store is a group; each volume is a group in it, named `{volume}@{key}`, with the array
`0` in one shard file. The status table beside the store says which of them count.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import tensorstore
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from ct3dlib.errors import StoreError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
CHUNKS = (32, 64, 64)
Kind = Literal["volumes", "regions", "tokens"]
STATUS_COLUMNS = ("volume", "status", "reason", "message", "node", "sha256")


def array_sha256(array: NDArray[np.generic]) -> str:
    """Return the hash of an array's dtype, shape and values."""
    digest = hashlib.sha256(f"{array.dtype.str}{list(array.shape)}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def key_of(*parts: object) -> str:
    """Return the short hash of what a stored array was made from."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def create_store(store: Path, kind: Kind) -> None:
    """Make the group of a shard unless it is there, and clear what a killed writer left.

    Raises:
        StoreError: The store holds another kind or another format version.
    """
    if (store / "zarr.json").exists():
        found = dict(zarr.open_group(store, mode="r").attrs).get("ct3d")
        wanted = {"kind": kind, "format_version": FORMAT_VERSION}
        if found != wanted:
            raise StoreError(f"{store}: holds {found}, wanted {wanted}; move it away and run again")
    else:
        shutil.rmtree(store, ignore_errors=True)
        partial = store.with_name(f"{store.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        attributes = {"ct3d": {"kind": kind, "format_version": FORMAT_VERSION}}
        zarr.create_group(partial, zarr_format=3, attributes=attributes)
        partial.rename(store)
    for partial in store.glob("*.partial"):
        shutil.rmtree(partial)


def write_node(
    store: Path, node: str, array: NDArray[np.generic], *, attributes: Mapping[str, Any]
) -> str:
    """Write an array as a new group of a store; it appears whole or not at all.

    Args:
        store: A shard's store that `create_store` made.
        node: Name of the group, `{volume}@{key}`.
        array: D H W, or a vector of packed bytes.
        attributes: Attributes of the group; `sha256` of the array is added under `ct3d`.

    Returns:
        The hash of the array, as `array_sha256`.

    Raises:
        StoreError: What was read back differs from what was written.
    """
    sha256 = array_sha256(array)
    partial = store / f"{node}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    ct3d = {**attributes.get("ct3d", {}), "sha256": sha256}
    zarr.create_group(partial, zarr_format=3, attributes={**attributes, "ct3d": ct3d})
    chunks = CHUNKS if array.ndim == 3 else (1 << 16,)
    written = zarr.create_array(
        partial / "0",
        shape=array.shape,
        dtype=array.dtype,
        chunks=chunks,
        shards=tuple(-(-n // c) * c for n, c in zip(array.shape, chunks, strict=True)),
        fill_value=-1024 if array.dtype == np.int16 else 0,
        compressors=[
            BloscCodec(cname="zstd", clevel=3, shuffle="shuffle", typesize=array.dtype.itemsize)
        ],
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=("z", "y", "x") if array.ndim == 3 else ("byte",),
    )
    written[...] = array
    if array_sha256(StoredArray(store, partial.name).read()) != sha256:
        raise StoreError(f"{store / node}: reads back other than was written; check the disk")
    final = store / node
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return sha256


def has_node(store: Path, node: str) -> bool:
    """Return whether a whole group of that name is in the store."""
    return (store / node / "0" / "zarr.json").exists()


def prune(store: Path, nodes: set[str]) -> None:
    """Remove the groups of a store that are not among `nodes`."""
    for path in store.iterdir():
        if path.is_dir() and path.name not in nodes:
            shutil.rmtree(path)


@dataclass(frozen=True)
class StoredArray:
    """The array of one group, opened when first read; can be pickled to loader processes."""

    store: Path
    node: str

    @cached_property
    def _array(self) -> Any:
        """Open the array; tensorstore reads only the chunks a slice touches."""
        path = self.store / self.node / "0"
        if not (path / "zarr.json").exists():
            raise StoreError(f"{path}: not in the store; run the rule that makes it again")
        location = {"driver": "file", "path": f"{path.resolve()}{os.sep}"}
        return tensorstore.open({"driver": "zarr3", "kvstore": location}, read=True).result()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open handle behind: it must not cross a process border."""
        return {"store": self.store, "node": self.node}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the fields past the frozen setters."""
        self.__dict__.update(state)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self._array.shape)

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the group."""
        text = (self.store / self.node / "zarr.json").read_text()
        return json.loads(text).get("attributes", {})

    def read(self, *slices: slice) -> NDArray[Any]:
        """Return a part of the array, the whole without slices.

        Raises:
            StoreError: A chunk is damaged.
        """
        try:
            return self._array[slices].read().result() if slices else self._array.read().result()
        except ValueError as error:
            raise StoreError(f"{self.store / self.node}: damaged, {error}") from error


@dataclass(frozen=True)
class StoredVolume:
    """A volume of a store, named by its row of a status table."""

    volume: str
    array: StoredArray
    shape: tuple[int, int, int]
    sha256: str

    def read(
        self, start: Sequence[int] | None = None, stop: Sequence[int] | None = None
    ) -> NDArray[Any]:
        """Return the voxels of a half-open box, D H W; the whole volume without one."""
        if start is None or stop is None:
            return self.array.read()
        return self.array.read(*(slice(a, b) for a, b in zip(start, stop, strict=True)))

    @property
    def identity(self) -> str:
        """Hash of the values and of where they are: what later stages are made from."""
        ct3d = self.array.attributes["ct3d"]
        return key_of(self.sha256, ct3d["affine"], ct3d.get("record"))

    @property
    def affine(self) -> NDArray[np.float64]:
        """4 x 4, voxel (d, h, w, 1) to LPS mm."""
        return np.array(self.array.attributes["ct3d"]["affine"], dtype=np.float64)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of voxel centres along (D, H, W), mm."""
        d, h, w = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return d, h, w


def store_of(status: Path) -> Path:
    """Return the store that a status table lies beside."""
    return status.with_suffix(".zarr")


def read_status(path: Path) -> pd.DataFrame:
    """Return a status table.

    Raises:
        StoreError: The file is missing or cannot be read, or columns are missing.
    """
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: not a status table ({error}); run its rule again") from error
    if missing := [c for c in STATUS_COLUMNS if c not in frame.columns]:
        raise StoreError(f"{path}: no column {missing[0]!r}; run its rule again")
    return frame


def stored_volumes(status_tables: Sequence[Path]) -> list[StoredVolume]:
    """Return the stored volumes of status tables, in the order of the tables' rows."""
    volumes = []
    for path in status_tables:
        for row in records(read_status(path)):
            if row["status"] != "stored":
                continue
            array = StoredArray(store_of(path), row["node"])
            depth, height, width = row["shape"]
            volumes.append(
                StoredVolume(row["volume"], array, (depth, height, width), row["sha256"])
            )
    return volumes


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as plain values: missing ones None, arrays as lists."""
    return [{str(k): _plain(v) for k, v in row.items()} for row in frame.to_dict("records")]


def _plain(value: Any) -> Any:
    """Return a table's value as Python's own type."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    return None if value is pd.NA or (isinstance(value, float) and value != value) else value


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as Parquet under a temporary name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    frame.to_parquet(partial, index=False)
    partial.replace(path)
