"""Embeddings of many volumes: Parquet a group of rows at a time, joined shards, Zarr groups.

Letters: N volumes, d h w cells of the regional grid, C channels.

`class` and `pooled` are lists of C numbers, `regional` one of d x h x w x C, channels running
fastest. Memory holds a group of rows, however many volumes there are.
"""

import heapq
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from ct3dlib.cohort.durable import publish, room_for
from ct3dlib.cohort.stage import Row
from ct3dlib.config import Shape
from ct3dlib.errors import StoreError, VolumeError
from ct3dlib.inference.embed import Embedding, Encoder
from ct3dlib.inference.scans import Reader, outcomes
from ct3dlib.progress import progress

logger = logging.getLogger(__name__)

_ROWS_PER_GROUP = 64
_VECTOR = pa.list_(pa.float32())
STATUS_COLUMNS = ("volume", "status", "stage", "reason", "message", "volume_sha256", "model_sha256")
Item = TypeVar("Item")


def embed_all(
    encoder: Encoder, readers: Sequence[Reader], *, regional: Shape | None, batch_size: int
) -> Iterator[Embedding | VolumeError]:
    """Yield the embeddings of each volume, in order, or why it cannot be used."""
    made = outcomes(
        readers,
        lambda values, window: encoder.embed(values, window, regional=regional),
        recipe=encoder.recipe,
        shape=encoder.shape,
        batch_size=batch_size,
    )
    named = progress(readers, name="embed", unit="volume")
    for _, outcome in zip(named, made, strict=True):
        yield outcome


def embed_shard(
    encoder: Encoder,
    rows: Sequence[tuple[Row, Reader]],
    *,
    regional: Shape | None,
    batch_size: int,
    table: Path,
) -> None:
    """Write the embeddings of a shard's volumes: `STATUS_COLUMNS`, then their vectors.

    Args:
        encoder: On the device to use.
        rows: What `stored_readers` returned.
        regional: Cells along (D, H, W) of a volume; None: no such column.
        batch_size: Volumes at a time.
        table: Parquet, one row for each of `rows`, sorted by volume; whole or not at all.

    Raises:
        StoreError: The disk is full, or a stored volume is damaged.
    """
    rows = sorted(rows, key=lambda row: row[0]["volume"])
    readers = [reader for _, reader in rows]
    made = embed_all(encoder, readers, regional=regional, batch_size=batch_size)

    def told() -> Iterator[Row]:
        for (row, _), outcome in zip(rows, made, strict=True):
            yield {
                "volume": row["volume"],
                "volume_sha256": row["sha256"],
                "model_sha256": encoder.sha256,
                **_status(row, outcome),
                **vectors(outcome),
            }

    num_bytes = len(rows) * _bytes_of(encoder, regional)
    _write_rows(told(), schema_of(STATUS_COLUMNS, regional), table, num_bytes=num_bytes)


def vectors(outcome: Embedding | VolumeError) -> Row:
    """Return the columns of an embedding, empty ones where there is none."""
    if isinstance(outcome, VolumeError):
        return {}
    regional = None if outcome.regional is None else outcome.regional.ravel()
    return {"class": outcome.cls, "pooled": outcome.pooled, "regional": regional}


def schema_of(text: Sequence[str], regional: Shape | None) -> pa.Schema:
    """Return the columns of a table: those of text, then the vectors."""
    names = ("class", "pooled") if regional is None else ("class", "pooled", "regional")
    fields = [(name, pa.string()) for name in text] + [(name, _VECTOR) for name in names]
    return pa.schema(fields)


def write_parquet(
    made: Iterable[Embedding | VolumeError], ids: Mapping[str, Sequence[str]], path: Path, *,
    encoder: Encoder, regional: Shape,
) -> list[str]:  # fmt: skip
    """Write embeddings as Parquet: what the scans are called, `error`, their vectors.

    Args:
        made: Of each scan.
        ids: One column of names.
        path: Written whole or not at all.
        encoder: That made them.
        regional: Cells along (D, H, W) of a volume.

    Returns:
        The errors, "" where there was none.

    Raises:
        StoreError: The disk is full.
    """
    ((key, names),) = ids.items()
    errors: list[str] = []

    def rows() -> Iterator[Row]:
        for name, outcome in zip(names, made, strict=True):
            errors.append(error_of(outcome))
            yield {key: name, "error": errors[-1], **vectors(outcome)}

    num_bytes = len(names) * _bytes_of(encoder, regional)
    _write_rows(rows(), schema_of((key, "error"), regional), path, num_bytes=num_bytes)
    return errors


