"""What one training minimises."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ct3dlib.training.distributed import mean_over_ranks

Batch = Mapping[str, Tensor]
Batches = Sequence[Batch]
Metrics = dict[str, Tensor]


class Engine(ABC):
    """What an objective's `backward` may ask of the loop."""

    @abstractmethod
    def forward(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        """Call the objective as wrapped for several ranks, at the training's precision."""

    @abstractmethod
    def backward(self, loss: Tensor, turn: str) -> None:
        """Add the gradient of a loss to that of the step."""

    @abstractmethod
    def micro_batch(self, turn: str, *, last: bool) -> AbstractContextManager[None]:
        """Enclose forward and backward of one micro-batch.

        The ranks average their gradients in the last one of a step only.
        """


class Objective(nn.Module, ABC):
    """A model and its loss on a batch; the loop knows nothing else.

    `turns` names the optimizers that step one after the other on each batch: one for most
    objectives, ("generator", "discriminator") for adversarial ones. The parameters of a turn are
    those of the child module of that name; in a turn, those of the other turns are frozen.

    Besides what the items hold, a batch has `item_seed` (B int64: a function of the item's
    position in the run, for `ct3dlib.training.draws`) and `step` (0-d int64: the optimizer step).
    """

    turns: tuple[str, ...] = ("model",)

    @abstractmethod
    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        """Return the scalar to minimise in this turn and detached scalars to log.

        Both are means over `weight` terms of this batch alone; the loop makes the mean over
        micro-batches and ranks. Draws that belong to an item come from its `item_seed`; others
        (dropout) from the global generator, which the loop seeds per (seed, step, rank, turn).
        """

    def weight(self, batch: Batch, turn: str) -> Tensor:
        """Return how many terms the means of `loss` run over: the number of items.

        A loss over masked positions returns their number: so numerators and counts are reduced
        over micro-batches and ranks, and neither changes the gradient.
        """
        del turn
        return batch["step"].new_tensor(self.batch_size(batch), dtype=torch.float32)

    def forward(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        """Call `loss`: the entry that DistributedDataParallel and FSDP2 wrap."""
        return self.loss(batch, turn)

    def backward(self, micro_batches: Batches, turn: str, engine: Engine) -> Metrics:
        """Add the gradient of a whole step, micro-batch by micro-batch.

        A loss that does not split into micro-batches (contrastive) overrides this.

        Returns:
            The means of loss and metrics; their mean over ranks is that of the step.
        """
        weights = torch.stack([self.weight(batch, turn) for batch in micro_batches])
        shares = weights / mean_over_ranks(weights.sum())
        means: Metrics = {}
        for batch, share in zip(micro_batches, shares, strict=True):
            with engine.micro_batch(turn, last=batch is micro_batches[-1]):
                loss, metrics = engine.forward(batch, turn)
                engine.backward(loss * share, turn)
            for name, value in {"loss": loss.detach(), **metrics}.items():
                means[name] = means.get(name, 0.0) + value.float() * share
        return means

    def validate(self, batch: Batch) -> Metrics:
        """Return scalars of one validation batch; `loss` is what `val/loss` averages."""
        loss, metrics = self.loss(batch, self.turns[0])
        return {"loss": loss.detach(), **metrics}

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return pictures to log of one validation batch: name -> C H W in [0, 1]."""
        del batch
        return {}

    def blocks(self) -> Sequence[nn.Module]:
        """Return the repeated blocks of the model, called through their `forward`.

        Activation checkpointing recomputes them one by one, FSDP2 gathers them one by one.
        """
        return ()

    def acts(self, turn: str, step: int) -> bool:
        """Return whether a turn takes this step; a turn that does not leaves all as it was."""
        del turn, step
        return True

    def rate(self, turn: str) -> float:
        """Return a turn's learning rate, relative to the training's."""
        del turn
        return 1.0

    def parameters_of(self, turn: str) -> list[nn.Parameter]:
        """Return the trainable parameters that step in this turn."""
        return [p for p in self.get_submodule(turn).parameters() if p.requires_grad]

    def layers(self, turn: str) -> Sequence[tuple[float, list[nn.Parameter]]]:
        """Return a turn's parameters in groups, each with its rate relative to the turn's."""
        return [(1.0, self.parameters_of(turn))]

    def decayed(self, turn: str) -> list[nn.Parameter]:
        """Return a turn's parameters whose weights decay: not biases and norms, of one axis."""
        return [p for p in self.parameters_of(turn) if p.ndim > 1]

    def batch_size(self, batch: Batch) -> int:
        """Return the number of items of a batch."""
        return next(len(v) for v in batch.values() if v.ndim > 0)


def masked_mean(values: Float[Tensor, "..."], masked: Bool[Tensor, "..."]) -> Tensor:
    """Return the mean of the values where `masked`; 0 where nothing is.

    The loss of an objective whose `weight` is `masked.sum()`.
    """
    return torch.where(masked, values, 0.0).sum() / masked.sum().clamp(min=1)
