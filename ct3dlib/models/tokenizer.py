"""The volume tokenizer: Haar front end, causal 3D convolutions, quantizer.

Letters: B batch, D H W voxels, N windows of one volume, S slices of a window, C latent channels,
d h w latent grid. D = 1 + n * downsampling[0] becomes d = 1 + n; the first slice is doubled before
the Haar transform, so that latent 0 stands for slice 0 and latent k for the next downsampling[0].

A token is defined by its window, not by the whole volume: `encode_windowed` encodes windows of
2 + downsampling[0] slices, stride downsampling[0], each on its own. A token then depends on ten
slices for downsampling 8, memory does not grow with D, and windows may be encoded in any batches.

The decoder is causal and normalises slice by slice. `decode_stream` works off the codes in chunks
along d and gives what `decode` gives; its memory does not grow with D either.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ct3dlib.config import CausalTokenizerSpec
from ct3dlib.models.autoencoder import Reconstruction, VolumeAutoencoder
from ct3dlib.nn.conv import (
    CausalConv3d,
    CausalSequential,
    Downsample,
    History,
    ResBlock,
    Upsample,
)
from ct3dlib.nn.haar import BANDS, haar, inverse_haar
from ct3dlib.nn.norm import ConditionalSliceNorm, SliceNorm
from ct3dlib.quantizers import build_quantizer


class Encoder(nn.Sequential):
    """Bands B 8 D H W to latents B C d h w."""

    def __init__(self, spec: CausalTokenizerSpec, channels: int) -> None:
        widths = [spec.filters * multiplier for multiplier in spec.channel_multipliers]
        layers: list[nn.Module] = [CausalConv3d(BANDS, widths[0])]
        steps = (None, *spec.temporal_downsample)
        for (before, width), temporal in zip(pairwise([widths[0], *widths]), steps, strict=True):
            if temporal is not None:
                layers.append(Downsample(before, temporal=temporal))
            layers.append(_blocks(before, width, spec))
        layers += [
            _blocks(widths[-1], widths[-1], spec),
            SliceNorm(spec.norm_groups, widths[-1]),
            nn.SiLU(),
            nn.Conv3d(widths[-1], channels, kernel_size=1),
        ]
        super().__init__(*layers)


class Level(nn.Module):
    """One level of the decoder: modulate by the codes, refine, and go to a finer grid."""

    def __init__(
        self,
        spec: CausalTokenizerSpec,
        channels: int,
        *,
        widths: tuple[int, int],
        temporal: bool | None,
    ) -> None:
        super().__init__()
        before, width = widths
        self.norm = ConditionalSliceNorm(spec.norm_groups, before, condition_channels=channels)
        self.blocks = _blocks(before, width, spec)
        self.upsample = None if temporal is None else Upsample(width, temporal=temporal)

    def forward(
        self,
        x: Float[Tensor, "B F D H W"],
        condition: Float[Tensor, "B C D H W"],
        history: History | None = None,
    ) -> tuple[Float[Tensor, "B G D2 H2 W2"], Float[Tensor, "B C D2 H2 W2"]]:
        """Return features and condition on the next level's grid."""
        x = self.blocks(self.norm(x, condition), history)
        if self.upsample is None:
            return x, condition
        return self.upsample(x, history), self.upsample.repeat(condition, history)


class Decoder(nn.Module):
    """Codes B C d h w to bands B 8 D H W."""

    def __init__(self, spec: CausalTokenizerSpec, channels: int) -> None:
        super().__init__()
        widths = [spec.filters * multiplier for multiplier in reversed(spec.channel_multipliers)]
        self.input = CausalSequential(
            CausalConv3d(channels, widths[0]), _blocks(widths[0], widths[0], spec)
        )
        steps = (*reversed(spec.temporal_downsample), None)
        self.levels = nn.ModuleList(
            Level(spec, channels, widths=pair, temporal=temporal)
            for pair, temporal in zip(pairwise([widths[0], *widths]), steps, strict=True)
        )
        self.output = CausalSequential(
            SliceNorm(spec.norm_groups, widths[-1]), nn.SiLU(), CausalConv3d(widths[-1], BANDS)
        )

    def forward(
        self, codes: Float[Tensor, "B C d h w"], history: History | None = None
    ) -> Float[Tensor, "B 8 D H W"]:
        """Return the bands of the decoded volumes, or of the next chunk of them."""
        x, condition = self.input(codes, history), codes
        for level in self.levels:
            x, condition = level(x, condition, history)
        return self.output(x, history)


