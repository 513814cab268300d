"""Training of the token transformer: fill in the masked indices.

Letters: B items, D H W the token grid, N = D x H x W tokens, G digits of an index, K classes of the
largest digit, L labels.
"""

import math
from collections.abc import Sequence

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ct3dlib.config import MaskGITNetworkSpec, MaskSchedule, Shape, TransformerSpec
from ct3dlib.inference.sampler import masked_share
from ct3dlib.losses.masked import masked_cross_entropy
from ct3dlib.models.maskgit import MaskGIT, Source
from ct3dlib.training.draws import uniform
from ct3dlib.training.objective import Batch, Metrics, Objective, masked_mean

# Streams of an item's random draws.
_SHARE, _ORDER, _LABELS, _SOURCE = range(4)


def draw_masked(
    item_seed: Int[Tensor, " B"], grid: Shape, schedule: MaskSchedule
) -> Bool[Tensor, "B D H W"]:
    """Return where each item is masked: a share by the schedule's law, at least one position."""
    num_tokens = math.prod(grid)
    counts = _masked_counts(item_seed, num_tokens, schedule)
    rank = uniform(item_seed, (num_tokens,), _ORDER).argsort(dim=1).argsort(dim=1)  # B N
    return (rank < counts[:, None]).unflatten(1, grid)


class MaskGITObjective(Objective):
    """A token transformer and its loss.

    A batch holds `indices` B D H W, `labels` B L and `label_present` B; of a model with a source
    also `source_indices`, `source_labels` and `source_present`.
    """

    def __init__(self, spec: TransformerSpec, network: MaskGITNetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.model = MaskGIT(network)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        """Return the mean cross entropy of the masked indices, nats.

        Metrics are means over the same positions: `bits_per_index`, the cross entropy without
        smoothing, and `accuracy_digit_{g}`, how often digit g's likeliest class is right.
        """
        del turn
        indices = batch["indices"]
        _, d, h, w = indices.shape
        masked = draw_masked(batch["item_seed"], (d, h, w), self.spec.mask_schedule)
        logits = self.model(
            indices,
            masked,
            labels=batch["labels"],
            label_present=self._kept(
                batch["item_seed"],
                batch["label_present"],
                dropout=self.spec.label_dropout,
                stream=_LABELS,
            ),
            source=self._source(batch),
        )
        classes, possible = self.model.digits.split(indices), self.model.digits.possible
        entropies = masked_cross_entropy(
            logits, classes, masked, possible=possible, label_smoothing=self.spec.label_smoothing
        )
        metrics = _metrics(logits.detach(), classes, masked, possible=possible)
        return masked_mean(entropies, masked), metrics

    def weight(self, batch: Batch, turn: str) -> Tensor:
        """Return the number of masked positions."""
        del turn
        num_tokens = batch["indices"][0].numel()
        return _masked_counts(batch["item_seed"], num_tokens, self.spec.mask_schedule).float().sum()

    def blocks(self) -> Sequence[nn.Module]:
        """Return the transformer's blocks."""
        return list(self.model.blocks)

    def _source(self, batch: Batch) -> Source | None:
        """Return what items are translated from, where the model sees that."""
        if not self.model.spec.source:
            return None
        present = self._kept(
            batch["item_seed"],
            batch["source_present"],
            dropout=self.spec.source_dropout,
            stream=_SOURCE,
        )
        return Source(batch["source_indices"], batch["source_labels"], present)

    def _kept(
        self,
        item_seed: Int[Tensor, " B"],
        present: Bool[Tensor, " B"],
        *,
        dropout: float,
        stream: int,
    ) -> Bool[Tensor, " B"]:
        """Return which items show a condition: in training some lose it, for guidance."""
        if not self.training:
            return present
        draws = uniform(item_seed, (1,), stream).squeeze(1)
        return present & (draws >= dropout)


def _masked_counts(
    item_seed: Int[Tensor, " B"], num_tokens: int, schedule: MaskSchedule
) -> Int[Tensor, " B"]:
    share = masked_share(schedule, uniform(item_seed, (1,), _SHARE).squeeze(1))
    return (share * num_tokens).ceil().long().clamp(1, num_tokens)


def _metrics(
    logits: Float[Tensor, "B D H W G K"],
    classes: Int[Tensor, "B D H W G"],
    masked: Bool[Tensor, "B D H W"],
    *,
    possible: Bool[Tensor, "G K"],
) -> Metrics:
    bits = masked_cross_entropy(logits, classes, masked, possible=possible) / math.log(2)
    right = (logits.argmax(-1) == classes).float()
    accuracies = {
        f"accuracy_digit_{digit}": masked_mean(right[..., digit], masked)
        for digit in range(right.shape[-1])
    }
    return {"bits_per_index": masked_mean(bits, masked), **accuracies}
