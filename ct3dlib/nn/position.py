"""Positions of tokens on a 3D grid, for any grid size.

Letters: N tokens in D H W order, C channels, E channels of a head, P = E / 2 rotated pairs.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ct3dlib.config import Shape

# Wavelengths run from 2 pi to almost 200 pi tokens: longer ones than the sides of any grid here
# would be constants, so the usual base for text, 10000, would waste half of the channels.
_BASE = 100.0
# The longest wavelength of absolute positions, over 2 pi, as published weights have it.
_LONGEST = 10000.0


def grid_positions(grid: Shape, device: torch.device) -> Float[Tensor, "N 3"]:
    """Return the (d, h, w) of every token of a grid, in tokens from its first corner."""
    sides = [torch.arange(n, device=device, dtype=torch.float32) for n in grid]
    return torch.cartesian_prod(*sides)


def sincos_3d(
    positions: Float[Tensor, "*batch N 3"], num_channels: int
) -> Float[Tensor, "*batch N C"]:
    """Return absolute positions as sines and cosines, a third of the channels per axis.

    Vaswani et al. (arXiv:1706.03762, section 3.5), factorised over three axes. Values lie in
    [-1, 1]; channels beyond the last multiple of 6 are 0.

    Raises:
        ValueError: Fewer than 6 channels.
    """
    if num_channels < 6:
        raise ValueError(f"3D sines and cosines need at least 6 channels, not {num_channels}")
    angles = _angles(positions, num_channels // 6)
    waves = torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(-2)
    return torch.nn.functional.pad(waves, (0, num_channels - waves.shape[-1]))


def rotary_angles(positions: Float[Tensor, "N 3"], head_size: int) -> Float[Tensor, "N P"]:
    """Return by how much each pair of a head's channels turns, radians.

    A third of the pairs turns with each axis; pairs beyond a multiple of 3 do not turn.

    Raises:
        ValueError: The head is odd or has fewer than 6 channels.
    """
    if head_size % 2 or head_size < 6:
        raise ValueError(f"3D rotation needs an even head of at least 6 channels, not {head_size}")
    pairs = head_size // 2
    angles = _angles(positions, pairs // 3).flatten(1)
    return torch.nn.functional.pad(angles, (0, pairs - angles.shape[1]))


def rotate(
    heads: Float[Tensor, "B num_heads N E"], angles: Float[Tensor, "N P"]
) -> Float[Tensor, "B num_heads N E"]:
    """Turn channel pairs (i, i + P), so that dot products depend on distances only.

    Rotary positions: Su et al. (arXiv:2104.09864, equation 34).
    """
    cos, sin = angles.cos(), angles.sin()
    # Channel i meets i + P by a roll, which is cheaper here than splitting and joining halves.
    partners = heads.roll(heads.shape[-1] // 2, dims=-1)
    return heads * torch.cat((cos, cos), dim=-1) + partners * torch.cat((-sin, sin), dim=-1)


def _angles(
    positions: Float[Tensor, "*batch N 3"], count: int
) -> Float[Tensor, "*batch N 3 count"]:
    exponents: Int[Tensor, " count"] = torch.arange(count, device=positions.device)
    return positions[..., None] * _BASE ** (-exponents / count)


def sincos_table(grid: Shape, num_channels: int) -> Float[Tensor, "_ C"]:
    """Return absolute positions of a class token (zeros) and of the patches of any grid.

    The channels are cut into three parts, for d, h and w, the later ones one wider where a third
    is no whole number. A part of n channels holds n // 2 sines, as many cosines, both of
    wavelengths from 2 pi to 10,000 times that, and, where n is odd, one sine of the longest. So
    the masked autoencoder's published weights have it (He et al., arXiv:2111.06377, appendix A.1,
    in 3D).

    Raises:
        ValueError: Fewer than 6 channels.
    """
    if num_channels < 6:
        raise ValueError(f"3D sines and cosines need at least 6 channels, not {num_channels}")
    positions = grid_positions(grid, torch.device("cpu")).double()
    sizes = [(num_channels + axis) // 3 for axis in range(3)]
    parts = [_waves(positions[:, axis], size) for axis, size in enumerate(sizes)]
    table = torch.cat(parts, dim=1)
    return torch.nn.functional.pad(table, (0, 0, 1, 0)).to(torch.get_default_device()).float()


def _waves(positions: Float[Tensor, " N"], num_channels: int) -> Float[Tensor, "N C"]:
    """Return sines and cosines of one axis."""
    half = num_channels // 2
    exponents = torch.arange(half, dtype=positions.dtype, device=positions.device) / half
    angles = positions[:, None] / _LONGEST**exponents
    waves = [angles.sin(), angles.cos()]
    if num_channels % 2:
        waves.append((positions[:, None] / _LONGEST).sin())
    return torch.cat(waves, dim=1)


def resize_table(table: Float[Tensor, "_ C"], grid: Shape, *, to: Shape) -> Float[Tensor, "_ C"]:
    """Return the positions of a class token and a grid, stretched onto another grid.

    The new grid spans the same volume: trilinear, outer patch edges coincide. Patches of another
    size in mm then lie where they did.
    """
    if grid == to:
        return table
    patches = table[1:].T.unflatten(1, grid)[None]  # 1 C d h w
    moved = torch.nn.functional.interpolate(patches, to, mode="trilinear", align_corners=False)
    return torch.cat((table[:1], moved[0].flatten(1).T))