def join_embeddings(tables: Sequence[Path], path: Path) -> dict[str, int]:
    """Merge the tables of a split's shards into one, sorted by volume.

    Returns:
        Rows by status.

    Raises:
        StoreError: A volume is there twice, two shards are of other columns, or the disk is full.
    """
    schemas = {table: pq.read_schema(table) for table in tables}
    schema = schemas[tables[0]]
    for table, found in schemas.items():
        if found != schema:
            raise StoreError(f"{table}: has other columns than {tables[0]}; delete both, run again")
    counts: dict[str, int] = {}

    def merged() -> Iterator[pa.RecordBatch]:
        last = None
        for group in _groups(heapq.merge(*map(_by_volume, tables), key=lambda pair: pair[0])):
            for volume, row in group:
                if volume == last:
                    raise StoreError(
                        f"{volume}: in two tables of embeddings; delete the one whose shard is gone"
                    )
                last, status = volume, row["status"][0].as_py()
                counts[status] = counts.get(status, 0) + 1
            yield pa.Table.from_batches([row for _, row in group]).combine_chunks().to_batches()[0]

    num_bytes = sum(table.stat().st_size for table in tables)
    _write_batches(merged(), schema, path, num_bytes=num_bytes)
    logger.info("%s: %s", path, ", ".join(f"{n} {name}" for name, n in counts.items()))
    return counts


def write_zarr(
    made: Iterable[Embedding | VolumeError], ids: Sequence[str], path: Path, *,
    encoder: Encoder, regional: Shape,
) -> list[str]:  # fmt: skip
    """Write embeddings as a Zarr group, whole or not at all.

    Arrays: `class` N C, `pooled` N C, `regional` N d h w C, `ids` and `error` N; a scan that
    cannot be used has NaN and its error. Arguments, result and errors as `write_parquet`.
    """
    partial, count, width = path.with_name(f"{path.name}.partial"), len(ids), encoder.width
    shapes = {"class": (width,), "pooled": (width,), "regional": (*regional, width)}
    ct3d = {"model_sha256": encoder.sha256, "recipe": encoder.recipe.model_dump(mode="json")}
    path.parent.mkdir(parents=True, exist_ok=True)
    errors: list[str] = []
    with room_for(partial, count * _bytes_of(encoder, regional)):
        group = zarr.create_group(partial, zarr_format=3, overwrite=True, attributes={"ct3d": ct3d})
        arrays = {
            name: group.create_array(
                name,
                shape=(count, *shape),
                chunks=(min(_ROWS_PER_GROUP, count), *shape),
                dtype="float32",
            )
            for name, shape in shapes.items()
        }
        for rows in _groups(made):
            part = slice(len(errors), len(errors) + len(rows))
            for name, shape in shapes.items():
                empty = np.full(shape, np.nan, np.float32)
                found = [vectors(row).get(name, empty).reshape(shape) for row in rows]
                arrays[name][part] = np.stack(found)
            errors += map(error_of, rows)
        for name, texts in {"ids": ids, "error": errors}.items():
            group.create_array(name, shape=(count,), dtype="string")[:] = np.array(texts, object)
        publish(partial, path)
    return errors


def error_of(outcome: object) -> str:
    """Return the reason and message of a volume that cannot be used, "" of any other."""
    return f"{outcome.reason}: {outcome}" if isinstance(outcome, VolumeError) else ""


def _status(row: Row, outcome: Embedding | VolumeError) -> Row:
    """Return what became of a volume, and in which stage."""
    if not isinstance(outcome, VolumeError):
        return {"status": "embedded", "stage": "", "reason": "", "message": ""}
    stage = "embeddings" if row["status"] == "stored" else "volumes"
    told = {"reason": outcome.reason, "message": str(outcome)}
    return {"status": "rejected", "stage": stage, **told}


def _by_volume(table: Path) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yield the rows of a shard's table one by one, with their volumes."""
    with pq.ParquetFile(table) as file:
        for batch in file.iter_batches(batch_size=_ROWS_PER_GROUP):
            for number, volume in enumerate(batch["volume"].to_pylist()):
                yield volume, batch.slice(number, 1)


def _groups(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Yield items in lists of those that are written together."""
    iterator = iter(items)
    while group := list(islice(iterator, _ROWS_PER_GROUP)):
        yield group


def _bytes_of(encoder: Encoder, regional: Shape | None) -> int:
    """Return the size of a volume's vectors."""
    cells = 0 if regional is None else math.prod(regional)
    return 4 * encoder.width * (2 + cells)


def _write_rows(
    rows: Iterable[Mapping[str, Any]], schema: pa.Schema, path: Path, *, num_bytes: int
) -> None:
    """Write rows as Parquet; a column that a row lacks is empty there."""
    columns = (
        [pa.array([row.get(field.name) for row in group], field.type) for field in schema]
        for group in _groups(rows)
    )
    batches = (pa.record_batch(arrays, schema=schema) for arrays in columns)
    _write_batches(batches, schema, path, num_bytes=num_bytes)


def _write_batches(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path, *, num_bytes: int
) -> None:
    """Write groups of rows as Parquet, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with room_for(partial, num_bytes):
        with pq.ParquetWriter(partial, schema, use_dictionary=False) as writer:
            for batch in batches:
                writer.write_batch(batch)
        publish(partial, path)
