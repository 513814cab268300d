"""Zarr v3 stores of a shard: one group per volume, visible only when it is whole.

A shard's store is a group; each volume is a group in it, named `{volume}@{key}`, with the array
`0` in one shard file. The status table beside the store says which of them count.
"""

import hashlib
import io
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray

from ct3dlib.cohort.arrays import write_array
from ct3dlib.cohort.durable import publish, room_for
from ct3dlib.cohort.hashes import array_sha256, attributes_sha256
from ct3dlib.cohort.location import Location
from ct3dlib.cohort.stored_array import StoredArray, store_of, table_of
from ct3dlib.errors import StoreError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
Kind = Literal["volumes", "regions", "lesions", "tokens", "latents"]
STATUS_COLUMNS = ("volume", "status", "reason", "message", "node", "sha256")


def key_of(*parts: object) -> str:
    """Return the short hash of what a stored array was made from."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def create_store(store: Path, kind: Kind) -> None:
    """Make the group of a shard unless it is there, and clear what a killed writer left.

    Raises:
        StoreError: The store holds another kind or another format version.
    """
    wanted = {"kind": kind, "format_version": FORMAT_VERSION}
    if (store / "zarr.json").exists():
        found = held_by(store)
        if found != wanted:
            raise StoreError(f"{store}: holds {found}, wanted {wanted}; move it away and run again")
    else:
        shutil.rmtree(store, ignore_errors=True)
        partial = store.with_name(f"{store.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        zarr.create_group(partial, zarr_format=3, attributes={"ct3d": wanted})
        publish(partial, store)
    for partial in store.glob("*.partial"):
        shutil.rmtree(partial)


def held_by(store: Location) -> Any:
    """Return the kind and format version that a store states, None where it states none.

    Raises:
        StoreError: Its metadata are missing, damaged, or cannot be fetched.
    """
    try:
        return json.loads((store / "zarr.json").read_text())["attributes"].get("ct3d")
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise StoreError(
            f"{store / 'zarr.json'}: cannot be read ({error!r}); delete {store} and "
            f"{table_of(store)} and run again: all of it is made anew"
        ) from error


def write_node(
    store: Path, node: str, array: NDArray[np.generic], *, attributes: Mapping[str, Any]
) -> str:
    """Write an array as a new group of a store; it appears whole or not at all.

    Args:
        store: A shard's store that `create_store` made.
        node: Name of the group, `{volume}@{key}`.
        array: D H W, latents C d h w, or a vector of packed bytes.
        attributes: Attributes of the group. Under `ct3d` the hashes of the array (`sha256`) and
            of the attributes (`attributes_sha256`) are added.

    Returns:
        The hash of the array, as `array_sha256`.

    Raises:
        StoreError: The disk is full, or what was read back differs from what was written.
    """
    sha256 = array_sha256(array)
    partial = store / f"{node}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    hashed = {**attributes, "ct3d": {**attributes.get("ct3d", {}), "sha256": sha256}}
    hashed["ct3d"]["attributes_sha256"] = attributes_sha256(hashed)
    with room_for(partial, array.nbytes):
        zarr.create_group(partial, zarr_format=3, attributes=hashed)
        write_array(partial / "0", array)
        if damage := StoredArray(store, partial.name).damage():
            raise StoreError(
                f"{store / node}: reads back other than was written ({damage}); check the disk"
            )
        publish(partial, store / node)
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

    def read_checked(self) -> NDArray[Any]:
        """Return the whole volume, D H W, held against the hash in its table.

        For what is made of it once and kept; a training's crops are too many to be hashed.

        Raises:
            StoreError: A value is another one than was written, or cannot be read.
        """
        values = self.array.read()
        if array_sha256(values) != self.sha256:
            raise StoreError(self.array.damage() or f"{self.array.place}: not what its table says")
        return values

    @property
    def identity(self) -> str:
        """Hash of the values and of where they are: what later stages are made from."""
        ct3d = self.array.attributes["ct3d"]
        return key_of(self.sha256, ct3d["affine"], ct3d.get("record"))

    @property
    def sources(self) -> tuple[str, ...]:
        """Files of the scan, as the catalog names them."""
        return tuple(self.array.attributes["ct3d"].get("source", ()))

    @property
    def own_window(self) -> tuple[float, float] | None:
        """The window of this volume alone, as MR has one; None where the recipe's counts."""
        ct3d = self.array.attributes["ct3d"]
        window = ct3d["record"]["window"] if ct3d.get("domain") == "mr" else None
        return None if window is None else (float(window[0]), float(window[1]))

    @property
    def affine(self) -> NDArray[np.float64]:
        """4 x 4, voxel (d, h, w, 1) to LPS mm."""
        return np.array(self.array.attributes["ct3d"]["affine"], dtype=np.float64)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of voxel centres along (D, H, W), mm."""
        d, h, w = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return d, h, w


def read_status(path: Location) -> pd.DataFrame:
    """Return a status table.

    Raises:
        StoreError: The file is missing or cannot be read, or columns are missing.
    """
    try:
        frame = read_table(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: not a status table ({error}); run its rule again") from error
    if missing := [c for c in STATUS_COLUMNS if c not in frame.columns]:
        raise StoreError(f"{path}: no column {missing[0]!r}; run its rule again")
    return frame


def read_table(path: Location) -> pd.DataFrame:
    """Return a Parquet table.

    Raises:
        OSError: The file is missing or cannot be fetched.
        ValueError: It is not Parquet.
    """
    return pd.read_parquet(path if isinstance(path, Path) else io.BytesIO(path.read_bytes()))


def stored_volumes(status_tables: Sequence[Location]) -> list[StoredVolume]:
    """Return the stored volumes of status tables, in the order of the tables' rows.

    `location` makes a place of a path or URL given as text.
    """
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
    """Write a table as Parquet, whole or not at all; the same rows give the same bytes.

    Raises:
        StoreError: The disk is full.
    """
    # The schema's own metadata would hold the versions of pandas and pyarrow.
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with room_for(partial, table.nbytes):
        pq.write_table(table, partial)
        publish(partial, path)
