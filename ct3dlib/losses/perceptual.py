"""How far two volumes are apart as a frozen network sees them.

Letters: N slices or volumes; channels come second.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

# Features shorter than this tell nothing; without it their gradient would be without bound.
_SMALLEST = 1e-3


def perceptual_loss(
    features: Sequence[Float[Tensor, "N _ ..."]], targets: Sequence[Float[Tensor, "N _ ..."]]
) -> Float[Tensor, ""]:
    """Return the mean squared distance of the directions of two sets of features.

    Channels are scaled to unit length at each position; their squared distance, in [0, 4], is
    averaged over positions, then over levels (Zhang et al., arXiv:1801.03924, eq. 1 with all
    weights 1, there summed over levels). Computed in float32.

    Args:
        features: Of the reconstruction, one tensor a level; the gradient reaches these alone.
        targets: Of the original, of the same shapes.
    """
    distances = [
        (_direction(found) - _direction(wanted.detach())).square().sum(dim=1).mean()
        for found, wanted in zip(features, targets, strict=True)
    ]
    return torch.stack(distances).mean()


def _direction(features: Float[Tensor, "N _ ..."]) -> Float[Tensor, "N _ ..."]:
    """Return features scaled to unit length over their channels; 0 where all of them are."""
    features = features.float()
    length = (features.square().sum(dim=1, keepdim=True) + _SMALLEST**2).sqrt()
    return features / length
