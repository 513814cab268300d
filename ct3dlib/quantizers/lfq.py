"""Lookup-free quantization: the codebook is {-1, +1}^bits.

Letters: B batch, C channels = bits, D H W latent grid.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ct3dlib.config import LFQSpec
from ct3dlib.quantizers.base import Quantizer


class LFQ(Quantizer):
    """Quantize by sign (Yu et al., arXiv:2310.05737, eq. 2 and 3).

    A latent above 0 is +1, any other -1. Channel 0 is the most significant bit of an index.
    """

    powers: Tensor

    def __init__(self, spec: LFQSpec) -> None:
        super().__init__(channels=spec.bits, codebook_size=2**spec.bits)
        powers = 2 ** torch.arange(spec.bits - 1, -1, -1)
        self.register_buffer("powers", powers, persistent=False)

    def latents_to_codes(self, latents: Float[Tensor, "B C D H W"]) -> Float[Tensor, "B C D H W"]:
        """Return the signs; the gradient passes as if they were the latents."""
        signs = torch.where(latents > 0, 1.0, -1.0)
        # Adding an exact zero keeps the codes exactly -1 and +1, unlike z + (sign - z).
        return signs + (latents - latents.detach())

    def codes_to_indices(self, codes: Float[Tensor, "B C D H W"]) -> Int64[Tensor, "B D H W"]:
        """Return the codes read as binary numbers."""
        return ((codes > 0) * self.powers.view(-1, 1, 1, 1)).sum(dim=1)

    def lookup(self, indices: Int64[Tensor, "B D H W"]) -> Float[Tensor, "B C D H W"]:
        """Return the binary digits of the indices, 0 as -1."""
        bits = indices.unsqueeze(1).bitwise_and(self.powers.view(-1, 1, 1, 1)) > 0
        return torch.where(bits, 1.0, -1.0)
