"""Finite scalar quantization: the codebook is a lattice, levels[c] values of channel c.

Letters: B batch, C channels, D H W latent grid; L levels of a channel.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ct3dlib.config import FSQSpec
from ct3dlib.quantizers.base import Quantizer

MARGIN = 1e-3


class FSQ(Quantizer):
    """Bound each channel and round it (Mentzer et al., arXiv:2309.15505, section 3 and appendix).

    Codes are the digits 0 to L - 1 of a channel, shifted and divided by L // 2: from -1 to +1 where
    L is odd, from -1 to 1 - 2 / L where it is even. Channel 0 is the least significant digit of an
    index. Codes are never bounded again, so quantizing codes does not give them back.

    The bound is tanh(z + shift) * half - offset. With the variant "prod9" half is smaller than the
    lattice instead of larger, and shift is not exactly the one that maps 0 to 0: models that were
    trained with it make other ids than "fsq" for about 1 latent vector in 100.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, spec: FSQSpec) -> None:
        super().__init__(channels=spec.channels, codebook_size=spec.codebook_size)
        match spec.variant:
            case "fsq":
                self.margin, self.inverse = MARGIN, torch.atanh
            case "prod9":
                self.margin, self.inverse = -MARGIN, torch.tan
        levels = torch.tensor(spec.levels).view(-1, 1, 1, 1)
        basis = [math.prod(spec.levels[:channel]) for channel in range(spec.channels)]
        self.register_buffer("levels", levels, persistent=False)  # C 1 1 1
        self.register_buffer("basis", torch.tensor(basis).view(-1, 1, 1, 1), persistent=False)

    def bound(self, latents: Float[Tensor, "B C D H W"]) -> Float[Tensor, "B C D H W"]:
        """Return the latents inside the lattice, whose points are one apart."""
        half = (self.levels - 1) * (1 + self.margin) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        shift = self.inverse(offset / half)
        return torch.tanh(latents + shift) * half - offset

    def latents_to_codes(self, latents: Float[Tensor, "B C D H W"]) -> Float[Tensor, "B C D H W"]:
        """Return the nearest points of the lattice; rounding lets the gradient through."""
        width = self.levels // 2
        bounded = self.bound(latents)
        # Above 1001 levels the margin of "fsq" is over half a step and reaches past the ends.
        points = torch.clamp(bounded.detach().round(), -width, self.levels - 1 - width)
        # Adding an exact zero keeps the codes on the lattice, unlike z + (point - z).
        return points / width + (bounded - bounded.detach()) / width

    def codes_to_indices(self, codes: Float[Tensor, "B C D H W"]) -> Int64[Tensor, "B D H W"]:
        """Return the codes read as numbers of mixed radix."""
        width = self.levels // 2
        # Digits are whole before they are packed: sums of floats miss ids in half precision.
        digits = (codes * width + width).round().long()
        return (digits * self.basis).sum(dim=1)

    def lookup(self, indices: Int64[Tensor, "B D H W"]) -> Float[Tensor, "B C D H W"]:
        """Return the digits of the indices as lattice points."""
        width = self.levels // 2
        digits = indices.unsqueeze(1) // self.basis % self.levels
        return (digits - width) / width
