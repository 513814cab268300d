"""The terms of an autoencoder's loss that compare voxels."""

from jaxtyping import Float
from torch import Tensor

from ct3dlib.config import TokenizerLossSpec
from ct3dlib.losses.reconstruction import absolute_error, squared_error
from ct3dlib.losses.structural import (
    eagle_loss,
    focal_frequency_loss,
    gradient_loss,
    ssim_loss,
)
from ct3dlib.training.objective import Metrics


def voxel_terms(
    reconstructed: Float[Tensor, "B 1 D H W"],
    volumes: Float[Tensor, "B 1 D H W"],
    weights: TokenizerLossSpec,
    *,
    data_range: float,
) -> tuple[Float[Tensor, ""], Metrics]:
    """Return the weighted sum of the terms, and the terms; of weight 0 only l1 and l2 are made.

    Args:
        reconstructed: From the model.
        volumes: What it was given.
        weights: Of the terms.
        data_range: Width of the recipe's range.
    """
    terms: Metrics = {
        "l1": absolute_error(reconstructed, volumes),
        "l2": squared_error(reconstructed, volumes),
    }
    if weights.ssim:
        terms["ssim"] = ssim_loss(reconstructed, volumes, data_range=data_range)
    if weights.gradient:
        terms["gradient"] = gradient_loss(reconstructed, volumes)
    if weights.eagle:
        terms["eagle"] = eagle_loss(reconstructed, volumes)
    if weights.focal_frequency:
        terms["focal_frequency"] = focal_frequency_loss(reconstructed, volumes)
    total = volumes.new_zeros((), dtype=terms["l1"].dtype)
    for name, term in terms.items():
        total = total + getattr(weights, name) * term
    return total, terms
