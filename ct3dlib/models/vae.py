"""The variational autoencoder: volumes to Gaussian latents and back.

Kingma & Welling (arXiv:1312.6114), with residual levels as the autoencoder branch of Myronenko
(arXiv:1810.11654) and no skips past the latents.

Letters: B batch, D H W voxels, C latent channels, d h w latent grid, F features.

A 2D model treats every slice on its own: slices become items of the batch, one slice deep, and
kernels are one slice deep too, so that one network serves both.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ct3dlib.config import KLAutoencoderSpec, Shape
from ct3dlib.models.autoencoder import Posterior, Reconstruction, VolumeAutoencoder
from ct3dlib.nn.norm import ChannelLayerNorm, ChannelRMSNorm
from ct3dlib.nn.upsample import SubpixelUpsample
from ct3dlib.nn.window_attention import LatentAttention

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}
SMALLEST_STD = 1e-6
LOG_VARIANCE_RANGE = (-30.0, 20.0)  # std from 3e-7 to 2e4, far from under- and overflow


class ResidualBlock(nn.Module):
    """Add two normalised convolutions, scaled down, to the input (He et al., arXiv:1603.05027).

    With a small weight every block starts near the identity.
    """

    def __init__(self, spec: KLAutoencoderSpec, channels: int) -> None:
        super().__init__()
        self.weight = spec.res_block_weight
        self.residual = nn.Sequential(
            *_normed_conv(spec, channels, channels), *_normed_conv(spec, channels, channels)
        )

    def forward(self, x: Float[Tensor, "B F D H W"]) -> Float[Tensor, "B F D H W"]:
        """Return x + weight * residual(x)."""
        return x + self.weight * self.residual(x)


class Encoder(nn.Module):
    """Volumes B 1 D H W to the means and deviations of latents, float32, B C d h w each."""

    def __init__(self, spec: KLAutoencoderSpec) -> None:
        super().__init__()
        self.fixed_std = spec.fixed_std or 0.0  # read only where nothing predicts one
        self.log_variance = spec.log_variance
        self.input = nn.Sequential(_conv(spec, 1, spec.init_filters), nn.Dropout3d(spec.dropout))
        self.levels = nn.Sequential(_blocks(spec, spec.init_filters, spec.blocks_down[0]))
        *strides, latent_stride = spec.all_strides
        for (before, width), stride, count in zip(
            pairwise(spec.widths), strides, spec.blocks_down[1:], strict=True
        ):
            self.levels.append(_conv(spec, before, width, stride=stride))
            self.levels.append(_blocks(spec, width, count))
        smallest = spec.smallest_filters
        self.bottleneck = nn.Sequential(
            *_normed_conv(spec, spec.widths[-1], smallest, stride=latent_stride)
        )
        if spec.attention is not None:
            self.bottleneck.append(LatentAttention(spec.attention, smallest))
        self.mean = nn.Conv3d(smallest, spec.latent_channels, kernel_size=1)
        self.spread = (
            nn.Conv3d(smallest, spec.latent_channels, kernel_size=1)
            if spec.fixed_std is None
            else None
        )

    def forward(
        self, volumes: Float[Tensor, "B 1 D H W"]
    ) -> tuple[Float[Tensor, "B C d h w"], Float[Tensor, "B C d h w"]]:
        """Return mean and standard deviation."""
        x = self.bottleneck(self.levels(self.input(volumes)))
        # Deviations near 0 and the divergence made of them need more than bfloat16 has.
        mean = self.mean(x).float()
        return mean, self._std(x, mean)

    def _std(self, x: Tensor, mean: Tensor) -> Float[Tensor, "B C d h w"]:
        """Return the deviations, in the way that the spec asks for."""
        if self.spread is None:
            return torch.full_like(mean, self.fixed_std)
        spread = self.spread(x).float()
        if self.log_variance:
            return (spread.clamp(*LOG_VARIANCE_RANGE) / 2).exp()
        return F.softplus(spread) + SMALLEST_STD


class Decoder(nn.Module):
    """Latents B C d h w to volumes B 1 D H W; levels run from the coarsest to the finest."""

    def __init__(self, spec: KLAutoencoderSpec) -> None:
        super().__init__()
        widths, strides = spec.widths[::-1], spec.all_strides[::-1]
        self.input = nn.Sequential(
            nn.Conv3d(spec.latent_channels, widths[0], kernel_size=1),
            _upsample(spec, widths[0], strides[0]),
        )
        self.levels = nn.Sequential()
        for (before, width), stride, count in zip(
            pairwise(widths), strides[1:], spec.blocks_up, strict=True
        ):
            self.levels.append(nn.Conv3d(before, width, kernel_size=1))
            self.levels.append(_upsample(spec, width, stride))
            self.levels.append(_blocks(spec, width, count))
        self.norm = nn.Sequential(_norm(spec, widths[-1]), ACTIVATIONS[spec.activation]())
        self.output = nn.Conv3d(widths[-1], 1, kernel_size=1)
        last = spec.final_activation
        self.range = nn.Identity() if last is None else ACTIVATIONS[last]()

    def forward(self, latents: Float[Tensor, "B C d h w"]) -> Float[Tensor, "B 1 D H W"]:
        """Return the decoded volumes, in the range of the final activation."""
        x = self.levels(self.input(latents))
        return self.range(self.output(self.norm(x)))


class KLAutoencoder(VolumeAutoencoder):
    """Volumes to latents near a standard normal distribution and back, as the 3D VAE framework.

    Decoded volumes lie where `final_activation` puts them: tanh in [-1, 1], sigmoid in [0, 1],
    null anywhere. It must span the range of the recipe that the volumes come from.

    Args:
        spec: Levels, strides, bottleneck, and how latents are drawn.
    """

    spec: KLAutoencoderSpec

    def __init__(self, spec: KLAutoencoderSpec) -> None:
        super().__init__(spec, quantizer=None)
        self.encoder = Encoder(spec)
        self.decoder = Decoder(spec)

    def forward(
        self,
        volumes: Float[Tensor, "B 1 D H W"],
        noise: Float[Tensor, "B C d h w"] | None = None,
    ) -> Reconstruction:
        """Encode, draw latents, and decode; in eval mode the mean is decoded, and nothing drawn.

        Latents are mean + std * noise (arXiv:1312.6114, section 2.4).

        Args:
            volumes: In the range of `final_activation`.
            noise: Standard normal; None: from torch's global generator. Unused in eval mode.

        Raises:
            ValueError: The shape does not fill whole latents.
        """
        posterior = self.posterior(volumes)
        latents = posterior.mean
        if self.training:
            drawn = torch.randn_like(latents) if noise is None else noise
            latents = latents + posterior.std * drawn
        return Reconstruction(self.decode(latents), posterior.mean, posterior=posterior)

    def posterior(self, volumes: Float[Tensor, "B 1 D H W"]) -> Posterior:
        """Return the distributions that latents are drawn from.

        Raises:
            ValueError: The shape does not fill whole latents.
        """
        self._check_shape(volumes)
        mean, std = self.encoder(self._to_items(volumes))
        slices = volumes.shape[2]
        return Posterior(self._from_items(mean, slices), self._from_items(std, slices))

    def encode(self, volumes: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B C d h w"]:
        """Return the means of the latents.

        Raises:
            ValueError: The shape does not fill whole latents.
        """
        return self.posterior(volumes).mean

    def decode(self, codes: Float[Tensor, "B C d h w"]) -> Float[Tensor, "B 1 D H W"]:
        """Return the decoded volumes of latents."""
        return self._from_items(self.decoder(self._to_items(codes)), codes.shape[2])

    def grid(self, shape: Sequence[int]) -> Shape:
        """Return the latents along (d, h, w) that hold volumes of a shape (D, H, W)."""
        depth, height, width = (
            -(-size // step) for size, step in zip(shape, self.downsampling, strict=True)
        )
        return depth, height, width

    @torch.no_grad()
    def sample_prior(
        self, num: int, grid: Shape, *, generator: torch.Generator
    ) -> Float[Tensor, "B 1 D H W"]:
        """Return the decoded volumes of latents drawn from a standard normal distribution.

        Args:
            num: Volumes, B.
            grid: Latents along (d, h, w).
            generator: Draws the latents, on its own device.
        """
        shape = (num, self.spec.latent_channels, *grid)
        latents = torch.randn(shape, generator=generator, device=generator.device)
        return self.decode(latents.to(self.last_layer().device))

    def last_layer(self) -> nn.Parameter:
        """Return the kernel that makes the voxels."""
        return self.decoder.output.get_parameter("weight")

    def blocks(self) -> Sequence[nn.Module]:
        """Return the residual blocks."""
        return [module for module in self.modules() if isinstance(module, ResidualBlock)]

    def _check_shape(self, volumes: Tensor) -> None:
        """Raise unless the volumes fill whole latents."""
        found = tuple(volumes.shape[2:])
        if any(side % step for side, step in zip(found, self.downsampling, strict=True)):
            raise ValueError(
                f"volumes have {found} voxels; this model needs multiples of "
                f"{self.downsampling}: crop or pad them"
            )

    def _to_items(self, x: Float[Tensor, "B F D H W"]) -> Float[Tensor, "B2 F D2 H W"]:
        """Return what the networks take: of a 2D model every slice as an item, B*D F 1 H W."""
        if self.spec.spatial_dims == 3:
            return x
        return x.transpose(1, 2).flatten(0, 1).unsqueeze(2)

    def _from_items(
        self, x: Float[Tensor, "B2 F D2 H W"], slices: int
    ) -> Float[Tensor, "B F D H W"]:
        """Return items as volumes: the inverse of `_to_items`, of so many slices."""
        if self.spec.spatial_dims == 3:
            return x
        return x.squeeze(2).unflatten(0, (-1, slices)).transpose(1, 2)


def _kernel_size(spec: KLAutoencoderSpec) -> Shape:
    """Return the kernel of convolutions, one slice deep in a 2D model."""
    return (3 if spec.spatial_dims == 3 else 1), 3, 3


def _conv(
    spec: KLAutoencoderSpec, in_channels: int, out_channels: int, *, stride: Shape = (1, 1, 1)
) -> nn.Conv3d:
    """Return a convolution that divides the grid by the stride exactly and skips no voxel.

    A kernel is at least as long as its stride. There is no bias, since norms shift what follows.
    """
    depth, height, width = (max(k, s) for k, s in zip(_kernel_size(spec), stride, strict=True))
    return nn.Conv3d(
        in_channels,
        out_channels,
        (depth, height, width),
        stride=stride,
        padding=(
            _padding(depth, stride[0]),
            _padding(height, stride[1]),
            _padding(width, stride[2]),
        ),
        bias=False,
    )


def _padding(kernel: int, stride: int) -> int:
    """Return the zeros at both ends that let n x stride positions become n."""
    return (kernel - stride + 1) // 2


def _normed_conv(
    spec: KLAutoencoderSpec, in_channels: int, out_channels: int, *, stride: Shape = (1, 1, 1)
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return norm, activation and convolution."""
    activation = ACTIVATIONS[spec.activation]()
    conv = _conv(spec, in_channels, out_channels, stride=stride)
    return _norm(spec, in_channels), activation, conv


