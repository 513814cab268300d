"""The loss of masked patches.

Letters: B volumes, M masked patches, P voxels of a patch.
"""

from jaxtyping import Float
from torch import Tensor

_SMALLEST_VARIANCE = 1e-6


def masked_patch_loss(
    predicted: Float[Tensor, "B M P"], patches: Float[Tensor, "B M P"], *, norm_pix: bool
) -> Float[Tensor, " B"]:
    """Return the mean squared error of each volume's masked patches.

    Args:
        predicted: Of the decoder.
        patches: What they are.
        norm_pix: Compare with each patch's own mean taken off and its deviation divided out (He et
            al., arXiv:2111.06377, section 3).
    """
    target = normalised(patches) if norm_pix else patches
    return (predicted.float() - target.float()).square().mean(dim=(1, 2))


def normalised(patches: Float[Tensor, "B M P"]) -> Float[Tensor, "B M P"]:
    """Return patches of mean 0 and variance 1; those without contrast are 0."""
    mean = patches.mean(dim=-1, keepdim=True)
    return (patches - mean) / (patches.var(dim=-1, keepdim=True) + _SMALLEST_VARIANCE).sqrt()
