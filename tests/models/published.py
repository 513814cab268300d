"""Weights named and shaped as torchvision and MedicalNet publish theirs, drawn at random."""

from collections.abc import Mapping

import torch
from torch import Tensor

# Shapes of torchvision's convolutions by their number in `features`.
ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
_VGG16 = (
    (0, 64, 3),
    (2, 64, 64),
    (5, 128, 64),
    (7, 128, 128),
    (10, 256, 128),
    (12, 256, 256),
    (14, 256, 256),
    (17, 512, 256),
    *((number, 512, 512) for number in (19, 21, 24, 26, 28)),
)
VGG16 = {number: (after, before, 3) for number, after, before in _VGG16}


def classifier_state(shapes: Mapping[int, tuple[int, int, int]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {"classifier.1.weight": torch.zeros(3, 5)}
    for number, (after, before, side) in shapes.items():
        weight = torch.randn(after, before, side, side, generator=generator)
        state[f"features.{number}.weight"] = weight * (2 / (before * side**2)) ** 0.5
        state[f"features.{number}.bias"] = 0.1 * torch.randn(after, generator=generator)
    return state


def medicalnet_state(depth: int) -> dict[str, Tensor]:
    """Return weights named as MedicalNet's files name them, small enough to stay finite."""
    generator = torch.Generator().manual_seed(depth)
    repeats = {10: 1, 18: 2}[depth]
    state: dict[str, Tensor] = {}

    def conv(name: str, after: int, before: int, side: int) -> None:
        weight = torch.randn(after, before, side, side, side, generator=generator)
        state[f"{name}.weight"] = weight * (2 / (before * side**3)) ** 0.5

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "running_var"):
            state[f"{name}.{part}"] = 1 + 0.2 * torch.rand(channels, generator=generator)
        for part in ("bias", "running_mean"):
            state[f"{name}.{part}"] = 0.1 * torch.randn(channels, generator=generator)

    conv("conv1", 64, 1, 7)
    norm("bn1", 64)
    before = 64
    for stage, after in enumerate((64, 128, 256, 512), start=1):
        for block in range(repeats):
            name = f"layer{stage}.{block}"
            for number in (1, 2):
                conv(f"{name}.conv{number}", after, before if number == 1 else after, 3)
                norm(f"{name}.bn{number}", after)
            if depth == 10 and before != after:
                conv(f"{name}.downsample.0", after, before, 1)
                norm(f"{name}.downsample.1", after)
            before = after
    return state
