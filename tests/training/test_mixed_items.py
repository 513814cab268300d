"""Scans and stacks of slices in one training."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ct3dlib.training import loader
from ct3dlib.training.loader import Items, batches
from ct3dlib.training.mixed_items import MixedItems
from tests.contracts.objective_cases import spec_of

BATCH = 4


class Shaped(Items):
    """Items of one shape that say who they are."""

    def __init__(self, n: int, shape: tuple[int, ...]) -> None:
        self._n, self._shape = n, shape

    def __len__(self) -> int:
        return self._n

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        return {"values": torch.zeros(self._shape), "index": torch.tensor(index)}


def mixed(main: int = 18, more: int = 9, share: float = 0.5) -> MixedItems:
    parts = Shaped(main, (1, 8, 4, 4)), Shaped(more, (1, 4, 4, 4))
    return MixedItems(*parts, share=share, batch_size=BATCH)


def rows(items: Items, first_step: int = 0, **keys) -> list[tuple[int, tuple[int, ...], int]]:
    """Return (step, shape, index) of every item in order."""
    spec = spec_of(**{"batch_size": BATCH, "micro_batch_size": 2, "steps": 24, **keys})
    return [
        (first_step + step, tuple(batch["values"].shape[1:]), index)
        for step, found in enumerate(batches(items, spec, first_step=first_step))
        for batch in found
        for index in batch["index"].tolist()
    ]


def test_an_epoch_by_hand():
    # 18 items make 4 batches of 4; a share of 0.5 wants as many of the 9, which make 2 a pass.
    items = mixed()
    assert len(items) == 8 * BATCH
    order = items.order(0).reshape(-1, BATCH)
    of_main = (order < 18).all(axis=1)
    assert of_main.sum() == (order >= 18).all(axis=1).sum() == 4  # no batch is of both
    scans = order[of_main].ravel()
    assert len(set(scans)) == 16
    assert set(scans) < set(range(18))
    slices, counts = np.unique(order[~of_main], return_counts=True)
    assert set(slices) <= set(range(18, 27))
    assert counts.max() == 2
    assert counts.sum() == 16
    assert all(len(set(batch)) == BATCH for batch in order.tolist())  # nobody meets itself


@pytest.mark.parametrize(
    ("main", "more", "share", "wanted"),
    [
        (40, 40, 0.3, (10, 4)),  # 10 x 3 / 7 = 4.3 batches
        (40, 40, 0.5, (10, 10)),
        (40, 4, 0.75, (10, 30)),  # the only batch of the second comes thirty times
        (40, 400, 0.2, (10, 2)),  # 2.5 rounds to the even one; most batches wait
        (4, 400, 0.01, (1, 1)),  # at least one
    ],
)
def test_the_share_is_met_by_repeating_or_skipping(main, more, share, wanted):
    items = mixed(main, more, share)
    order = items.order(1).reshape(-1, BATCH)
    assert ((order[:, 0] < main).sum(), (order[:, 0] >= main).sum()) == wanted
    assert len(items) == sum(wanted) * BATCH


@settings(max_examples=60, deadline=None)
@given(
    batch_size=st.integers(1, 5),
    extra=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**62),
)
def test_batches_of_any_sizes_are_of_one_part_and_hold_nobody_twice(batch_size, extra, share, seed):
    main, more = (batch_size + n for n in extra)
    parts = Shaped(main, (1,)), Shaped(more, (2,))
    items = MixedItems(*parts, share=share, batch_size=batch_size)
    order = items.order(seed)
    assert len(order) == len(items)
    table = order.reshape(-1, batch_size)
    of_main = table < main
    assert (of_main.all(axis=1) | ~of_main.any(axis=1)).all()
    assert (np.diff(np.sort(table, axis=1), axis=1) > 0).all()
    scans = table[of_main[:, 0]].ravel()
    assert len(set(scans.tolist())) == len(scans) == main // batch_size * batch_size
    # Of the second, nobody comes again before all others of a pass have come.
    counts = np.bincount(table[~of_main[:, 0]].ravel() - main, minlength=more)
    assert counts.max() <= -(-len(table[~of_main[:, 0]]) // (more // batch_size))
    wanted = len(table) * share
    assert abs((~of_main[:, 0]).sum() - wanted) <= 1
    np.testing.assert_array_equal(order, items.order(seed))


def test_no_step_of_any_epoch_holds_two_shapes_and_all_items_come():
    found = rows(mixed(), steps=80)  # ten epochs
    shapes = {step: {shape for _, shape, _ in of} for step, of in itertools.groupby(found, _step)}
    assert len(shapes) == 80
    assert all(len(of) == 1 for of in shapes.values())
    by_shape = {shape: {i for _, s, i in found if s == shape} for _, shape, _ in found}
    assert by_shape == {(1, 8, 4, 4): set(range(18)), (1, 4, 4, 4): set(range(9))}
    kinds = [shapes[step] for step in range(80)]
    assert kinds[:8] != kinds[8:16]  # each epoch has an order of its own


def _step(row: tuple[int, tuple[int, ...], int]) -> int:
    return row[0]


def test_a_resume_workers_and_micro_batches_change_nothing():
    items = mixed()
    whole = rows(items, steps=12)
    assert rows(items, first_step=5, steps=12) == whole[5 * BATCH :]
    assert rows(items, steps=12, num_workers=2) == whole
    assert rows(items, steps=12, micro_batch_size=4) == whole
    assert rows(items, steps=12, seed=1) != whole


def test_ranks_have_items_of_their_own_and_one_shape(monkeypatch):
    whole, parts = rows(mixed()), []
    for rank in range(2):
        monkeypatch.setattr(loader, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(loader, "world_size", lambda: 2)
        parts.append(rows(mixed()))
    for step in range(24):
        mine, other = ([row for row in part if row[0] == step] for part in parts)
        assert mine + other == [row for row in whole if row[0] == step]
        assert {row[2] for row in mine}.isdisjoint(row[2] for row in other)
        assert len({row[1] for row in mine + other}) == 1


def test_the_key_tells_parts_shares_and_batches_apart():
    parts = Shaped(16, (1,)), Shaped(8, (1,))
    keys = [
        MixedItems(*parts, share=0.5, batch_size=4).key,
        MixedItems(*parts, share=0.2, batch_size=4).key,
        MixedItems(*parts, share=0.5, batch_size=8).key,
        MixedItems(*parts[::-1], share=0.5, batch_size=4).key,
    ]
    assert len(set(keys)) == 4
    assert MixedItems(*parts, share=0.5, batch_size=4).key == keys[0]


@pytest.mark.parametrize(
    ("main", "more", "share", "message"),
    [
        (3, 9, 0.5, "the first part has 3 items, less than a batch of 4; lower batch_size"),
        (9, 3, 0.5, "the second part has 3 items, less than a batch of 4"),
        (9, 9, 1.0, "share must lie between 0 and 1, not 1.0"),
    ],
)
def test_what_cannot_be_mixed_is_refused(main, more, share, message):
    with pytest.raises(ValueError, match=message):
        mixed(main, more, share)
