"""Ranks and devices. `torchrun` starts the ranks; without it there is one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from ct3dlib.errors import TrainingError

DeviceName = Literal["auto", "cpu", "cuda", "mps"]


def rank() -> int:
    """Return this process's rank: that of the group, or what torchrun gave it."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of ranks in the group, 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def sum_over_ranks(value: Tensor) -> Tensor:
    """Return the sum of a tensor over ranks, without gradients."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def mean_over_ranks(value: Tensor) -> Tensor:
    """Return the mean of a tensor over ranks, without gradients."""
    return sum_over_ranks(value) / world_size()


def gather_with_gradient(value: Shaped[Tensor, "B ..."]) -> Shaped[Tensor, "_ ..."]:
    """Return the items of all ranks, those of rank 0 first; gradients go back to their ranks.

    The gradient of an item is the sum of what the losses of all ranks give to it. So where each
    rank's loss is of its own rows beside all others', and gradients of parameters are averaged
    over ranks, they are those of the mean loss: of the whole batch at once.

    Args:
        value: As many items on each rank. With one rank it comes back as it is.
    """
    return _Gather.apply(value) if world_size() > 1 else value


class _Gather(torch.autograd.Function):
    """Gather forward, sum and scatter backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        parts = [torch.empty_like(value) for _ in range(world_size())]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        parts = [part.contiguous() for part in gradient.chunk(world_size())]
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, parts)
        return own


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return whether the flag is set on any rank."""
    if world_size() == 1:
        return flag
    return bool(sum_over_ranks(torch.tensor(int(flag), device=device)).item())


def choose_device(name: DeviceName) -> torch.device:
    """Return the device that a spec asks for; `auto` takes CUDA, then MPS, then the CPU.

    With CUDA every rank of a machine gets its own GPU.

    Raises:
        TrainingError: This machine has no such device.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    if (name == "cuda" and not cuda) or (name == "mps" and not mps):
        raise TrainingError(
            f"device: {name} was asked for and this machine has none; set device: auto or cpu"
        )
    if name == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise TrainingError(
                f"device: local rank {local} has no GPU, this machine has "
                f"{torch.cuda.device_count()}; lower devices"
            )
        return torch.device("cuda", local)
    return torch.device(name)


@contextmanager
def process_group(name: DeviceName) -> Iterator[torch.device]:
    """Join the ranks that torchrun started, and leave them at the end; yield the device.

    Does nothing where there is one rank or the group is there already.
    """
    device = choose_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
