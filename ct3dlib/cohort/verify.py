"""Hold stores and reconstructions against their status tables: all is read and hashed again."""

import io
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow.parquet import read_schema

from ct3dlib.cohort.location import Location
from ct3dlib.cohort.packing import unpack_indices
from ct3dlib.cohort.store import FORMAT_VERSION, held_by, read_status, read_table, records
from ct3dlib.cohort.stored_array import StoredArray, store_of, table_of
from ct3dlib.errors import StoreError
from ct3dlib.scan.reading import file_sha256

# Of a reconstruction; its status table lies beside the folder.
_HASHED = ".nii.gz.sha256"


@dataclass(frozen=True)
class Finding:
    """Something wrong with one volume of a store, or with its table."""

    table: Location
    volume: str
    problem: str


def find_tables(place: Location) -> Sequence[Location]:
    """Return the status tables of the stores at or below a place.

    Tables that are missing beside their store, or cannot be read, are among them.

    Args:
        place: A status table, a split's joined table, a store, or a folder that holds some. A
            web server lists nothing: no folder there.

    Raises:
        StoreError: There is nothing at the place, or no table or store.
    """
    if isinstance(place, Path) and not place.exists():
        raise StoreError(f"{place}: no such file or folder; give data/, tokens/ or a status table")
    if place.suffix == ".zarr":
        return [table_of(place)]
    if isinstance(place, Path) and place.is_dir():
        tables = _below(place)
    elif place.suffix != ".parquet":
        raise StoreError(f"{place}: not a status table; give one, its store or a folder of them")
    else:
        tables = _named(place)
    if not tables:
        raise StoreError(f"{place}: no status table beside a store here or below")
    return tables


def _below(folder: Path) -> Sequence[Location]:
    """Return the status tables of a folder and those that its stores lack."""
    tables: set[Path] = set()
    for parent, folders, files in os.walk(folder):
        stores = {name for name in folders if name.endswith(".zarr")}
        folders[:] = set(folders) - stores
        tables |= {table_of(Path(parent, name)) for name in stores}
        for name in files:
            table = Path(parent, name)
            # The shards of a joined table are found by themselves.
            if table.suffix == ".parquet" and _named(table) == [table]:
                tables.add(table)
            if name.endswith(_HASHED):
                tables.add(Path(parent).with_suffix(".parquet"))
    return sorted(tables)


def _named(table: Location) -> Sequence[Location]:
    """Return a status table itself, the shards' tables of a joined one, nothing of any other."""
    try:
        source = table if isinstance(table, Path) else io.BytesIO(table.read_bytes())
        columns = set(read_schema(source).names)
        if columns.isdisjoint({"node", "file"}) or "status" not in columns:
            return []
        if "shard" not in columns:
            return [table]
        shards = sorted(set(read_table(table)["shard"]))
    except (OSError, ValueError):
        return [table]  # to be found unreadable
    return [table.with_suffix("") / f"{shard:04d}.parquet" for shard in shards]


def verify_table(table: Location, in_use: Collection[str] = ()) -> Iterator[Finding]:
    """Yield what is wrong with a status table and its store.

    Groups that the table does not name are found in a folder only: a web server lists nothing.

    Args:
        table: A shard's status table of volumes, regions, lesions, tokens, latents or
            reconstructions.
        in_use: Hashes of the models in use; what another one made is stale. Empty: not looked at.
    """
    if isinstance(table, Path) and _is_of_files(table):
        yield from _verify_files(table, in_use)
        return
    store = store_of(table)
    for problem in _problems_of_pair(table, store):
        yield Finding(table, store.name, problem)
    named: set[str] = set()
    seen: set[str] = set()
    for row in _rows(table):
        if row["volume"] in seen:
            yield Finding(table, row["volume"], "is in the table twice")
        seen.add(row["volume"])
        if row["status"] == "rejected":
            continue
        named.add(row["node"])
        for problem in _problems(StoredArray(store, row["node"]), row, in_use):
            yield Finding(table, row["volume"], problem)
    if not seen or not isinstance(store, Path) or not store.is_dir():
        return
    for path in sorted(store.iterdir()):
        if path.is_dir() and path.name not in named:
            yield Finding(table, path.name, "is in the store but not in the table")


def _is_of_files(table: Path) -> bool:
    """Return whether a status table, there or lost, is of files and not of a store's arrays."""
    if not table.exists():
        return any(table.with_suffix("").glob(f"*{_HASHED}"))
    try:
        return "file" in read_schema(table).names
    except (OSError, ValueError):
        return False


