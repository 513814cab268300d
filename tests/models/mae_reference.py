"""A masked autoencoder with the module names of the published format, in a few plain lines.

Nothing of the package is used: patches go through a strided convolution, masked ones come back to
their places, predictions lie in the order (d, h, w) of a patch's voxels.
"""

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, HEADS, LAYERS = 48, 4, 3
DECODER_WIDTH, DECODER_LAYERS = 32, 2
ARGUMENTS = Namespace(
    model="mae_vit_tiny_patch4", num_heads=HEADS, decoder_num_heads=2, lr=1e-4, norm_pix_loss=False
)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        found = []
        for q, k, v in zip(
            *(t.chunk(self.heads, dim=-1) for t in (query, key, value)), strict=True
        ):
            weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
            found.append(weights @ v)
        return self.proj(torch.cat(found, dim=-1))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(tokens)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class PatchEmbed(nn.Module):
    def __init__(self, patch: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(1, width, patch, stride=patch)

    def forward(self, volumes: Tensor) -> Tensor:
        return self.proj(volumes).flatten(2).transpose(1, 2)


class Reference(nn.Module):
    """The network, of random weights and sines and cosines on a cubic grid, or of any positions."""

    def __init__(
        self,
        grid: tuple[int, int, int] = (4, 4, 4),
        patch: tuple[int, int, int] = (4, 4, 4),
        sigmoid: bool = True,
    ) -> None:
        super().__init__()
        self.grid, self.patch = grid, patch
        self.patch_embed = PatchEmbed(patch, WIDTH)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(positions(grid, WIDTH), requires_grad=False)
        self.blocks = nn.ModuleList(Block(WIDTH, HEADS) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.decoder_embed = nn.Linear(WIDTH, DECODER_WIDTH)
        self.mask_token = nn.Parameter(torch.randn(1, 1, DECODER_WIDTH))
        self.decoder_pos_embed = nn.Parameter(positions(grid, DECODER_WIDTH), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(Block(DECODER_WIDTH, 2) for _ in range(DECODER_LAYERS))
        self.decoder_norm = nn.LayerNorm(DECODER_WIDTH, eps=1e-6)
        voxels = nn.Linear(DECODER_WIDTH, patch[0] * patch[1] * patch[2])
        self.decoder_pred = nn.Sequential(voxels, nn.Sigmoid()) if sigmoid else voxels
        for norm in (module for module in self.modules() if isinstance(module, nn.LayerNorm)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)

    def encode(self, volumes: Tensor, noise: Tensor, kept: int) -> tuple[Tensor, Tensor]:
        """Return the tokens of the patches with the least noise, and where each patch went."""
        tokens = self.patch_embed(volumes) + self.pos_embed[:, 1:]
        shuffle = torch.argsort(noise, dim=1)
        chosen = shuffle[:, :kept, None].expand(-1, -1, WIDTH)
        tokens = torch.gather(tokens, 1, chosen)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(volumes), -1, -1)
        tokens = torch.cat([first, tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens), torch.argsort(shuffle, dim=1)

    def decode(self, tokens: Tensor, restore: Tensor) -> Tensor:
        """Return the prediction of every patch, in their order."""
        tokens = self.decoder_embed(tokens)
        missing = restore.shape[1] - (tokens.shape[1] - 1)
        filled = torch.cat([tokens[:, 1:], self.mask_token.expand(len(tokens), missing, -1)], dim=1)
        filled = torch.gather(filled, 1, restore[..., None].expand(-1, -1, DECODER_WIDTH))
        tokens = torch.cat([tokens[:, :1], filled], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens))[:, 1:]

    def whole(self, patches: Tensor) -> Tensor:
        """Return the volumes of patches, put down one by one."""
        (gd, gh, gw), (d, h, w) = self.grid, self.patch
        volumes = torch.zeros(len(patches), 1, gd * d, gh * h, gw * w)
        for number in range(patches.shape[1]):
            i, j, k = number // (gh * gw), number // gw % gh, number % gw
            one = patches[:, number].view(-1, 1, d, h, w)
            volumes[:, :, i * d : i * d + d, j * h : j * h + h, k * w : k * w + w] = one
        return volumes


def positions(grid: tuple[int, int, int], width: int) -> Tensor:
    """Return 1 1+N C: a row of zeros, then sines and cosines of d, h and w, one by one."""
    sizes = [width // 3 + (1 if axis >= 3 - width % 3 else 0) for axis in range(3)]
    rows = [[0.0] * width]
    for place in torch.cartesian_prod(*(torch.arange(n) for n in grid)).tolist():
        row: list[float] = []
        for coordinate, size in zip(place, sizes, strict=True):
            half = size // 2
            angles = [coordinate / 10000 ** (k / half) for k in range(half)]
            row += [float(torch.tensor(a).sin()) for a in angles]
            row += [float(torch.tensor(a).cos()) for a in angles]
            row += [float(torch.tensor(coordinate / 10000).sin())] * (size % 2)
        rows.append(row)
    return torch.tensor(rows)[None]


def reference(**changes: Any) -> Reference:
    """Return a network of fixed random weights."""
    torch.manual_seed(3)
    return Reference(**changes).eval()
