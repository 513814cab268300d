"""Scans and stored volumes through a model of whole volumes: read ahead, batched, in order.

Letters: B volumes, D H W voxels.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ct3dlib.cohort.location import Location
from ct3dlib.cohort.stage import Row
from ct3dlib.cohort.store import (
    StoredVolume,
    held_by,
    read_status,
    records,
    store_of,
    stored_volumes,
)
from ct3dlib.config import RecipeSpec, Shape
from ct3dlib.errors import StoreError, VolumeError
from ct3dlib.inference.contract import check_volumes
from ct3dlib.inference.single import read_scan
from ct3dlib.scan.axes import to_model

VOLUMES_PER_BATCH = 4


class Given(NamedTuple):
    """A volume on its recipe's grid, in the numbers of a store.

    Args:
        name: What messages call it.
        values: D H W, canonical axes.
        window: Values that map to the recipe's range.
    """

    name: str
    values: NDArray[Any]
    window: tuple[float, float]


class Seen(NamedTuple):
    """A volume as a model takes it: `values` 1 D H W in the model's order of axes, `window` 2."""

    values: Tensor
    window: Tensor


Reader = Callable[[], Given]
Item = TypeVar("Item")
Model = Callable[[Tensor, Tensor], Iterable[Item]]


def scan_reader(path: Path, recipe: RecipeSpec) -> Reader:
    """Return what reads a scan's files and brings it onto the grid of a recipe."""

    def read() -> Given:
        scan = read_scan(path, recipe)
        return Given(str(path), scan.volume.array, scan.window)

    return read


def stored_readers(
    tables: Sequence[Location], recipe: RecipeSpec, *, model: str
) -> list[tuple[Row, Reader]]:
    """Return the rows of volumes' status tables, each with what reads its volume.

    The reader of a rejected row raises what it was rejected for.

    Args:
        tables: Of volume stores, one or more shards.
        recipe: What the model was trained on.
        model: What messages call it.

    Raises:
        CheckpointError: The volumes are of another recipe.
        StoreError: A table cannot be read, or is of another store than volumes'.
    """
    found = []
    for table in tables:
        rows = records(read_status(table))
        held = held_by(store_of(table)) or {}
        if held.get("kind") != "volumes":
            raise StoreError(
                f"{table}: beside it lies a store of {held.get('kind')}, not of volumes; give "
                f"tables of data/volumes"
            )
        volumes = {volume.volume: volume for volume in stored_volumes([table])}
        check_volumes(recipe, volumes.values(), model=model)
        for row in rows:
            volume = volumes.get(row["volume"])
            if volume is None:
                found.append((row, refusal(row["reason"], row["message"])))
            else:
                found.append((row, partial(_read_stored, volume, recipe)))
    return found


def refusal(reason: str, message: str) -> Reader:
    """Return a reader that raises why there is no volume."""

    def read() -> Given:
        raise VolumeError(reason, message)

    return read


def to_seen(given: Given, recipe: RecipeSpec, *, shape: Shape) -> Seen:
    """Return a volume as a model of one shape takes it.

    Args:
        given: On the recipe's grid.
        recipe: Of the model.
        shape: That it takes, in its own order of axes.

    Raises:
        VolumeError: `WRONG_SHAPE`.
    """
    values = to_model(given.values, recipe.axes)
    if values.shape != shape:
        raise VolumeError(
            "WRONG_SHAPE",
            f"{given.name}: {values.shape} voxels on the recipe's grid, the model takes {shape}; "
            f"give the recipe a shape and train on it",
        )
    return Seen(torch.from_numpy(np.ascontiguousarray(values))[None], torch.tensor(given.window))


def outcomes(
    readers: Iterable[Reader],
    model: Model[Item],
    *,
    recipe: RecipeSpec,
    shape: Shape,
    batch_size: int,
) -> Iterator[Item | VolumeError]:
    """Yield what a model makes of each volume, in order, or why it cannot be used.

    A thread reads the next two batches while the model works on one.

    Args:
        readers: One for each volume.
        model: Takes `values` B 1 D H W as stored and `window` B 2, returns an item for each.
        recipe: Of the model.
        shape: That it takes, in its own order of axes.
        batch_size: Volumes at a time.
    """

    def read(reader: Reader) -> Seen | VolumeError:
        try:
            return to_seen(reader(), recipe, shape=shape)
        except VolumeError as error:
            return error

    pool = ThreadPoolExecutor(1, thread_name_prefix="scans")
    try:
        ahead = _ahead((partial(read, reader) for reader in readers), pool, 2 * batch_size)
        while batch := list(islice(ahead, batch_size)):
            seen = [one for one in batch if not isinstance(one, VolumeError)]
            made = iter(model(*map(torch.stack, zip(*seen, strict=True))) if seen else ())
            for one in batch:
                yield one if isinstance(one, VolumeError) else next(made)
    finally:
        pool.shutdown(cancel_futures=True)


def _ahead(
    calls: Iterable[Callable[[], Item]], pool: ThreadPoolExecutor, count: int
) -> Iterator[Item]:
    """Yield what calls return, in order, while the next `count` of them are under way."""
    waiting: deque[Future[Item]] = deque()
    for call in calls:
        waiting.append(pool.submit(call))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read_stored(volume: StoredVolume, recipe: RecipeSpec) -> Given:
    """Read a volume of a store, held against its hash."""
    return Given(volume.volume, volume.read_checked(), volume.own_window or recipe.window)
