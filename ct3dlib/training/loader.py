"""From items to the micro-batches of each step, the same for any number of workers and ranks.

A run is one long row of positions: position = step x batch_size + i. A position's epoch is
position // n, its item comes from an order of the items per (seed, epoch), and all its draws from
(seed, position). So a resume needs the step alone.
"""

import multiprocessing
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ct3dlib.config import TrainSpec
from ct3dlib.errors import TrainingError
from ct3dlib.training.distributed import rank, world_size
from ct3dlib.training.draws import seed_of
from ct3dlib.training.objective import Batch


class Items(ABC):
    """What a training reads; can be pickled to loader processes."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of items."""

    @abstractmethod
    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return one item, of the same names and shapes for all; draws come from `rng`."""

    @property
    def key(self) -> str:
        """What the items are made of; a run resumes only on items of the same key."""
        return f"{type(self).__name__} {len(self)}"

    def order(self, seed: int) -> NDArray[np.int64]:
        """Return which item comes at each place of an epoch: as many as there are items.

        Args:
            seed: Of the epoch; the same one gives the same order in every process.
        """
        return permutation(len(self), seed)


def batches(
    items: Items, spec: TrainSpec, *, first_step: int
) -> Generator[list[Batch], None, None]:
    """Yield this rank's micro-batches of each optimizer step, from `first_step` to the last.

    Raises:
        ValueError: There are no items, or the batch does not divide over the ranks.
        TrainingError: A loader process died.
    """
    per_rank, rest = divmod(spec.batch_size, world_size())
    if rest or per_rank % spec.micro_batch_size:
        raise ValueError(
            f"batch_size ({spec.batch_size}) must be a multiple of micro_batch_size x ranks "
            f"({spec.micro_batch_size} x {world_size()})"
        )
    starts = [
        step * spec.batch_size + rank() * per_rank + i
        for step in range(first_step, spec.stop_at or spec.steps)
        for i in range(0, per_rank, spec.micro_batch_size)
    ]
    lists = [range(start, start + spec.micro_batch_size) for start in starts]
    micro_batches = iter(_loader(Positions(items, spec.seed, "train"), lists, spec=spec))
    accumulate = per_rank // spec.micro_batch_size
    for _ in range(len(lists) // accumulate):
        yield [next(micro_batches) for _ in range(accumulate)]


def validation_batches(items: Items, spec: TrainSpec) -> Iterator[tuple[Batch, bool]]:
    """Yield this rank's batches of the same items with the same draws each time.

    Every rank gets as many batches, since objectives may talk to each other: one that has none
    left gets the last one again.

    Yields:
        A batch, and whether it counts.
    """
    num_items = min(spec.validation_items, len(items))
    size = spec.micro_batch_size
    lists = [range(i, min(i + size, num_items)) for i in range(0, num_items, size)]
    rounds = -(-len(lists) // world_size())
    chunks = [i * world_size() + rank() for i in range(rounds)]
    mine = [lists[min(chunk, len(lists) - 1)] for chunk in chunks]
    loader = _loader(Positions(items, spec.seed, "validation"), mine, spec=spec)
    for chunk, batch in zip(chunks, loader, strict=True):
        yield batch, chunk < len(lists)


@contextmanager
def loader_errors(num_workers: int) -> Iterator[None]:
    """Say in clear words that a loader process died; PyTorch may notice anywhere in a step.

    Raises:
        TrainingError: It did.
    """
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError) as error:
        if not num_workers or not _tells_of_a_death(error):
            raise
        raise TrainingError(
            f"a loader process died ({type(error).__name__}: {error}); most often memory ran out: "
            f"lower num_workers or micro_batch_size, or give the job more memory"
        ) from error


def _tells_of_a_death(error: Exception) -> bool:
    """Return whether an error is that of a process, not of an item it read."""
    if isinstance(error, RuntimeError):
        return "DataLoader worker (pid" in str(error)
    # A pipe broke; an item's own error would quote where it was caught.
    return "in DataLoader worker" not in str(error)


class Positions(Dataset[dict[str, Any]]):
    """Items by their position in a run.

    Args:
        items: What is read.
        seed: Of the run.
        purpose: Trainings and validations draw apart.

    Raises:
        ValueError: There are no items.
    """

    def __init__(self, items: Items, seed: int, purpose: Literal["train", "validation"]) -> None:
        if not len(items):
            raise ValueError(f"no items for {purpose}; see the status tables of the split")
        self._items = items
        self._seed = seed
        self._purpose = purpose

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Return the item of a position with its seed."""
        epoch, place = divmod(position, len(self._items))
        index = int(self._items.order(seed_of(self._purpose, self._seed, epoch))[place])
        item_seed = seed_of(self._purpose, "item", self._seed, position)
        return {
            **self._items.item(index, np.random.default_rng(item_seed)),
            "item_seed": item_seed,
        }


@lru_cache(maxsize=4)
def permutation(n: int, seed: int) -> NDArray[np.int64]:
    """Return 0 .. n - 1 in the order of a seed."""
    return np.random.default_rng(seed).permutation(n)


def _loader(
    positions: Positions, lists: Sequence[Sequence[int]], *, spec: TrainSpec
) -> DataLoader[dict[str, Any]]:
    """Return a loader of batches of positions."""
    workers = min(spec.num_workers, len(lists))
    return DataLoader(
        positions,
        batch_sampler=(list(places) for places in lists),
        num_workers=workers,
        multiprocessing_context=_forkserver() if workers else None,
        pin_memory=spec.device in ("auto", "cuda") and torch.cuda.is_available(),
        worker_init_fn=_ignore_sigterm if workers else None,
    )


def _ignore_sigterm(worker: int) -> None:
    """Undo the handler that PyTorch sets in its loader processes."""
    del worker
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _forkserver() -> BaseContext:
    """Return a way to start loader processes that leave SIGTERM to the training.

    They are forked from a server that has imported what they need: fast, and no thread is forked.
    The server inherits that SIGTERM is ignored, so a signal to the whole group of processes lets
    the training save its state; loader processes end with their parent.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ct3dlib.training.loop", "ct3dlib.training.items"])
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGTERM, before)
    return context
