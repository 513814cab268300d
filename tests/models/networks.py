"""Networks small enough to follow, as others would export them."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim


class Moments(nn.Module):
    """Four features of a slice: mean, mean square, and the mean differences along its sides."""

    def forward(self, slices: Tensor) -> Tensor:
        grey = slices.mean(1)
        maps = [
            grey,
            grey.square(),
            grey[:, 1:].sub(grey[:, :-1]).abs(),
            grey[..., 1:].sub(grey[..., :-1]).abs(),
        ]
        return torch.stack([values.mean((1, 2)) for values in maps], 1)


def export(
    path: Path, network: nn.Module, *, shape: tuple[int, ...] = (2, 3, 12, 16), fixed: bool = False
) -> Path:
    """Write a network for slices of any number and size, or for this shape alone."""
    any_size = None if fixed else (dict.fromkeys((0, 2, 3), Dim.DYNAMIC),)
    program = torch.export.export(network.eval(), (torch.rand(shape),), dynamic_shapes=any_size)
    torch.export.save(program, path)
    return path
