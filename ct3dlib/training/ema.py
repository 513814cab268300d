"""Averaged weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ct3dlib.training.checkpoint import State
from ct3dlib.training.engine import TorchEngine
from ct3dlib.training.schedule import ema_decay


class Ema:
    """An exponential moving average of trainable parameters (buffers are not averaged).

    Args:
        engine: Holds the parameters; with `fully_shard` the average is sharded like them.
        decay: Share of the old average that a step keeps, once it is warm.
    """

    def __init__(self, engine: TorchEngine, decay: float) -> None:
        self._engine = engine
        self._decay = decay
        self._live = [p for p in engine.objective.parameters() if p.requires_grad]
        self._averaged = [p.detach().clone() for p in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 0."""
        weight = 1 - ema_decay(self._decay, step)
        for averaged, live in zip(self._averaged, self._live, strict=True):
            averaged.lerp_(live, weight)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Let the objective hold the averaged weights for a while."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def state(self) -> State:
        """Return the averaged weights, as `TorchEngine.weights`."""
        with self.swapped():
            return self._engine.weights()

    def load_state(self, weights: State) -> None:
        """Take what `state` returned; the objective's own weights stay."""
        with self.swapped():
            self._engine.load_weights(weights)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the objective's weights and the averaged ones."""
        for averaged, live in zip(self._averaged, self._live, strict=True):
            kept = live.detach().clone()
            live.copy_(averaged)
            averaged.copy_(kept)
