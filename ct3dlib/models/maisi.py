"""The volume tokenizer on MONAI's MAISI autoencoder: 3D convolutions, group norms, quantizer.

Letters: B batch, C latent channels, D H W voxels, d h w latent grid, F features.

The networks are MONAI's (Guo et al., arXiv:2409.11169), under the same names of weights, without
the head that would predict a variance. They are not causal and their norms see the whole crop, so
a latent depends on all voxels; volumes larger than a crop go through in sliding windows.
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import (
    MaisiDecoder,
    MaisiEncoder,
    MaisiGroupNorm3D,
    MaisiResBlock,
)
from monai.networks.blocks.convolutions import Convolution
from torch import Tensor, nn

from ct3dlib.config import MaisiTokenizerSpec
from ct3dlib.models.autoencoder import Reconstruction, VolumeAutoencoder
from ct3dlib.quantizers import build_quantizer


class MaisiTokenizer(VolumeAutoencoder):
    """Volumes to integer tokens and back.

    Args:
        spec: Widths, levels, attention and quantizer.
    """

    spec: MaisiTokenizerSpec

    def __init__(self, spec: MaisiTokenizerSpec) -> None:
        super().__init__(spec, build_quantizer(spec.quantizer))
        channels, arguments = self.tokens.channels, _arguments(spec)
        # Building the two here, and not MONAI's whole model, leaves out the networks and the
        # variance head that it makes and that nothing would use.
        self.encoder = MaisiEncoder(in_channels=1, out_channels=channels, **arguments)
        self.decoder = MaisiDecoder(in_channels=channels, out_channels=1, **arguments)
        self.quant_conv_mu = Convolution(3, channels, channels, kernel_size=1, conv_only=True)
        self.post_quant_conv = Convolution(3, channels, channels, kernel_size=1, conv_only=True)
        swap_norms_(self)

    def forward(self, volumes: Float[Tensor, "B 1 D H W"]) -> Reconstruction:
        """Encode, quantize and decode.

        Raises:
            ValueError: The shape does not fit; see `encode`.
            FloatingPointError: A latent is not finite.
        """
        latents = self.encode(volumes)
        quantized = self.tokens(latents)
        return Reconstruction(self.decode(quantized.codes), latents, quantized)

    def encode(self, volumes: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B C d h w"]:
        """Return the latents before quantization.

        Raises:
            ValueError: An axis is no multiple of `downsampling`, or its parts do not fit
                `num_splits`.
        """
        self._check_shape(tuple(volumes.shape[2:]))
        return self.quant_conv_mu(self.encoder(volumes))

    def decode(self, codes: Float[Tensor, "B C d h w"]) -> Float[Tensor, "B 1 D H W"]:
        """Return the decoded volumes.

        Raises:
            ValueError: The parts of the grid do not fit `num_splits`.
        """
        factor, *_ = self.downsampling
        self._check_shape(tuple(factor * length for length in codes.shape[2:]))
        return self.decoder(self.post_quant_conv(codes))

    def padding(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return what fills whole latents, and what convolutions in `num_splits` parts need.

        Raises:
            ValueError: The volume does not have three axes.
        """
        (factor, *_), splits = self.downsampling, self.spec.num_splits
        whole = [n + pad for n, pad in zip(shape, super().padding(shape), strict=True)]
        depth, height, width = map(max, whole, self.spec.smallest)
        depth += -depth % (factor * splits)
        return depth - shape[0], height - shape[1], width - shape[2]

    def last_layer(self) -> nn.Parameter:
        """Return the kernel that makes the volumes."""
        return self.decoder.blocks[-1].get_parameter("conv.conv.weight")

    def blocks(self) -> Sequence[nn.Module]:
        """Return the residual blocks."""
        return [module for module in self.modules() if isinstance(module, MaisiResBlock)]

    def encoding_modules(self) -> Sequence[nn.Module]:
        """Return the encoder and the convolution that makes its features latents."""
        return [self.encoder, self.quant_conv_mu]

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise unless volumes of a shape fill whole latents, and whole parts along D."""
        (factor, *_), splits = self.downsampling, self.spec.num_splits
        if any(length % factor for length in shape):
            raise ValueError(
                f"volumes have {shape} voxels; this tokenizer needs multiples of {factor}: crop or "
                f"pad them"
            )
        too_small = any(n < least for n, least in zip(shape, self.spec.smallest, strict=True))
        if too_small or shape[0] % (factor * splits):
            raise ValueError(
                f"volumes have {shape} voxels; num_splits {splits} needs at least "
                f"{self.spec.smallest} and D a multiple of {factor * splits}: take larger crops "
                f"or num_splits 1"
            )


def swap_norms_(network: nn.Module) -> None:
    """Replace MONAI's group norms, which loop over the groups, by torch's.

    Names and values of the weights stay, and the output up to rounding. In channels-last memory
    torch's norm loses two digits on a CPU and the step is no faster, so that is not asked for.
    """
    for module in list(network.modules()):
        for name, norm in module.named_children():
            if isinstance(norm, MaisiGroupNorm3D):
                swapped = nn.GroupNorm(norm.num_groups, norm.num_channels, norm.eps)
                swapped.weight, swapped.bias = norm.weight, norm.bias
                setattr(module, name, swapped)


def _arguments(spec: MaisiTokenizerSpec) -> dict[str, Any]:
    """Return what MONAI's encoder and decoder are both built from."""
    return {
        "spatial_dims": 3,
        "num_channels": spec.num_channels,
        "num_res_blocks": spec.num_res_blocks,
        "attention_levels": spec.attention_levels,
        "norm_num_groups": spec.norm_groups,
        "norm_eps": spec.norm_eps,
        "with_nonlocal_attn": False,
        "include_fc": False,
        "use_combined_linear": False,
        "use_flash_attention": True,  # the same sum, without its matrix of all pairs in memory
        "num_splits": spec.num_splits,
        "dim_split": 0,
        "norm_float16": False,
        "print_info": False,
        "save_mem": False,
    }
