"""Finer grids out of channels: sub-pixel convolution by any factor along each axis.

Letters: B batch, C channels, D H W positions; D2 H2 W2 the finer grid.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ct3dlib.config import Shape
from ct3dlib.nn.conv import depth_to_space


class SubpixelUpsample(nn.Module):
    """Make the channels of all sub-positions by one convolution and spread them over a finer grid.

    Shi et al. (arXiv:1609.05158, eq. 4), with factors that may differ between the axes. All
    sub-positions start from the same kernel, as the nearest neighbour does: kernels that start
    apart leave a checkerboard (Aitken et al., arXiv:1707.02937, section 3).

    Args:
        channels: Of the input and the output.
        factors: Along (D, H, W).
        kernel_size: Along (D, H, W), odd.
    """

    def __init__(self, channels: int, *, factors: Shape, kernel_size: Shape) -> None:
        super().__init__()
        self.factors = factors
        copies = math.prod(factors)
        self.conv = nn.Conv3d(channels, channels * copies, kernel_size, padding="same")
        with torch.no_grad():
            for values in self.conv.parameters():
                # `depth_to_space` reads the channels of one sub-position after those of another.
                values.copy_(torch.cat([values[:channels]] * copies))

    def forward(self, x: Float[Tensor, "B C D H W"]) -> Float[Tensor, "B C D2 H2 W2"]:
        """Return the finer grid."""
        return depth_to_space(self.conv(x), self.factors)
