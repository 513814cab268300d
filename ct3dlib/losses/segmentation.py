"""How far soft masks are from true ones: their overlap, and the voxels one by one.

Letters: B volumes, D H W voxels, K classes, class 0 the background.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

_SMOOTHING = 1e-5


def soft_dice_loss(
    logits: Float[Tensor, "B K D H W"], mask: Integer[Tensor, "B 1 D H W"]
) -> Float[Tensor, " B"]:
    """Return 1 - the soft Dice of each volume, the mean over the classes that its mask holds.

    2 sum(p y) / (sum(p) + sum(y)), p the softmax of the logits, after Milletari et al.,
    arXiv:1606.04797, without squares. The background does not count, nor does a class that a mask
    does not hold: cross entropy is what keeps it out. Without any class the loss is 0.
    """
    probabilities = logits.float().softmax(1)
    held = _one_hot(mask, logits.shape[1])
    inside = torch.where(held, probabilities, 0.0).sum((2, 3, 4))  # B K
    there = held.sum((2, 3, 4))
    whole = probabilities.sum((2, 3, 4)) + there
    lost = 1 - (2 * inside + _SMOOTHING) / (whole + _SMOOTHING)
    counted = (there > 0)[:, 1:]
    return torch.where(counted, lost[:, 1:], 0.0).sum(1) / counted.sum(1).clamp_min(1)


def balanced_cross_entropy(
    logits: Float[Tensor, "B K D H W"], mask: Integer[Tensor, "B 1 D H W"]
) -> Float[Tensor, " B"]:
    """Return the cross entropy of each volume, in which a voxel of a large class weighs less.

    A class weighs as the square root of its voxels: half-way between equal voxels, where small
    organs are never told, and equal classes, where they are told everywhere.
    """
    classes = mask.flatten(1).long()
    entropy = F.cross_entropy(logits.float().flatten(2), classes, reduction="none")
    voxels = torch.zeros_like(entropy[:, : logits.shape[1]])
    voxels = voxels.scatter_add_(1, classes, torch.ones_like(entropy))
    weights = voxels.rsqrt().gather(1, classes)
    return (weights * entropy).sum(1) / weights.sum(1)


def _one_hot(mask: Integer[Tensor, "B 1 D H W"], count: int) -> Bool[Tensor, "B K D H W"]:
    """Return which voxels hold each class; booleans take an eighth of numbers' memory."""
    return mask == torch.arange(count, device=mask.device).view(1, -1, 1, 1, 1)
