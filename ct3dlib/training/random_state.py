"""The state of the global generators that a forward pass draws from."""

import torch
from torch import Tensor


def random_state(device: torch.device) -> tuple[Tensor, ...]:
    """Return the state of the CPU's generator, then of the device's where it has one of its own."""
    cpu = torch.get_rng_state()
    if device.type == "cpu":
        return (cpu,)
    return cpu, torch.get_device_module(device).get_rng_state()


def set_random_state(state: tuple[Tensor, ...], device: torch.device) -> None:
    """Draw again what was drawn after `random_state`."""
    torch.set_rng_state(state[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[1])