def _blocks(spec: KLAutoencoderSpec, channels: int, count: int) -> nn.Sequential:
    """Return the residual blocks of one level."""
    return nn.Sequential(*(ResidualBlock(spec, channels) for _ in range(count)))


def _norm(spec: KLAutoencoderSpec, channels: int) -> nn.Module:
    """Return the norm of a spec."""
    match spec.norm:
        case "group":
            return nn.GroupNorm(spec.norm_groups, channels)
        case "batch":
            return nn.BatchNorm3d(channels)
        case "instance":
            return nn.InstanceNorm3d(channels, affine=True)
        case "layer":
            return ChannelLayerNorm(channels)
        case "rms":
            return ChannelRMSNorm(channels, eps=1e-6)


def _upsample(spec: KLAutoencoderSpec, channels: int, factors: Shape) -> nn.Module:
    """Return what makes the grid finer by `factors`; channels stay."""
    match spec.upsample:
        case "deconv":
            return nn.ConvTranspose3d(channels, channels, kernel_size=factors, stride=factors)
        case "nontrainable":
            scale = tuple(float(factor) for factor in factors)
            return nn.Upsample(scale_factor=scale, mode="trilinear")
        case "pixelshuffle":
            return SubpixelUpsample(channels, factors=factors, kernel_size=_kernel_size(spec))
        case "pixelshuffle_v2":
            return nn.Sequential(
                SubpixelUpsample(channels, factors=factors, kernel_size=_kernel_size(spec)),
                ACTIVATIONS[spec.activation](),
                _conv(spec, channels, channels),
            )
