"""Items of two shapes in one training: each optimizer step is of one kind."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ct3dlib.cohort.store import key_of
from ct3dlib.training.draws import seed_of
from ct3dlib.training.loader import Items, permutation


class MixedItems(Items):
    """Items of two data sets, as whole scans and stacks of slices, in batches of one kind each.

    An epoch holds every whole batch of the first once, and as many of the second as make up its
    share of the steps; those are repeated or skipped, in another choice each epoch. All are
    shuffled. What is left of a part after its last whole batch waits for another epoch.

    Args:
        main: The first part.
        more: The second; an index of it is counted on from the first's.
        share: Of the optimizer steps that are of the second, in (0, 1); rounded to whole batches.
        batch_size: Items of a step over all ranks, as the training's.

    Raises:
        ValueError: The share is none, or a part has less than a batch.
    """

    def __init__(self, main: Items, more: Items, *, share: float, batch_size: int) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, not {share}")
        for name, part in (("first", main), ("second", more)):
            if len(part) < batch_size:
                raise ValueError(
                    f"the {name} part has {len(part)} items, less than a batch of {batch_size}; "
                    f"lower batch_size, or train on one part alone"
                )
        self._parts = (main, more)
        self._batch_size = batch_size
        of_main = len(main) // batch_size
        self._batches = (of_main, max(1, round(of_main * share / (1 - share))))

    def __len__(self) -> int:
        """Return the number of items of an epoch, a multiple of the batch."""
        return sum(self._batches) * self._batch_size

    @property
    def key(self) -> str:
        """A hash of both parts, of their shares and of the batch."""
        return key_of("mixed", [part.key for part in self._parts], self._batches, self._batch_size)

    def order(self, seed: int) -> NDArray[np.int64]:
        """Return the items of an epoch in their order: every batch holds items of one part."""
        main, more = map(len, self._parts)
        return _order((main, more), self._batches, batch_size=self._batch_size, seed=seed)

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return an item of the first part, or, from its length on, of the second."""
        main, more = self._parts
        return main.item(index, rng) if index < len(main) else more.item(index - len(main), rng)


@lru_cache(maxsize=4)
def _order(
    lengths: tuple[int, int], batches: tuple[int, int], *, batch_size: int, seed: int
) -> NDArray[np.int64]:
    """Return the order of an epoch; see `MixedItems`."""
    parts = [
        first + _batches(length, count, batch_size=batch_size, seed=seed_of("part", seed, part))
        for part, (first, length, count) in enumerate(
            zip((0, lengths[0]), lengths, batches, strict=True)
        )
    ]
    whole = np.concatenate(parts)  # batches x batch_size
    return whole[permutation(len(whole), seed)].ravel()


def _batches(length: int, count: int, *, batch_size: int, seed: int) -> NDArray[np.int64]:
    """Return batches of one part: as many passes over it, each in its own order, as they need."""
    each = length // batch_size
    passes = [
        permutation(length, seed_of("pass", seed, number))[: each * batch_size]
        for number in range(-(-count // each))
    ]
    return np.concatenate(passes).reshape(-1, batch_size)[:count]