class CausalTokenizer(VolumeAutoencoder):
    """Volumes to integer tokens and back, as BTB3D (Hamamci et al., 2025).

    Args:
        spec: Widths, levels and quantizer.
    """

    spec: CausalTokenizerSpec

    def __init__(self, spec: CausalTokenizerSpec) -> None:
        super().__init__(spec, build_quantizer(spec.quantizer))
        self.encoder = Encoder(spec, self.tokens.channels)
        self.decoder = Decoder(spec, self.tokens.channels)

    def forward(self, volumes: Float[Tensor, "B 1 D H W"]) -> Reconstruction:
        """Encode by windows, quantize and decode.

        Raises:
            ValueError: The shape does not fit; see `encode_windowed`.
            FloatingPointError: A latent is not finite.
        """
        latents = self.encode_windowed(volumes)
        quantized = self.tokens(latents)
        return Reconstruction(self.decode(quantized.codes), latents, quantized)

    def encode(self, volumes: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B C d h w"]:
        """Return the latents of the whole causal sequence, or of one first window.

        From latent 2 on they differ from those of `encode_windowed`, which define the tokens.

        Raises:
            ValueError: D is not 1 + n * downsampling[0], or H or W no multiple.
        """
        self._check_shape(volumes)
        return self.encode_window(_double_first(volumes))

    def encode_windowed(self, volumes: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B C d h w"]:
        """Return the latents that define the tokens, all windows as one batch.

        Raises:
            ValueError: D is not 1 + n * downsampling[0], or H or W no multiple.
        """
        windows = self.windows(volumes)
        latents = self.encode_window(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])
        return join_windows(latents)

    def windows(self, volumes: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B N 1 S H W"]:
        """Return the windows that are encoded on their own; neighbours share two slices.

        Window 0 starts with the doubled first slice; for downsampling 8, window i > 0 holds the
        slices 8i - 1 to 8i + 8. A single slice, doubled, is one window with one latent.

        Raises:
            ValueError: D is not 1 + n * downsampling[0], or H or W no multiple.
        """
        self._check_shape(volumes)
        stride, doubled = self.spec.downsampling[0], _double_first(volumes)
        windows = doubled.unfold(2, min(2 + stride, doubled.shape[2]), stride)  # B 1 N H W S
        return windows.permute(0, 2, 1, 5, 3, 4)

    def encode_window(self, windows: Float[Tensor, "B 1 S H W"]) -> Float[Tensor, "B C d h w"]:
        """Return the latents of windows, two each, or the one of a doubled slice."""
        return self.encoder(_channels_last(haar(windows)))

    def decode(self, codes: Float[Tensor, "B C d h w"]) -> Float[Tensor, "B 1 D H W"]:
        """Return the decoded volumes; a change in code k reaches no slice before its own."""
        return inverse_haar(self.decoder(_channels_last(codes)))[:, :, 1:]

    def decode_stream(
        self, codes: Float[Tensor, "B C d h w"], *, latents_per_chunk: int
    ) -> Iterator[Float[Tensor, "B 1 D H W"]]:
        """Return the slices of `decode`, chunk by chunk in their order, without gradient.

        Each chunk is decoded when it is asked for, so activations exist for one chunk at a time.

        Args:
            codes: As `decode`.
            latents_per_chunk: Latents decoded together; memory is in proportion to it.

        Raises:
            ValueError: `latents_per_chunk` is not positive.
        """
        if latents_per_chunk < 1:
            raise ValueError(f"latents_per_chunk must be positive, not {latents_per_chunk}")
        history = History()
        chunks = codes.split(latents_per_chunk, dim=2)
        return (self._decode_next(chunk, history) for chunk in chunks)

    @torch.no_grad()
    def _decode_next(
        self, codes: Float[Tensor, "B C d h w"], history: History
    ) -> Float[Tensor, "B 1 D H W"]:
        """Return the slices of the next chunk of codes; it becomes part of the history."""
        volumes = inverse_haar(self.decoder(_channels_last(codes), history))
        if history.first:
            volumes, history.first = volumes[:, :, 1:], False
        return volumes

    def padding(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return what fills a volume up to 1 + n * downsampling slices, and multiples.

        Raises:
            ValueError: The volume does not have three axes.
        """
        if len(shape) != 3:
            raise ValueError(f"a volume has 3 axes (D, H, W), not {len(shape)}")
        down = self.downsampling
        return (1 - shape[0]) % down[0], -shape[1] % down[1], -shape[2] % down[2]

    def last_layer(self) -> nn.Parameter:
        """Return the kernel that makes the bands."""
        return self.decoder.output.get_parameter("2.weight")

    def blocks(self) -> Sequence[nn.Module]:
        """Return the residual blocks."""
        return [module for module in self.modules() if isinstance(module, ResBlock)]

    def _check_shape(self, volumes: Tensor) -> None:
        """Raise unless the volumes fill whole tokens."""
        found, down = tuple(volumes.shape[2:]), self.spec.downsampling
        if (found[0] - 1) % down[0] or found[1] % down[1] or found[2] % down[2]:
            raise ValueError(
                f"volumes have {found} voxels; this tokenizer needs (1 + n x {down[0]}, "
                f"n x {down[1]}, n x {down[2]}): crop or pad them"
            )


def join_windows(latents: Float[Tensor, "B N C n h w"]) -> Float[Tensor, "B C d h w"]:
    """Return the latents of volumes: all of window 0, the last of every other window.

    Args:
        latents: Two a window, n; one where a volume is a single slice.
    """
    first = latents[:, 0]  # B C n h w
    return torch.cat((first, latents[:, 1:, :, -1].transpose(1, 2)), dim=2)


def _blocks(in_channels: int, out_channels: int, spec: CausalTokenizerSpec) -> CausalSequential:
    """Return the residual blocks of one level."""
    inputs = [in_channels] + [out_channels] * (spec.num_res_blocks - 1)
    return CausalSequential(
        *(ResBlock(width, out_channels, num_groups=spec.norm_groups) for width in inputs)
    )


def _double_first(volumes: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B 1 D+1 H W"]:
    """Return the volumes with their first slice twice."""
    return torch.cat((volumes[:, :, :1], volumes), dim=2)


def _channels_last(x: Tensor) -> Tensor:
    """Return `x` in the memory layout in which 3D convolutions are fastest, also on a CPU."""
    return x.contiguous(memory_format=torch.channels_last_3d)
