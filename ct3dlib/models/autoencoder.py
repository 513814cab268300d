"""What every autoencoder of volumes does: volumes to latents and back, by one set of names.

Letters: B batch, D H W voxels, C latent channels, d h w latent grid.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor, nn

from ct3dlib.config import Shape, Spec
from ct3dlib.quantizers import Quantized, Quantizer


@dataclass(frozen=True)
class Posterior:
    """Independent Gaussians, one per latent.

    Args:
        mean: B C d h w.
        std: B C d h w, positive, or 0 where the spec fixes it so.
    """

    mean: Float[Tensor, "B C d h w"]
    std: Float[Tensor, "B C d h w"]


@dataclass(frozen=True)
class Reconstruction:
    """What one pass through an autoencoder gives.

    Args:
        volumes: Decoded volumes, B 1 D H W, not clamped to the range.
        latents: Before quantization, B C d h w; of a variational model the mean.
        quantized: Codes and indices, where the model has a quantizer.
        posterior: Where the model is variational.
    """

    volumes: Float[Tensor, "B 1 D H W"]
    latents: Float[Tensor, "B C d h w"]
    quantized: Quantized | None = None
    posterior: Posterior | None = None


class VolumeAutoencoder(nn.Module, ABC):
    """Volumes B 1 D H W to latents B C d h w and back.

    `forward` is the pass of a training; `encode` and `decode` are deterministic and need eval mode
    only where a model has dropout.

    Args:
        spec: Of the model.
        quantizer: Latents to codes; None where latents stay continuous.
    """

    spec: Any  # of the class that a kind declares; it has a `name` and `downsampling`
    encoder: nn.Module  # with `decoder` all that is trained, unless `encoding_modules` names more

    def __init__(self, spec: Spec, quantizer: Quantizer | None) -> None:
        super().__init__()
        self.spec = spec
        self.quantizer = quantizer

    @property
    def downsampling(self) -> Shape:
        """Voxels per latent along (D, H, W)."""
        return self.spec.downsampling

    @property
    def tokens(self) -> Quantizer:
        """The quantizer.

        Raises:
            TypeError: The model has none, so it makes no tokens.
        """
        if self.quantizer is None:
            raise TypeError(f"a model of the name {self.spec.name} has latents and no tokens")
        return self.quantizer

    @abstractmethod
    def forward(self, volumes: Float[Tensor, "B 1 D H W"]) -> Reconstruction:
        """Encode, quantize or draw from the posterior, and decode.

        Raises:
            ValueError: The shape does not fill whole latents.
            FloatingPointError: A latent to be quantized is not finite.
        """

    @abstractmethod
    def encode(self, volumes: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B C d h w"]:
        """Return the latents before quantization; of a variational model the mean.

        Raises:
            ValueError: The shape does not fill whole latents.
        """

    @abstractmethod
    def decode(self, codes: Float[Tensor, "B C d h w"]) -> Float[Tensor, "B 1 D H W"]:
        """Return the decoded volumes of codes, or of latents where nothing is quantized."""

    def decode_indices(self, indices: Int64[Tensor, "B d h w"]) -> Float[Tensor, "B 1 D H W"]:
        """Return the decoded volumes of token indices.

        Raises:
            ValueError: An index is outside the codebook.
            TypeError: The model makes no tokens.
        """
        return self.decode(self.tokens.indices_to_codes(indices))

    def padding(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return how many voxels behind the last ones fill whole latents along (D, H, W).

        Raises:
            ValueError: The volume does not have three axes.
        """
        if len(shape) != 3:
            raise ValueError(f"a volume has 3 axes (D, H, W), not {len(shape)}")
        depth, height, width = (-n % step for n, step in zip(shape, self.downsampling, strict=True))
        return depth, height, width

    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """Return the weights nearest to the decoded volumes, whose gradients are compared."""

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """Return the repeated blocks, see `Objective.blocks`."""

    def encoding_modules(self) -> Sequence[nn.Module]:
        """Return what makes the latents: frozen where the decoder is trained alone."""
        return [self.encoder]
