"""Autoencoders small enough to see through."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from ct3dlib.config import KLAutoencoderSpec, MaisiTokenizerSpec
from ct3dlib.models.autoencoder import Reconstruction, VolumeAutoencoder
from ct3dlib.quantizers import build_quantizer


def kl_spec(*steps: tuple[int, int, int]) -> KLAutoencoderSpec:
    """Return the spec of a variational model with these strides, in all its steps."""
    levels = len(steps)
    return KLAutoencoderSpec(
        spatial_dims=2 if all(step[0] == 1 for step in steps) and (1, 1, 1) not in steps else 3,
        blocks_down=(1,) * levels,
        blocks_up=(1,) * (levels - 1),
        strides=steps[:-1],
        latent_stride=steps[-1],
    )


class Double(VolumeAutoencoder):
    """What all doubles share; remembers the shapes that it was given."""

    def __init__(self, spec: KLAutoencoderSpec | MaisiTokenizerSpec) -> None:
        quantizer = getattr(spec, "quantizer", None)
        super().__init__(spec, None if quantizer is None else build_quantizer(quantizer))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, volumes: Tensor) -> Reconstruction:
        latents = self.encode(volumes)
        if self.quantizer is None:
            return Reconstruction(self.decode(latents), latents)
        quantized = self.quantizer(latents)
        return Reconstruction(self.decode(quantized.codes), latents, quantized)

    def last_layer(self) -> nn.Parameter:
        return next(self.parameters())

    def blocks(self) -> Sequence[nn.Module]:
        return []


class Blocks(Double):
    """Lossless: the voxels of a latent are its channels."""

    def __init__(self, spec: KLAutoencoderSpec) -> None:
        super().__init__(spec)
        self.encoder = nn.Conv3d(1, 1, 1)  # for its device alone

    def encode(self, volumes: Tensor) -> Tensor:
        self.seen.append(tuple(volumes.shape))
        d, h, w = self.downsampling
        pattern = "b 1 (d a) (h b2) (w c) -> b (a b2 c) d h w"
        return rearrange(volumes, pattern, a=d, b2=h, c=w)

    def decode(self, codes: Tensor) -> Tensor:
        self.seen.append(tuple(codes.shape))
        d, h, w = self.downsampling
        pattern = "b (a b2 c) d h w -> b 1 (d a) (h b2) (w c)"
        return rearrange(codes, pattern, a=d, b2=h, c=w)


class Convs(Double):
    """Strided convolutions; the encoder's last one looks at neighbours too."""

    spec: MaisiTokenizerSpec

    def __init__(self, spec: MaisiTokenizerSpec) -> None:
        super().__init__(spec)
        channels, steps = self.tokens.channels, self.downsampling
        self.encoder = nn.Sequential(
            nn.Conv3d(1, 8, steps, stride=steps),
            nn.Tanh(),
            nn.Conv3d(8, channels, 3, padding=1),
        )
        self.decoder = nn.ConvTranspose3d(channels, 1, steps, stride=steps)

    def encode(self, volumes: Tensor) -> Tensor:
        self.seen.append(tuple(volumes.shape))
        return self.encoder(volumes)

    def decode(self, codes: Tensor) -> Tensor:
        self.seen.append(tuple(codes.shape))
        return self.decoder(codes)


def fsq_model(seed: int = 0) -> Convs:
    """Return a model of 2 x 2 x 2 voxels a token and 8 x 6 x 5 codes, with drawn weights."""
    spec = MaisiTokenizerSpec.model_validate(
        {
            "num_channels": (2, 4),
            "num_res_blocks": (1, 1),
            "attention_levels": (False, False),
            "norm_groups": 2,
            "quantizer": {"name": "fsq", "levels": (8, 6, 5)},
        }
    )
    torch.manual_seed(seed)
    return Convs(spec).eval()
