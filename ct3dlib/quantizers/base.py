"""What every quantizer does: latents to codes and their integer ids, and back.

Letters: B batch, C channels, D H W latent grid.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


@dataclass(frozen=True)
class Quantized:
    """Codes of a batch and where they stand in the codebook.

    Args:
        codes: Quantized latents, B C D H W, float32; the gradient passes to the latents.
        indices: Ids of the codes, B D H W, in [0, codebook_size).
    """

    codes: Float[Tensor, "B C D H W"]
    indices: Int64[Tensor, "B D H W"]


class Quantizer(nn.Module, ABC):
    """A codebook without learnt vectors.

    Args:
        channels: Channels of latents and codes.
        codebook_size: Number of codes.
    """

    def __init__(self, *, channels: int, codebook_size: int) -> None:
        super().__init__()
        self.channels = channels
        self.codebook_size = codebook_size

    @property
    def bits(self) -> int:
        """Bits that hold any index."""
        return (self.codebook_size - 1).bit_length()

    def forward(self, latents: Float[Tensor, "B C D H W"]) -> Quantized:
        """Return the codes of the latents and their indices; computed in float32.

        Raises:
            FloatingPointError: A latent is NaN or infinite: it would silently become a code.
        """
        latents = latents.float()
        if not torch.isfinite(latents).all():
            count = int((~torch.isfinite(latents)).sum())
            raise FloatingPointError(
                f"{count} of {latents.numel()} latents are not finite; check the volumes for NaN "
                f"and the training for divergence"
            )
        codes = self.latents_to_codes(latents)
        return Quantized(codes, self.codes_to_indices(codes.detach()))

    def indices_to_codes(self, indices: Int64[Tensor, "B *grid"]) -> Float[Tensor, "B C *grid"]:
        """Return the codes that the indices stand for, float32; a grid or a sequence of any length.

        Raises:
            ValueError: An index is outside [0, codebook_size).
        """
        low, high = (int(bound) for bound in torch.aminmax(indices))
        if low < 0 or high >= self.codebook_size:
            raise ValueError(
                f"indices span {low} to {high}, the codebook has 0 to {self.codebook_size - 1}"
            )
        batch, *grid = indices.shape
        codes = self.lookup(indices.reshape(batch, -1, 1, 1))
        return codes.reshape(batch, self.channels, *grid)

    @abstractmethod
    def latents_to_codes(self, latents: Float[Tensor, "B C D H W"]) -> Float[Tensor, "B C D H W"]:
        """Return the nearest code of each latent vector, straight-through in the gradient."""

    @abstractmethod
    def codes_to_indices(self, codes: Float[Tensor, "B C D H W"]) -> Int64[Tensor, "B D H W"]:
        """Return the ids of codes."""

    @abstractmethod
    def lookup(self, indices: Int64[Tensor, "B D H W"]) -> Float[Tensor, "B C D H W"]:
        """Return the codes of indices that are known to be in range."""
