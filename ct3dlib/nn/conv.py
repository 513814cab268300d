"""Causal 3D convolutions: an output slice depends on its own and earlier slices only.

Letters: B batch, C channels, D H W positions; t is the stride along D.

A sequence may go through in chunks along D: with a `History` that all its chunks share, the layers
give what they give for the sequence in one piece, and memory is that of a chunk.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ct3dlib.nn.norm import SliceNorm

KERNEL = 3


@dataclass(eq=False)
class History:
    """What is remembered between the chunks of one sequence, made anew for each pass through it.

    Layers keep nothing themselves, so sequences that are worked off in turns or in several threads
    never meet.

    Args:
        first: Whether the chunk that goes through is the first one.
        inputs: The last 3 - t input slices of each convolution, B C 3-t H W.
    """

    first: bool = True
    inputs: dict[nn.Module, Tensor] = field(default_factory=dict)


class CausalConv3d(nn.Conv3d):
    """Convolve with a 3 x 3 x 3 kernel that looks back along D and around along H and W.

    Zeros stand before the first slice and around each slice. With stride t along D, 1 + t*n slices
    become 1 + n; as a chunk behind others, t*n slices become n.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: tuple[int, int, int] = (1, 1, 1),
        bias: bool = True,
    ) -> None:
        around = KERNEL // 2
        super().__init__(
            in_channels,
            out_channels,
            KERNEL,
            stride=stride,
            padding=(0, around, around),
            bias=bias,
        )

    def forward(
        self,
        input: Float[Tensor, "B C D H W"],  # noqa: A002
        history: History | None = None,
    ) -> Float[Tensor, "B C2 D2 H2 W2"]:
        """Return the convolved positions."""
        if history is None or history.first:
            seen = F.pad(input, (0, 0, 0, 0, KERNEL - 1, 0))
        else:
            seen = torch.cat((history.inputs[self], input), dim=2)
        if history is not None:
            # A copy: a view would keep the whole chunk alive.
            history.inputs[self] = seen[:, :, self.stride[0] - KERNEL :].clone()
        return super().forward(seen)


class CausalSequential(nn.Sequential):
    """Layers one after the other; those that look back are given the history."""

    def forward(
        self,
        input: Float[Tensor, "B C D H W"],  # noqa: A002
        history: History | None = None,
    ) -> Float[Tensor, "B C2 D2 H2 W2"]:
        """Return what the last layer gives."""
        for layer in self:
            looks_back = isinstance(layer, CausalConv3d | CausalSequential | ResBlock)
            input = layer(input, history) if looks_back else layer(input)  # noqa: A001
        return input


class ResBlock(nn.Module):
    """Add two normalised causal convolutions to the input (He et al., arXiv:1603.05027)."""

    def __init__(self, in_channels: int, out_channels: int, *, num_groups: int) -> None:
        super().__init__()
        self.residual = CausalSequential(
            SliceNorm(num_groups, in_channels),
            nn.SiLU(),
            CausalConv3d(in_channels, out_channels, bias=False),
            SliceNorm(num_groups, out_channels),
            nn.SiLU(),
            CausalConv3d(out_channels, out_channels, bias=False),
        )
        self.skip = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv3d(in_channels, out_channels, kernel_size=1, bias=False)
        )

    def forward(
        self, x: Float[Tensor, "B C D H W"], history: History | None = None
    ) -> Float[Tensor, "B C2 D H W"]:
        """Return skip(x) + residual(x)."""
        return self.skip(x) + self.residual(x, history)


class Downsample(CausalConv3d):
    """Halve H and W, and D too (1 + 2n slices to 1 + n) if `temporal`; channels stay."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__(channels, channels, stride=(2 if temporal else 1, 2, 2))


class Upsample(nn.Module):
    """Double H and W, and D too (1 + n slices to 1 + 2n) if `temporal`; channels stay.

    A chunk behind others has no first slice: n slices become 2n.
    """

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.factors = (2 if temporal else 1, 2, 2)
        self.conv = CausalConv3d(channels, channels * self.factors[0] * 4)

    def forward(
        self, x: Float[Tensor, "B C D H W"], history: History | None = None
    ) -> Float[Tensor, "B C D2 2*H 2*W"]:
        """Return the finer grid, without what would lie before the first slice."""
        return self._cut(depth_to_space(self.conv(x, history), self.factors), history)

    def repeat(
        self, condition: Float[Tensor, "B C D H W"], history: History | None = None
    ) -> Float[Tensor, "B C D2 2*H 2*W"]:
        """Return a condition repeated onto the same finer grid."""
        scale = tuple(float(factor) for factor in self.factors)
        return self._cut(F.interpolate(condition, scale_factor=scale, mode="nearest"), history)

    def _cut(self, finer: Tensor, history: History | None) -> Tensor:
        """Return a finer grid without what would lie before the sequence's first slice."""
        return finer[:, :, self.factors[0] - 1 :] if history is None or history.first else finer


def depth_to_space(
    x: Float[Tensor, "B C D H W"], factors: tuple[int, int, int]
) -> Float[Tensor, "B C2 D2 H2 W2"]:
    """Spread channels over a grid finer by `factors`.

    Channels are read as (factors, C2), C2 fastest: in channels-last memory that is one copy.
    """
    blocks = x.permute(0, 2, 3, 4, 1).unflatten(4, (*factors, -1))  # B D H W t h w C2
    spread = blocks.permute(0, 1, 4, 2, 5, 3, 6, 7)  # B D t H h W w C2
    return spread.flatten(1, 2).flatten(2, 3).flatten(3, 4).permute(0, 4, 1, 2, 3)
