"""One level of the 3D Haar wavelet transform, scaled so that the low band is a mean.

Letters: B batch, C channels, K = 8 C bands, D H W voxels. Bands are numbered in binary by
(D, H, W), so band 0 is the mean of a 2 x 2 x 2 block and band 1 its high pass along W.
"""

import torch
from jaxtyping import Float
from torch import Tensor

BANDS = 8


def haar(volumes: Float[Tensor, "B C D H W"]) -> Float[Tensor, "B 8*C D//2 H//2 W//2"]:
    """Return the eight bands of every 2 x 2 x 2 block.

    A band is 1/8 of the block's sum, with the sign of the second voxel turned along each axis where
    its bit is set (Haar, 1910, up to the scale): a constant c gives [c, 0, 0, 0, 0, 0, 0, 0].

    Raises:
        ValueError: An axis has an odd length.
    """
    if any(length % 2 for length in volumes.shape[2:]):
        raise ValueError(f"the Haar transform needs even lengths, not {tuple(volumes.shape[2:])}")
    bands = volumes
    for axis in (4, 3, 2):
        first, second = bands.unflatten(axis, (-1, 2)).unbind(axis + 1)
        bands = torch.cat((first + second, first - second), dim=1) * 0.5
    return bands


def inverse_haar(bands: Float[Tensor, "B K D H W"]) -> Float[Tensor, "B K//8 2*D 2*H 2*W"]:
    """Return the volumes whose `haar` bands these are.

    Raises:
        ValueError: The number of channels is not a multiple of 8.
    """
    if bands.shape[1] % BANDS:
        raise ValueError(
            f"the inverse Haar transform needs 8 bands a channel, not {bands.shape[1]}"
        )
    volumes = bands
    for axis in (2, 3, 4):
        low, high = volumes.chunk(2, dim=1)
        volumes = torch.stack((low + high, low - high), dim=axis + 1).flatten(axis, axis + 1)
    return volumes
