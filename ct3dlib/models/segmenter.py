"""A volume encoder with a convolutional decoder: the class of every voxel.

After UNETR (Hatamizadeh et al., arXiv:2103.10504): tokens after blocks that are spread evenly over
the encoder enter the decoder at levels ever finer, the volume itself at the finest. Levels grow by
equal factors from the grid of patches to the voxels, so any patch will do.

Letters: B volumes, D H W voxels, d h w patches, C channels, K classes.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ct3dlib.config import SegmenterNetworkSpec, Shape, VolumeEncoderNetworkSpec
from ct3dlib.models.volume_encoder import VolumeEncoder

_STAGES = 4
_GROUPS = 8


class Segmenter(nn.Module):
    """Logits of each voxel's class; class 0 is the background."""

    def __init__(self, spec: SegmenterNetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = VolumeEncoder(spec.encoder)
        width = spec.encoder.encoder.hidden_size
        self.after = spread(spec.encoder.encoder.num_layers)
        self.sizes = level_sizes(spec.encoder, len(self.after))
        channels = [spec.filters * 2**level for level in reversed(range(len(self.after)))]
        self.deepest = _block(width, channels[0])
        self.stem = _convolution(1, spec.filters)
        self.skips = nn.ModuleList(nn.Conv3d(width, c, kernel_size=1) for c in channels[:-1])
        coarse = [channels[0], *channels[:-1]]
        self.reduce = nn.ModuleList(
            nn.Conv3d(a, b, kernel_size=1) for a, b in zip(coarse, channels, strict=True)
        )
        self.merge = nn.ModuleList(_block(2 * c, c) for c in channels[:-1])
        # Most of the time goes to the voxels themselves, so there one convolution must do.
        self.merge.append(_convolution(2 * spec.filters, spec.filters))
        self.classify = nn.Conv3d(spec.filters, spec.num_classes, kernel_size=1)

    def forward(self, volumes: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B K D H W"]:
        """Return the logits of volumes in the encoder's range."""
        *stages, last = self.encoder.stages(volumes, self.after)
        x = self.deepest(last)
        skips = [skip(stage) for skip, stage in zip(self.skips, reversed(stages), strict=True)]
        for reduce, merge, size, skip in zip(
            self.reduce, self.merge, self.sizes, [*skips, None], strict=True
        ):
            x = _resized(reduce(x), size)
            if skip is None:
                d, h, w = volumes.shape[2:]  # what filled the last patches is no part of it
                x = merge(torch.cat((x[..., :d, :h, :w], self.stem(volumes)), dim=1))
            else:
                x = merge(torch.cat((x, _resized(skip, size)), dim=1))
        return self.classify(x)


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return a convolution, normalised in groups of channels over the whole volume."""
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.GroupNorm(math.gcd(_GROUPS, out_channels), out_channels),
        nn.SiLU(),
    )


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return two convolutions, one after the other."""
    return nn.Sequential(
        _convolution(in_channels, out_channels), _convolution(out_channels, out_channels)
    )


def spread(num_layers: int) -> tuple[int, ...]:
    """Return the numbers of at most four blocks, from 1, evenly spread; the last is one of them."""
    return tuple(sorted({math.ceil(num_layers * i / _STAGES) for i in range(1, _STAGES + 1)}))


def level_sizes(encoder: VolumeEncoderNetworkSpec, count: int) -> list[Shape]:
    """Return the sizes of a number of levels above the grid of patches, the last one in voxels.

    Each side grows by the same factor from level to level, rounded: with patches of 16 and four
    levels it doubles. Where volumes are padded to whole patches, so is the last level.
    """
    sides = list(zip(encoder.grid, encoder.patch_size, strict=True))
    sizes: list[Shape] = []
    for level in range(1, count + 1):
        d, h, w = (round(n * patch ** (level / count)) for n, patch in sides)
        sizes.append((d, h, w))
    return sizes


def _resized(x: Float[Tensor, "B C _ _ _"], size: Shape) -> Float[Tensor, "B C _ _ _"]:
    """Return features on another grid, whose outer edges coincide."""
    return F.interpolate(x, size=size, mode="trilinear", align_corners=False)
