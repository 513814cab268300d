"""Group normalization of single slices, plain and conditional.

Letters: B batch, C channels, D H W positions, K channels of the condition.
Statistics span one slice, so nothing leaks between slices and a causal network stays causal.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class SliceNorm(nn.GroupNorm):
    """Normalise groups of channels over H and W, slice by slice (Wu & He, arXiv:1803.08494)."""

    def forward(self, input: Float[Tensor, "B C D H W"]) -> Float[Tensor, "B C D H W"]:  # noqa: A002
        """Return the normalised positions; in channels-last memory no value is moved for it."""
        batch, _, slices = input.shape[:3]
        flat = input.transpose(1, 2).flatten(0, 1)  # B*D C H W
        flat = F.group_norm(flat, self.num_groups, self.weight, self.bias, self.eps)
        return flat.unflatten(0, (batch, slices)).transpose(1, 2)


class ConditionalSliceNorm(nn.Module):
    """Slice normalization whose scale and shift are read from a condition at each position.

    y = (1 + scale(k)) * norm(x) + shift(k), scale and shift affine in k; as the spatially adaptive
    normalization of Park et al., arXiv:1903.07291, eq. 1.
    """

    def __init__(self, num_groups: int, channels: int, *, condition_channels: int) -> None:
        super().__init__()
        self.norm = SliceNorm(num_groups, channels, affine=False)
        self.modulation = nn.Conv3d(condition_channels, 2 * channels, kernel_size=1)

    def forward(
        self, x: Float[Tensor, "B C D H W"], condition: Float[Tensor, "B K D H W"]
    ) -> Float[Tensor, "B C D H W"]:
        """Return `x` normalised, then scaled and shifted as the condition says."""
        scale, shift = self.modulation(condition).chunk(2, dim=1)
        return self.norm(x) * (1 + scale) + shift


class ChannelLayerNorm(nn.LayerNorm):
    """Normalise the channels of each position on its own (Ba et al., arXiv:1607.06450)."""

    def forward(self, input: Float[Tensor, "B C *grid"]) -> Float[Tensor, "B C *grid"]:  # noqa: A002
        """Return the normalised positions; in channels-last memory no value is moved for it."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class ChannelRMSNorm(nn.RMSNorm):
    """Scale the channels of each position to a mean square of 1 (arXiv:1910.07467, eq. 4)."""

    def forward(self, x: Float[Tensor, "B C *grid"]) -> Float[Tensor, "B C *grid"]:
        """Return the scaled positions; in channels-last memory no value is moved for it."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)
