"""What one training minimises."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

Batch = Mapping[str, Tensor]
Metrics = dict[str, Tensor]


class Objective(nn.Module, ABC):
    """A model and its loss on a batch; the loop knows nothing else.

    `turns` names the optimizers that step one after the other on each batch: one for most
    objectives, ("generator", "discriminator") for adversarial ones. The parameters of a turn are
    those of the child module of that name.
    """

    turns: tuple[str, ...] = ("model",)

    @abstractmethod
    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        """Return the scalar to minimise in this turn and detached scalars to log.

        `batch["step"]` is a 0-d int64 tensor with the optimizer step; random draws come from the
        global generator, which the loop seeds per (seed, step, rank).
        """

    def forward(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        """Call `loss`: the entry that DistributedDataParallel and FSDP2 wrap."""
        return self.loss(batch, turn)

    def validate(self, batch: Batch) -> Metrics:
        """Return scalars of one validation batch; `loss` is what `val/loss` averages."""
        loss, metrics = self.loss(batch, self.turns[0])
        return {"loss": loss.detach(), **metrics}

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return pictures to log of one validation batch: name -> C H W in [0, 1]."""
        del batch
        return {}

    def parameters_of(self, turn: str) -> list[nn.Parameter]:
        """Return the trainable parameters that step in this turn."""
        return [p for p in self.get_submodule(turn).parameters() if p.requires_grad]

    def batch_size(self, batch: Batch) -> int:
        """Return the number of items of a batch."""
        return next(len(v) for v in batch.values() if v.ndim > 0)


Batches = Sequence[Batch]
