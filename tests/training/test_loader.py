import os
import signal

import numpy as np
import pytest
import torch
from torch import Tensor

from ct3dlib.errors import StoreError, TrainingError
from ct3dlib.training import loader
from ct3dlib.training.loader import Items, batches, loader_errors, validation_batches
from tests.contracts.objective_cases import spec_of


class Numbered(Items):
    """Items that say who they are."""

    def __init__(self, n: int) -> None:
        self._n = n

    def __len__(self) -> int:
        return self._n

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        return {"index": torch.tensor(index), "draw": torch.tensor(rng.random())}


class Deadly(Numbered):
    """Items of which one takes its process with it."""

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().item(index, rng)


class Damaged(Numbered):
    """Items of which one cannot be read."""

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        raise StoreError("shard.zarr: damaged")


def _rows(steps) -> list[tuple[float, ...]]:
    """Return (index, draw, item_seed) of every item in order."""
    return [
        row
        for micro_batches in steps
        for batch in micro_batches
        for row in zip(*(batch[k].tolist() for k in ("index", "draw", "item_seed")), strict=True)
    ]


def _as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr(loader, "rank", lambda: rank)
    monkeypatch.setattr(loader, "world_size", lambda: world_size)


def test_an_epoch_holds_every_item_once_in_an_order_of_its_own():
    rows = _rows(batches(Numbered(12), spec_of(steps=3, batch_size=8), first_step=0))
    first, second = [r[0] for r in rows[:12]], [r[0] for r in rows[12:]]
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert len({r[1] for r in rows}) == len({r[2] for r in rows}) == 24  # all draws differ


def test_a_resume_gets_what_would_have_come():
    spec = spec_of(steps=5)
    whole = _rows(batches(Numbered(7), spec, first_step=0))
    assert _rows(batches(Numbered(7), spec, first_step=3)) == whole[3 * 8 :]


def test_micro_batches_and_the_seed():
    items = Numbered(7)
    steps = list(batches(items, spec_of(steps=2, micro_batch_size=2), first_step=0))
    assert [len(micro_batches) for micro_batches in steps] == [4, 4]
    assert _rows(steps) == _rows(batches(items, spec_of(steps=2, micro_batch_size=8), first_step=0))
    assert _rows(steps) != _rows(batches(items, spec_of(steps=2, seed=1), first_step=0))


def test_ranks_share_the_batch(monkeypatch):
    spec = spec_of(steps=2, micro_batch_size=2)
    whole = _rows(batches(Numbered(11), spec, first_step=0))
    parts = []
    for rank in range(2):
        _as_rank(monkeypatch, rank, 2)
        parts.append(_rows(batches(Numbered(11), spec, first_step=0)))
    assert parts[0][:4] + parts[1][:4] + parts[0][4:] + parts[1][4:] == whole


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    _as_rank(monkeypatch, 0, 3)
    with pytest.raises(ValueError, match=r"batch_size \(8\) must be a multiple .* \(4 x 3\)"):
        next(batches(Numbered(3), spec_of(), first_step=0))


def test_no_items_are_refused():
    with pytest.raises(ValueError, match="no items for train; see the status tables"):
        next(batches(Numbered(0), spec_of(), first_step=0))


def test_validation_repeats_and_differs_from_training():
    spec = spec_of(validation_items=5, micro_batch_size=2)
    first, again = (_rows([[b for b, _ in validation_batches(Numbered(9), spec)]]) for _ in "12")
    assert first == again
    assert len({index for index, _, _ in first}) == 5
    assert {seed for *_, seed in first}.isdisjoint(
        seed for *_, seed in _rows(batches(Numbered(9), spec, first_step=0))
    )


def test_validation_counts_each_item_once_over_ranks(monkeypatch):
    spec = spec_of(validation_items=5, micro_batch_size=2)
    counted, lengths = [], []
    for rank in range(2):
        _as_rank(monkeypatch, rank, 2)
        found = list(validation_batches(Numbered(20), spec))
        lengths.append(len(found))
        counted += _rows([[batch for batch, counts in found if counts]])
    assert lengths == [2, 2]  # three batches, and one that does not count
    assert len(counted) == len(set(counted)) == 5


def test_workers_change_nothing_and_die_in_clear_words():
    spec = spec_of(steps=4)
    with_workers = spec_of(steps=4, num_workers=2)
    alone = _rows(batches(Numbered(5), spec, first_step=0))
    assert _rows(batches(Numbered(5), with_workers, first_step=0)) == alone
    died = pytest.raises(TrainingError, match=r"a loader process died .* lower num_workers")
    with died, loader_errors(1):
        list(batches(Deadly(5), spec_of(num_workers=1), first_step=0))


def test_an_error_of_an_item_keeps_its_type_and_text():
    with pytest.raises(StoreError, match=r"shard\.zarr: damaged"), loader_errors(0):
        next(batches(Damaged(5), spec_of(), first_step=0))


@pytest.mark.parametrize(
    ("error", "died"),
    [
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), True),
        (RuntimeError("something else"), False),
        (EOFError(), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (EOFError("Caught EOFError in DataLoader worker process 0."), False),
    ],
)
def test_only_a_death_is_called_one(error, died):
    with pytest.raises(TrainingError if died else type(error)), loader_errors(2):
        raise error
    with pytest.raises(type(error)), loader_errors(0):  # there is nothing to die
        raise error


class Backwards(Numbered):
    """Items with an order of their own."""

    def order(self, seed: int) -> np.ndarray:
        return np.arange(len(self))[::-1]


def test_items_may_say_in_which_order_they_come():
    rows = _rows(batches(Backwards(4), spec_of(steps=1, batch_size=8), first_step=0))
    assert [row[0] for row in rows] == [3, 2, 1, 0, 3, 2, 1, 0]


@pytest.mark.parametrize("cuda", [False, True])
def test_the_spec_reaches_the_data_loader(monkeypatch, cuda):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    positions = loader.Positions(Numbered(8), 0, "train")
    spec = spec_of(num_workers=2, device="auto")
    made = loader._loader(positions, [range(4)] * 9, spec=spec)
    assert (made.num_workers, made.prefetch_factor, made.pin_memory) == (2, 2, cuda)
    assert loader._loader(positions, [range(4)], spec=spec).num_workers == 1  # one batch
    assert not loader._loader(positions, [range(4)], spec=spec_of(device="cpu")).pin_memory
