"""The loss of masked token modelling.

Letters: B items, D H W the token grid, G groups of an index, K classes of a group.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def masked_cross_entropy(
    logits: Float[Tensor, "B D H W G K"],
    classes: Int[Tensor, "B D H W G"],
    masked: Bool[Tensor, "B D H W"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, "B D H W"]:
    """Return the cross entropy of each masked index, nats; 0 where the index was visible.

    The groups of an index are predicted independently, so their cross entropies add up. The mean
    over masked positions is left to the caller, who knows the other ranks (Chang et al.,
    arXiv:2202.04200, equation 2).

    Args:
        logits: Unnormalised log-probabilities.
        classes: The true class of each group.
        masked: Positions that count.
        label_smoothing: Share of the target spread evenly over the classes.
    """
    entropies = F.cross_entropy(
        logits.flatten(0, -2),
        classes.flatten(),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return torch.where(masked, entropies.view(classes.shape).sum(-1), 0.0)
