"""A discriminator that judges patches of volumes or of slices.

Letters: B batch, D H W voxels, C channels, d h w the grid of logits, N volumes or slices.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ct3dlib.config import DiscriminatorSpec

_KERNEL = 4
_SHORTEST = 4
_WIDEST = 8
_GROUPS = 8


@dataclass(frozen=True)
class Judged:
    """What a discriminator says of volumes.

    Args:
        logits: One per patch, high where it passes for real; in 2D the patches of each slice.
        features: Of each layer but the last, N C d h w; in 2D a slice is a volume of its own.
    """

    logits: Float[Tensor, "B d h w"]
    features: tuple[Tensor, ...]


class PatchConv(nn.Conv3d):
    """Convolve, and halve each axis that has at least 4 positions then; others keep their length.

    So slabs of few slices pass through as many layers as cubes do.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: tuple[int, int, int],
        halve: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias=bias)
        self.halve = halve

    def forward(self, input: Float[Tensor, "N C D H W"]) -> Float[Tensor, "N C2 d h w"]:  # noqa: A002
        """Return the convolved positions, zeros around."""
        lengths = input.shape[2:]
        strides = [2 if self.halve and n // 2 >= _SHORTEST else 1 for n in lengths]
        around: list[int] = []  # from the last axis to the first, as `pad` wants it
        for kernel, stride in zip(reversed(self.kernel_size), reversed(strides), strict=True):
            before = (kernel - stride) // 2
            around += [before, kernel - stride - before]
        return F.conv3d(F.pad(input, around), self.weight, self.bias, strides)


class PatchDiscriminator(nn.Module):
    """Volumes of any size B 1 D H W to a grid of logits (Isola et al., arXiv:1611.07004).

    Kernels of 4, LeakyReLU 0.2, `num_layers` layers that halve the grid and one that does not;
    channels double up to 8 times the first. Statistics of the norm span one volume or slice, so a
    batch of 1 trains as any other.

    Args:
        spec: Widths and norm.
        spatial_dims: 2 judges every slice on its own, 3 volumes.
    """

    def __init__(self, spec: DiscriminatorSpec, spatial_dims: Literal[2, 3]) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        kernel = (1 if spatial_dims == 2 else _KERNEL, _KERNEL, _KERNEL)
        layers, before = [], 1
        for number in range(spec.num_layers + 1):
            first, last = number == 0, number == spec.num_layers
            width = spec.filters * min(2**number, _WIDEST)
            conv = PatchConv(before, width, kernel_size=kernel, halve=not last, bias=first)
            norm = nn.Identity() if first else _norm(spec, width)
            layers.append(nn.Sequential(conv, norm, nn.LeakyReLU(0.2)))
            before = width
        self.layers = nn.ModuleList(layers)
        self.output = PatchConv(before, 1, kernel_size=kernel)

    def forward(self, volumes: Float[Tensor, "B 1 D H W"]) -> Judged:
        """Return logits and features."""
        batch = len(volumes)
        if self.spatial_dims == 2:
            volumes = volumes.transpose(1, 2).flatten(0, 1).unsqueeze(1)  # N 1 1 H W
        features, x = [], volumes
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        logits = self.output(x).squeeze(1)  # N d h w
        if self.spatial_dims == 2:
            logits = logits.squeeze(1).unflatten(0, (batch, -1))
        return Judged(logits, tuple(features))


def _norm(spec: DiscriminatorSpec, width: int) -> nn.Module:
    """Return the normalization of a layer, with a learned scale and shift."""
    match spec.norm:
        case "instance":
            return nn.InstanceNorm3d(width, affine=True)
        case "group":
            return nn.GroupNorm(math.gcd(_GROUPS, width), width)
