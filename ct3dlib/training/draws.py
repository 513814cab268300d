"""Random numbers that are functions of what they are for, never of the order of the calls."""

import hashlib
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15


def seed_of(*parts: int | str) -> int:
    """Return a seed in [0, 2^63) that depends on all parts and is the same in every process."""
    digest = hashlib.blake2b("/".join(map(repr, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def uniform(
    item_seed: Int[Tensor, " B"], shape: tuple[int, ...], stream: int = 0
) -> Float[Tensor, "B ..."]:
    """Draw uniform numbers in [0, 1) for each item from its own seed.

    The numbers of an item depend on its seed, the stream and their place alone: neither ranks,
    micro-batches nor the device change them. SplitMix64 (Steele, Lea, Flood: Fast splittable
    pseudorandom number generators, 2014, figure 17) as a counter: the k-th number is the mixed
    `seed + k x golden`.

    Args:
        item_seed: The batch's `item_seed`.
        shape: Shape of one item's numbers.
        stream: Independent numbers of the same item: one stream per use.

    Returns:
        float32 with 24 random bits, on the device of `item_seed`.
    """
    seeds = _mix(item_seed.long() ^ _mix(item_seed.new_tensor(stream, dtype=torch.int64)))
    places = torch.arange(1, math.prod(shape) + 1, device=item_seed.device)
    bits = _mix(seeds[:, None] + places * _signed(_GOLDEN))  # B N
    numbers = _shift_right(bits, 40).float() * 2.0**-24
    return numbers.reshape(len(item_seed), *shape)


def normal(
    item_seed: Int[Tensor, " B"], shape: tuple[int, ...], stream: int = 0
) -> Float[Tensor, "B ..."]:
    """Draw numbers of the standard normal distribution, each as a function of what `uniform`'s are.

    Box and Muller (A note on the generation of random normal deviates, 1958), which makes two of
    two uniform ones. 24 random bits reach 5.7 standard deviations.
    """
    n = math.prod(shape)
    u = uniform(item_seed, (2, -(-n // 2)), stream)
    radius = (-2 * torch.log1p(-u[:, 0])).sqrt()
    angle = 2 * math.pi * u[:, 1]
    numbers = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)  # B N
    return numbers[:, :n].reshape(len(item_seed), *shape)


def _mix(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Mix 64 bits (int64 arithmetic wraps around, as the algorithm wants)."""
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Int[Tensor, "..."], n: int) -> Int[Tensor, "..."]:
    """Shift as if int64 had no sign."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def _signed(x: int) -> int:
    """Return the int64 of the same 64 bits."""
    return x - (1 << 64) if x >= 1 << 63 else x
