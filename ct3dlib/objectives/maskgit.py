"""Training of the token transformer: fill in the masked indices.

Letters: B items, D H W the token grid, N = D x H x W tokens, G digits of an index, K classes of the
largest digit, L labels, E numbers of a text's embedding.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ct3dlib.config import MaskGITNetworkSpec, MaskSchedule, TransformerSpec
from ct3dlib.inference.sampler import masked_share
from ct3dlib.losses.masked import masked_cross_entropy
from ct3dlib.models.maskgit import Conditions, MaskGIT, Source, Text
from ct3dlib.training.draws import uniform
from ct3dlib.training.objective import Batch, Metrics, Objective, masked_mean

# Streams of an item's random draws.
_SHARE, _ORDER, _LABELS, _SOURCE, _TEXT, _CONTEXT = range(6)


def draw_masked(
    item_seed: Int[Tensor, " B"], maskable: Bool[Tensor, "B D H W"], schedule: MaskSchedule
) -> Bool[Tensor, "B D H W"]:
    """Return where each item is masked: a share by the schedule's law, at least one position.

    Args:
        item_seed: Of each item.
        maskable: Positions that may be masked; the share is one of these, at least one an item.
        schedule: Law of the share.
    """
    eligible = maskable.flatten(1)
    counts = _masked_counts(item_seed, eligible.sum(1), schedule)
    draws = uniform(item_seed, (eligible.shape[1],), _ORDER).masked_fill(~eligible, 2.0)  # B N
    rank = draws.argsort(dim=1).argsort(dim=1)
    return (rank < counts[:, None]).view_as(maskable)


class MaskGITObjective(Objective):
    """A token transformer and its loss.

    A batch holds `indices` B D H W, `labels` B L and `label_present` B; of a model with a source
    also `source_indices`, `source_labels` and `source_present`, of one that reads `text` B E and
    `text_present`, of one that sees slabs their first token slice, `start` B.
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
        masked = draw_masked(batch["item_seed"], self._maskable(batch), self.spec.mask_schedule)
        logits = self.model(indices, masked, self._conditions(batch), start=batch.get("start"))
        classes, possible = self.model.digits.split(indices), self.model.digits.possible
        entropies = masked_cross_entropy(
            logits, classes, masked, possible=possible, label_smoothing=self.spec.label_smoothing
        )
        metrics = _metrics(logits.detach(), classes, masked, possible=possible)
        return masked_mean(entropies, masked), metrics

    def weight(self, batch: Batch, turn: str) -> Tensor:
        """Return the number of masked positions."""
        del turn
        num_maskable = self._maskable(batch).flatten(1).sum(1)
        counts = _masked_counts(batch["item_seed"], num_maskable, self.spec.mask_schedule)
        return counts.float().sum()

    def blocks(self) -> Sequence[nn.Module]:
        """Return the transformer's blocks."""
        return list(self.model.blocks)

    def _maskable(self, batch: Batch) -> Bool[Tensor, "B D H W"]:
        """Return which positions may be masked: not the slices that show a slab's neighbour.

        A slab at the start of its volume has no neighbour; others lose theirs now and then.
        """
        maskable = torch.ones_like(batch["indices"], dtype=torch.bool)
        slab = self.model.spec.slab
        if slab is None:
            return maskable
        shown = self._kept(
            batch["item_seed"],
            batch["start"] > 0,
            dropout=slab.context_dropout,
            stream=_CONTEXT,
        )
        maskable[:, : slab.context] = ~shown[:, None, None, None]
        return maskable

    def _conditions(self, batch: Batch) -> Conditions:
        """Return what the model is told of each item."""
        seeds, source, text = batch["item_seed"], None, None
        labelled = self._kept(
            seeds, batch["label_present"], dropout=self.spec.label_dropout, stream=_LABELS
        )
        if self.model.spec.source:
            present = self._kept(
                seeds, batch["source_present"], dropout=self.spec.source_dropout, stream=_SOURCE
            )
            source = Source(batch["source_indices"], batch["source_labels"], present)
        if self.spec.text is not None:
            present = self._kept(
                seeds, batch["text_present"], dropout=self.spec.text.dropout, stream=_TEXT
            )
            text = Text(batch["text"], present)
        return Conditions(batch["labels"], labelled, source, text)

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
    item_seed: Int[Tensor, " B"], num_maskable: Int[Tensor, " B"], schedule: MaskSchedule
) -> Int[Tensor, " B"]:
    share = masked_share(schedule, uniform(item_seed, (1,), _SHARE).squeeze(1))
    return (share * num_maskable).ceil().long().clamp(min=1).minimum(num_maskable)


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
