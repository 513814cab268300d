"""Hold stores against their status tables: every array read and hashed again."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ct3dlib.cohort.packing import unpack_indices
from ct3dlib.cohort.store import StoredArray, array_sha256, read_status, records, store_of
from ct3dlib.errors import StoreError


@dataclass(frozen=True)
class Finding:
    """Something wrong with one volume of a store."""

    table: Path
    volume: str
    problem: str


def verify_table(table: Path, tokenizer_sha256: str | None = None) -> Iterator[Finding]:
    """Yield what is wrong with the store of a status table.

    Args:
        table: A shard's status table of volumes, regions or tokens.
        tokenizer_sha256: Hash of the tokenizer in use; tokens of another one are stale.

    Raises:
        StoreError: The table itself cannot be read.
    """
    store = store_of(table)
    named: set[str] = set()
    seen: set[str] = set()
    for row in records(read_status(table)):
        if row["volume"] in seen:
            yield Finding(table, row["volume"], "is in the table twice")
        seen.add(row["volume"])
        if row["status"] == "rejected":
            continue
        named.add(row["node"])
        for problem in _problems(StoredArray(store, row["node"]), row, tokenizer_sha256):
            yield Finding(table, row["volume"], problem)
    for path in sorted(store.iterdir()) if store.is_dir() else ():
        if path.is_dir() and path.name not in named:
            yield Finding(table, path.name, "is in the store but not in the table")


def _problems(array: StoredArray, row: dict[str, Any], tokenizer: str | None) -> Iterator[str]:
    """Yield what is wrong with one stored array."""
    try:
        values = array.read()
        ct3d = array.attributes["ct3d"]
    except (StoreError, KeyError, ValueError, OSError) as error:
        yield f"cannot be read: {error}"
        return
    if not array_sha256(values) == row["sha256"] == ct3d.get("sha256"):
        yield "holds other values than were written: its hash differs"
        return
    shape = ct3d["shape"] if "bits" in ct3d else list(values.shape)
    if list(row["shape"]) != list(shape):
        yield f"has shape {list(shape)}, the table says {list(row['shape'])}"
    if "bits" not in ct3d:
        return
    try:
        unpack_indices(values, int(ct3d["bits"]), tuple(ct3d["shape"]))
    except StoreError as error:
        yield str(error)
    if tokenizer is not None and ct3d["tokenizer_sha256"] != tokenizer:
        yield "is stale: encoded by another tokenizer"
