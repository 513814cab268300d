"""How far a reconstruction is from its original."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def absolute_error(
    reconstructed: Float[Tensor, "B 1 D H W"], volumes: Float[Tensor, "B 1 D H W"]
) -> Float[Tensor, ""]:
    """Return the mean absolute error, in the units of the volumes; computed in float32."""
    return F.l1_loss(reconstructed.float(), volumes.float())


def squared_error(
    reconstructed: Float[Tensor, "B 1 D H W"], volumes: Float[Tensor, "B 1 D H W"]
) -> Float[Tensor, ""]:
    """Return the mean squared error, in squared units of the volumes; computed in float32."""
    return F.mse_loss(reconstructed.float(), volumes.float())
