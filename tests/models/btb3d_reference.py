"""BTB3D's tokenizer from its description: weights under its own names, and what it computes.

Written from the maths, slice by slice and window by window; nothing is shared with the library.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

GROUPS, BANDS = 32, 8

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Geometry:
    filters: int
    num_res_blocks: int
    multipliers: tuple[int, ...]
    temporal: tuple[bool, ...]
    bits: int

    @property
    def widths(self) -> list[int]:
        return [self.filters * m for m in self.multipliers]


class _Drawn(Weights):
    """Random weights of modules under their names."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, name: str, *shape: int, fan_in: int) -> None:
        self[name] = torch.randn(shape, generator=self.generator) * fan_in**-0.5

    def conv(self, name: str, before: int, after: int, kernel: int = 3, bias: bool = True) -> None:
        fan_in = before * kernel**3
        self.draw(f"{name}.conv.weight", after, before, kernel, kernel, kernel, fan_in=fan_in)
        if bias:
            self.draw(f"{name}.conv.bias", after, fan_in=4)

    def norm(self, name: str, width: int) -> None:
        self.draw(f"{name}.norm_fn.weight", width, fan_in=1)
        self.draw(f"{name}.norm_fn.bias", width, fan_in=4)

    def block(self, name: str, before: int, after: int) -> None:
        self.norm(f"{name}.norm_0", before)
        self.conv(f"{name}.conv_0", before, after, bias=False)
        self.norm(f"{name}.norm_1", after)
        self.conv(f"{name}.conv_1", after, after, bias=False)
        if before != after:
            self.conv(f"{name}.conv_shortcut", before, after, kernel=1, bias=False)

    def condition(self, name: str, bits: int, width: int) -> None:
        for half in ("gamma", "beta"):
            self.draw(f"{name}.{half}.weight", width, bits, fan_in=4 * bits)
            self.draw(f"{name}.{half}.bias", width, fan_in=16)


def random_weights(geometry: Geometry, seed: int = 0) -> Weights:
    """Return a state_dict of the tokenizer."""
    drawn = _Drawn(seed)
    _draw_encoder(drawn, geometry)
    _draw_decoder(drawn, geometry)
    drawn["quantize.mask"] = 2 ** torch.arange(geometry.bits - 1, -1, -1)
    return dict(drawn)


def _draw_encoder(drawn: _Drawn, geometry: Geometry) -> None:
    widths, last = geometry.widths, geometry.widths[-1]
    drawn.conv("encoder.conv_first", BANDS, widths[0])
    before = widths[0]
    for i, width in enumerate(widths):
        for j in range(geometry.num_res_blocks):
            name = f"res_block_{i if j == 0 else 0}_{j}"
            drawn.block(f"encoder.res_blocks.res_block_{i}.{name}", before, width)
            before = width
        if i < len(widths) - 1:
            drawn.conv(f"encoder.conv_downsample_blocks.conv_downsample_{i}", width, width)
    for j in range(geometry.num_res_blocks):
        drawn.block(f"encoder.res_blocks.res_block_final.res_block_final_{j}", last, last)
    drawn.norm("encoder.final_norm", last)
    drawn.conv("encoder.conv_last", last, geometry.bits, kernel=1)


def _draw_decoder(drawn: _Drawn, geometry: Geometry) -> None:
    widths, before = geometry.widths, geometry.widths[-1]
    drawn.conv("decoder.conv_first", geometry.bits, before)
    for j in range(geometry.num_res_blocks):
        drawn.block(f"decoder.res_blocks.res_block_pre.res_block_pre_{j}", before, before)
    for k, i in enumerate(reversed(range(len(widths)))):
        drawn.condition(f"decoder.cond_norm_layers.cond_norm_{k}", geometry.bits, before)
        for j in range(geometry.num_res_blocks):
            drawn.block(f"decoder.res_blocks.res_block_{k}.res_block_{k}_{j}", before, widths[i])
            before = widths[i]
        if i > 0:
            finer = 8 if geometry.temporal[i - 1] else 4
            name = f"decoder.conv_upsample_blocks.conv_upsample_{k}.conv1"
            drawn.conv(name, before, before * finer)
    drawn.norm("decoder.final_norm", before)
    drawn.conv("decoder.conv_last", before, BANDS)


def encode(weights: Weights, geometry: Geometry, volumes: Tensor) -> Tensor:
    """Return the latents before quantization, in windows of 5 patched slices, stride 4."""
    bands = _patch(volumes)
    windows = [bands[:, :, i : i + 5] for i in range(0, bands.shape[2] - 4, 4)]
    latents = [_encode_window(weights, geometry, window) for window in windows]
    return torch.cat([latents[0], *(latent[:, :, 1:2] for latent in latents[1:])], dim=2)