def _verify_files(table: Path, in_use: Collection[str]) -> Iterator[Finding]:
    """Yield what is wrong with the files of a status table, in the folder of its name."""
    folder = table.with_suffix("")
    if not table.exists():
        what = f"is a folder without a status table; run its rule again, or delete {folder}"
        yield Finding(table, folder.name, what)
        return
    named: set[Path] = set()
    for row in records(read_table(table)):
        if not row["file"]:
            continue
        path = folder / row["file"]
        named |= {path, path.with_name(f"{path.name}.sha256")}
        try:
            same = file_sha256(path) == row["sha256"]
        except OSError as error:
            yield Finding(table, row["volume"], f"cannot be read: {error}; {_way_out(table)}")
            continue
        if not same:
            what = f"is damaged: {path} is not as it was written; {_way_out(table)}"
            yield Finding(table, row["volume"], what)
        elif in_use and row["tokenizer_sha256"] not in in_use:
            yield Finding(table, row["volume"], "is stale: reconstructed by another tokenizer")
    for path in sorted(set(folder.glob("*")) - named):
        yield Finding(table, path.name, "is in the folder but not in the table")


def _way_out(table: Path) -> str:
    """Return what to do about a damaged file."""
    return f"delete {table} and run again: it is made anew"


def verify_layout(tables: Sequence[Location]) -> Iterator[Finding]:
    """Yield the tables that hold volumes of another one, as a smaller `catalog.shards` leaves them.

    Args:
        tables: Status tables; those of one recipe and stage lie in the same or sibling folders.
    """
    first: dict[tuple[str, str], Location] = {}
    for table in tables:
        shared: dict[Location, list[str]] = {}
        for volume in dict.fromkeys(row["volume"] for row in _rows(table)):
            other = first.setdefault((_stage(table), volume), table)
            if other != table:
                shared.setdefault(other, []).append(volume)
        for other, volumes in shared.items():
            yield Finding(
                table,
                table.name,
                f"holds {len(volumes)} volumes that are in {other} too ({volumes[0]}, ...); of two "
                f"tables the one whose shard or split is no longer in catalog.shards is stale: "
                f"delete it and its store",
            )


def stores_without_table(tables: Sequence[Path]) -> list[Path]:
    """Return the stores in the folders of some status tables that none of these belongs to."""
    expected = {store_of(table) for table in tables}
    found = {store for folder in {t.parent for t in tables} for store in folder.glob("*.zarr")}
    return sorted(found - expected)


def _stage(table: Location) -> str:
    """Return the folder of the splits that a table is one of."""
    text = str(table.resolve() if isinstance(table, Path) else table)
    return text.rsplit("/", 2)[0]


def _rows(table: Location) -> list[dict[str, Any]]:
    """Return the rows of a status table, none where it cannot be read."""
    try:
        return records(read_status(table))
    except StoreError:
        return []


def _problems_of_pair(table: Location, store: Location) -> Iterator[str]:
    """Yield what is wrong with a table or with its store as a whole."""
    if isinstance(table, Path) and not table.exists():
        yield (
            f"is a store without a status table; run its rule again, or delete {store} if its "
            f"shard is no longer in catalog.shards"
        )
        return
    try:
        read_status(table)
        held = held_by(store)
    except StoreError as error:
        yield f"cannot be verified: {error}"
        return
    if not isinstance(held, dict) or held.get("format_version") != FORMAT_VERSION:
        yield f"states {held}, wanted format_version {FORMAT_VERSION}; delete it and {table}"


def _problems(array: StoredArray, row: dict[str, Any], in_use: Collection[str]) -> Iterator[str]:
    """Yield what is wrong with one stored array."""
    if damage := array.damage():
        yield f"is damaged: {damage}"
        return
    ct3d = array.attributes["ct3d"]
    if row["sha256"] != ct3d["sha256"]:
        yield "holds other values than the table says: its hash differs; delete the table"
        return
    shape = ct3d["shape"] if "bits" in ct3d else list(array.shape)
    if list(row.get("shape") or ()) != list(shape):
        yield f"has shape {list(shape)}, the table says {row.get('shape')}"
    if "bits" in ct3d:
        try:
            unpack_indices(array.read(), int(ct3d["bits"]), tuple(ct3d["shape"]))
        except StoreError as error:
            yield str(error)
    made_by = ct3d.get("tokenizer_sha256")
    if in_use and made_by is not None and made_by not in in_use:
        yield "is stale: encoded by another tokenizer"
