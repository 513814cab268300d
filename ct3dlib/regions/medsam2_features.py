"""Features of a volume's slices: made once, looked up by every object that passes.

Letters: n slices, T tracks, S S pixels of a picture, h w pixels of the coarsest features (S/16).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from ct3dlib.regions.medsam2_network import Levels, Network

Precision = Literal["fp32", "bf16"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours, on [0, 1]


@dataclass(frozen=True, eq=False)
class Features:
    """What the encoder made of some slices of a volume.

    Args:
        slices: Which they are, ascending.
        top: The coarsest features.
        s1: Those of an eighth of the resolution, as the decoder adds them.
        s0: Those of a quarter.
    """

    slices: Int[Tensor, "n"]
    top: Float[Tensor, "n 256 h w"]
    s1: Float[Tensor, "n 64 h2 w2"]
    s0: Float[Tensor, "n 32 h4 w4"]

    def at(self, slices: Int[Tensor, "T"]) -> Levels:
        """Return the features of slices, all of which must be there."""
        rows = torch.searchsorted(self.slices, slices)
        return self.top[rows], self.s1[rows], self.s0[rows]


@torch.inference_mode()
def encode(
    network: Network,
    pictures: Real[Tensor, "n S S"],
    slices: Sequence[int],
    *,
    batch: int,
    precision: Precision,
) -> Features:
    """Encode slices of a volume, each once, for any number of objects.

    Args:
        network: MedSAM2.
        pictures: Grey levels, 0 to 255.
        slices: Which slices of the volume they are, ascending.
        batch: How many are encoded at a time.
        precision: "bf16" encodes in bfloat16 and keeps features so.

    Raises:
        ValueError: Pictures and slices are not as many, slices do not ascend, or pictures are of
            another size than the network's.
    """
    if not slices or len(slices) != len(pictures) or any(b <= a for a, b in pairwise(slices)):
        raise ValueError(
            f"{len(pictures)} pictures are of slices {list(slices)}, wanted one or more that "
            f"ascend, one for each picture"
        )
    if pictures.shape[1:] != (network.size, network.size):
        raise ValueError(
            f"pictures have {tuple(pictures.shape[1:])} pixels, the network takes "
            f"{network.size} x {network.size}; resize them"
        )
    device = network.picture_position.device
    mean, std = (torch.tensor(of, device=device).view(1, 3, 1, 1) for of in (_MEAN, _STD))
    parts = []
    with autocast(device, precision):
        for some in pictures.split(batch):
            grey = some[:, None].to(device).float() / 255
            parts.append(
                [level.to(kept_dtype(precision)) for level in network.encode((grey - mean) / std)]
            )
    joined = [torch.cat(level) for level in zip(*parts, strict=True)]
    return Features(torch.tensor(slices, device=device), *joined)


def kept_dtype(precision: Precision) -> torch.dtype:
    """Return the type that features and memories are kept in."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context that a precision runs in."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
