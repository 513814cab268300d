"""The loss of masked token modelling.

Letters: B items, D H W the token grid, G digits of an index, K classes of the largest digit.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def masked_cross_entropy(
    logits: Float[Tensor, "B D H W G K"],
    classes: Int[Tensor, "B D H W G"],
    masked: Bool[Tensor, "B D H W"],
    *,
    possible: Bool[Tensor, "G K"] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, "B D H W"]:
    """Return the cross entropy of each masked index, nats; 0 where the index was visible.

    The digits of an index are predicted independently, so their cross entropies add up. The mean
    over masked positions is left to the caller, who knows the other ranks (Chang et al.,
    arXiv:2202.04200, equation 2).

    Args:
        logits: Unnormalised log-probabilities.
        classes: The true class of each digit.
        masked: Positions that count.
        possible: The classes that each digit has; None: all.
        label_smoothing: Share of the target spread evenly over them.
    """
    logs = logits.float().log_softmax(-1)
    entropies = -logs.gather(-1, classes.unsqueeze(-1)).squeeze(-1)  # B D H W G
    if label_smoothing:
        if possible is None:
            possible = logits.new_ones(logits.shape[-2:], dtype=torch.bool)
        spread = -logs.masked_fill(~possible, 0.0).sum(-1) / possible.sum(-1)
        entropies = torch.lerp(entropies, spread, label_smoothing)
    return torch.where(masked, entropies.sum(-1), 0.0)
