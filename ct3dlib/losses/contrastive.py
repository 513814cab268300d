"""Which of many right vectors belong to a left one (van den Oord et al., arXiv:1807.03748).

Letters: n vectors on the left, m on the right, E their length.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def contrastive_loss(
    left: Float[Tensor, "n E"],
    right: Float[Tensor, "m E"],
    *,
    positives: Bool[Tensor, "n m"],
    scale: Float[Tensor, "*one"],
) -> Float[Tensor, ""]:
    """Return the mean cross entropy of the left rows over all on the right, nats.

    One direction of Radford et al., arXiv:2103.00020, figure 3; the mean of both is the loss of
    pairs. A row's target is shared evenly by its positives (Khosla et al., arXiv:2004.11362,
    equation 2), so with several of them the least loss is the logarithm of their number.

    Where ranks hold the left rows in equal parts and all of the right ones, the mean of their
    losses is that of the whole batch. Unrelated vectors cost about ln m.

    Args:
        left: Of length 1.
        right: Of length 1.
        positives: Which belong together; each row has one at least.
        scale: Of the cosines: one number, 1 / temperature.
    """
    return cross_entropies(similarities(left, right, scale), positives).mean()


def similarities(
    left: Float[Tensor, "*rows n E"],
    right: Float[Tensor, "*rows m E"],
    scale: Float[Tensor, "*one"],
) -> Float[Tensor, "*rows n m"]:
    """Return scaled dot products, in float32 at least even where autocast would not."""
    with torch.autocast(left.device.type, enabled=False):
        dtype = torch.promote_types(left.dtype, torch.float32)
        return scale.to(dtype) * (left.to(dtype) @ right.to(dtype).mT)


def cross_entropies(
    logits: Float[Tensor, "*rows m"], positives: Bool[Tensor, "*rows m"]
) -> Float[Tensor, "*rows"]:
    """Return the cross entropy of each row with targets that its positives share evenly.

    A row without a positive costs 0. A logit may be -inf where there is no positive, but not all
    of a row.
    """
    likely = torch.where(positives, logits.log_softmax(-1), 0.0).sum(-1)
    return -likely / positives.sum(-1).clamp_min(1)