def decode(weights: Weights, geometry: Geometry, codes: Tensor) -> Tensor:
    """Return the volumes of codes, all slices at once."""
    x, condition, n = _conv(weights, "decoder.conv_first", codes), codes, len(geometry.widths)
    for j in range(geometry.num_res_blocks):
        x = _block(weights, f"decoder.res_blocks.res_block_pre.res_block_pre_{j}", x)
    for k, i in enumerate(reversed(range(n))):
        x = _conditional_norm(weights, f"decoder.cond_norm_layers.cond_norm_{k}", x, condition)
        for j in range(geometry.num_res_blocks):
            x = _block(weights, f"decoder.res_blocks.res_block_{k}.res_block_{k}_{j}", x)
        if i > 0:
            t = 2 if geometry.temporal[i - 1] else 1
            x = _conv(weights, f"decoder.conv_upsample_blocks.conv_upsample_{k}.conv1", x)
            x = rearrange(x, "b (t y x c) d h w -> b c (d t) (h y) (w x)", t=t, y=2, x=2)
            for axis, factor in ((2, t), (3, 2), (4, 2)):
                condition = condition.repeat_interleave(factor, dim=axis)
            x, condition = x[:, :, t - 1 :], condition[:, :, t - 1 :]
    bands = _conv(weights, "decoder.conv_last", F.silu(_norm(weights, "decoder.final_norm", x)))
    return _unpatch(bands)


def _encode_window(weights: Weights, geometry: Geometry, x: Tensor) -> Tensor:
    n = len(geometry.widths)
    x = _conv(weights, "encoder.conv_first", x)
    for i in range(n):
        for j in range(geometry.num_res_blocks):
            name = f"res_block_{i if j == 0 else 0}_{j}"
            x = _block(weights, f"encoder.res_blocks.res_block_{i}.{name}", x)
        if i < n - 1:
            stride = (2 if geometry.temporal[i] else 1, 2, 2)
            name = f"encoder.conv_downsample_blocks.conv_downsample_{i}"
            x = _conv(weights, name, x, stride=stride)
    for j in range(geometry.num_res_blocks):
        x = _block(weights, f"encoder.res_blocks.res_block_final.res_block_final_{j}", x)
    x = F.silu(_norm(weights, "encoder.final_norm", x))
    return _conv(weights, "encoder.conv_last", x)


def _conv(weights: Weights, name: str, x: Tensor, stride: tuple[int, ...] = (1, 1, 1)) -> Tensor:
    kernel, bias = weights[f"{name}.conv.weight"], weights.get(f"{name}.conv.bias")
    size = kernel.shape[-1]
    around = size // 2
    return F.conv3d(
        F.pad(x, (around, around, around, around, size - 1, 0)), kernel, bias, stride=stride
    )


def _norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    scale, shift = weights[f"{name}.norm_fn.weight"], weights[f"{name}.norm_fn.bias"]
    return torch.stack([F.group_norm(s, GROUPS, scale, shift, 1e-5) for s in x.unbind(2)], dim=2)


def _block(weights: Weights, name: str, x: Tensor) -> Tensor:
    y = _conv(weights, f"{name}.conv_0", F.silu(_norm(weights, f"{name}.norm_0", x)))
    y = _conv(weights, f"{name}.conv_1", F.silu(_norm(weights, f"{name}.norm_1", y)))
    skips = f"{name}.conv_shortcut.conv.weight" in weights
    return y + (_conv(weights, f"{name}.conv_shortcut", x) if skips else x)


def _conditional_norm(weights: Weights, name: str, x: Tensor, condition: Tensor) -> Tensor:
    slices = [F.group_norm(s, GROUPS, eps=1e-5) for s in x.unbind(2)]
    last = condition.movedim(1, -1)
    gamma, beta = (
        F.linear(last, weights[f"{name}.{half}.weight"], weights[f"{name}.{half}.bias"])
        for half in ("gamma", "beta")
    )
    return torch.stack(slices, dim=2) * (1 + gamma.movedim(-1, 1)) + beta.movedim(-1, 1)


def _patch(volumes: Tensor) -> Tensor:
    """Return the Haar bands of volumes whose first slice is doubled, each 1/8 of signed sums."""
    doubled = torch.cat((volumes[:, :, :1], volumes), dim=2)
    blocks = rearrange(doubled, "b 1 (d t) (h y) (w x) -> b t y x d h w", t=2, y=2, x=2)
    return torch.stack([(blocks * _signs(band)).sum((1, 2, 3)) / 8 for band in range(8)], dim=1)


def _unpatch(bands: Tensor) -> Tensor:
    """Return the volumes of Haar bands without the doubled first slice."""
    blocks = sum(bands[:, band, None, None, None] * _signs(band) for band in range(8))
    assert isinstance(blocks, Tensor)
    return rearrange(blocks, "b t y x d h w -> b 1 (d t) (h y) (w x)")[:, :, 1:]


def _signs(band: int) -> Tensor:
    """Return the sign of each voxel of a block in a band: bits are t, h, w from the first on."""
    signs = [
        (-1) ** (t * (band >> 2 & 1) + y * (band >> 1 & 1) + x * (band & 1))
        for t in (0, 1)
        for y in (0, 1)
        for x in (0, 1)
    ]
    return torch.tensor(signs, dtype=torch.float64).view(2, 2, 2, 1, 1, 1)
