"""Anybody's PyTorch data set in the training loop."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from ct3dlib.training.dataset_items import DatasetItems
from ct3dlib.training.loader import batches
from tests.contracts.objective_cases import spec_of


class Made(Dataset[object]):
    """Samples that a function makes of their index."""

    def __init__(self, make: Callable[[int], object], length: int = 5) -> None:
        self._make = make
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> object:
        return self._make(index)


class Noisy(Dataset[Tensor]):
    """Samples that draw from torch's generator."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Tensor:
        return torch.rand(2, 3, 4) + index


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield torch.zeros(2, 3, 4)


def _item(items: DatasetItems, index: int, seed: int = 0) -> dict[str, Tensor]:
    return items.item(index, np.random.default_rng(seed))


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 2, 3, 4)], ids=["DHW", "1DHW"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_tensors_become_volumes_with_a_channel(shape, dtype):
    items = DatasetItems(Made(lambda i: torch.full(shape, i / 4, dtype=dtype)))
    assert len(items) == 5
    item = _item(items, 3)
    assert list(item) == ["volume"]
    assert item["volume"].dtype == torch.float32
    assert torch.equal(item["volume"], torch.full((1, 2, 3, 4), 0.75))


def test_mappings_keep_their_other_entries():
    made = Made(lambda i: {"image": np.full((2, 3, 4), 0.5, np.float32), "label": i, "age": 61.5})
    item = _item(DatasetItems(made, volume="image"), 2)
    assert set(item) == {"volume", "label", "age"}
    assert item["label"].item() == 2
    assert item["age"].item() == 61.5
    assert item["volume"].shape == (1, 2, 3, 4)


def test_draws_are_seeded_and_leave_the_global_generator_alone():
    items = DatasetItems(Noisy())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(_item(items, 1)["volume"], _item(items, 1)["volume"])
    assert not torch.equal(_item(items, 1)["volume"], _item(items, 1, seed=1)["volume"])
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_and_resumes_give_the_same_batches():
    def volumes(first_step: int, workers: int) -> list[Tensor]:
        spec = spec_of(steps=3, batch_size=2, micro_batch_size=2, num_workers=workers)
        steps = batches(DatasetItems(Noisy()), spec, first_step=first_step)
        return [batch["volume"] for step in steps for batch in step]

    whole = volumes(0, 0)
    assert all(torch.equal(a, b) for a, b in zip(volumes(0, 2), whole, strict=True))
    assert torch.equal(volumes(2, 0)[0], whole[2])


def test_the_key_tells_data_sets_apart():
    def made(value: float = 0.0, length: int = 5, shape: tuple[int, ...] = (2, 3, 4)) -> str:
        return DatasetItems(Made(lambda i: torch.full(shape, value), length)).key

    assert made() == made()
    assert len({made(), made(value=1.0), made(length=6), made(shape=(2, 3, 5))}) == 4
    assert len(DatasetItems(Made(lambda i: torch.zeros(1), 0))) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda i: torch.zeros(3, 4), r"Made\[0\]: the volume has shape \(3, 4\), wanted D H W"),
        (lambda i: torch.zeros(2, 2, 3, 4), r"shape \(2, 2, 3, 4\), wanted D H W or 1 D H W"),
        (
            lambda i: torch.zeros(2, 3, 4, dtype=torch.int16),
            "int16, wanted floating .*apply_window",
        ),
        (lambda i: (torch.zeros(2, 3, 4), 1), r"Made\[0\]: a tuple; return a tensor, or a mapping"),
        (lambda i: {"ct": torch.zeros(2, 3, 4)}, r"no 'volume', only ct; .* volume=\.\.\.\)"),
        (
            lambda i: {"volume": torch.zeros(2, 3, 4), "name": "a"},
            "'name' is a str, which no batch holds",
        ),
    ],
    ids=["2D", "two channels", "integer", "tuple", "no key", "text"],
)
def test_samples_that_do_not_fit_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        DatasetItems(Made(make))


def test_a_sample_of_another_shape_is_named():
    items = DatasetItems(Made(lambda i: torch.zeros(2, 3, 4 + i // 3)))
    with pytest.raises(
        ValueError, match=r"Made\[3\]: .* \(2, 3, 5\), the first one \(1, 2, 3, 4\)"
    ):
        _item(items, 3)


def test_data_sets_without_length_or_index_are_refused():
    with pytest.raises(ValueError, match=r"Endless: iterable, or without a length; .* store the"):
        DatasetItems(Endless())
    with pytest.raises(ValueError, match="a tuple; return a tensor"):
        DatasetItems(TensorDataset(torch.zeros(3, 2, 3, 4)))
