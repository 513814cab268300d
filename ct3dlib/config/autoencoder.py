"""Sections of the autoencoders: the networks that tokens and latents come from."""

import math
from typing import Annotated, Literal

from pydantic import (
    AliasChoices,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from ct3dlib.config.base import Fraction, Shape, Spec
from ct3dlib.config.quantizer import FSQSpec, LFQSpec, QuantizerSpec

Norm = Literal["group", "batch", "instance", "layer", "rms"]
Activation = Literal["relu", "leaky_relu", "silu", "gelu", "elu", "softplus", "mish"]


class CausalTokenizerSpec(Spec):
    """Haar front end and causal 3D convolutions, as BTB3D."""

    name: Literal["causal"] = "causal"
    filters: PositiveInt = Field(default=96, description="Channels of the first level.")
    num_res_blocks: PositiveInt = 4
    channel_multipliers: tuple[PositiveInt, ...] = (1, 2, 4)
    temporal_downsample: tuple[bool, ...] = Field(
        default=(True, True),
        description="Whether the step to the next level halves the slices too.",
    )
    norm_groups: PositiveInt = 32
    quantizer: QuantizerSpec = LFQSpec()

    @model_validator(mode="after")
    def _check(self) -> "CausalTokenizerSpec":
        if len(self.temporal_downsample) != len(self.channel_multipliers) - 1:
            raise ValueError(
                f"temporal_downsample needs one entry per step between levels: "
                f"{len(self.channel_multipliers)} levels, {len(self.temporal_downsample)} entries"
            )
        for multiplier in self.channel_multipliers:
            if self.filters * multiplier % self.norm_groups:
                raise ValueError(
                    f"filters x multiplier ({self.filters} x {multiplier}) must be a multiple of "
                    f"norm_groups ({self.norm_groups})"
                )
        return self

    @property
    def downsampling(self) -> Shape:
        """Voxels per token along (D, H, W), the factor 2 of the Haar transform included."""
        plane = 2 ** len(self.channel_multipliers)
        return 2 ** (1 + sum(self.temporal_downsample)), plane, plane


class MaisiTokenizerSpec(Spec):
    """MONAI's MAISI autoencoder with a quantizer, as prod9."""

    name: Literal["maisi"] = "maisi"
    num_channels: tuple[PositiveInt, ...] = Field(
        default=(32, 64, 128, 256),
        min_length=2,
        validation_alias=AliasChoices("num_channels", "fmaps"),
        description="Channels of each level; each step to the next halves all axes.",
    )
    num_res_blocks: tuple[PositiveInt, ...] = (1, 1, 1, 1)
    attention_levels: tuple[bool, ...] = (False, False, False, True)
    norm_groups: PositiveInt = 32
    norm_eps: PositiveFloat = 1e-6
    num_splits: PositiveInt = Field(
        default=1, description="Parts that convolutions are done in one after the other."
    )
    quantizer: QuantizerSpec = FSQSpec()

    @model_validator(mode="after")
    def _check(self) -> "MaisiTokenizerSpec":
        levels = len(self.num_channels)
        for name in ("num_res_blocks", "attention_levels"):
            if len(getattr(self, name)) != levels:
                raise ValueError(
                    f"{name} needs one entry per level of num_channels: {levels} levels, "
                    f"{len(getattr(self, name))} entries"
                )
        for channels in self.num_channels:
            if channels % self.norm_groups:
                raise ValueError(
                    f"num_channels ({channels}) must be a multiple of norm_groups "
                    f"({self.norm_groups})"
                )
        return self

    @property
    def downsampling(self) -> Shape:
        """Voxels per token along (D, H, W)."""
        factor = 2 ** (len(self.num_channels) - 1)
        return factor, factor, factor

    @property
    def smallest(self) -> Shape:
        """Voxels along (D, H, W) that convolutions in `num_splits` parts need at least.

        A part of the deepest level shorter than 4 voxels fails, or loses voxels without a word.
        """
        if self.num_splits == 1:
            return self.downsampling
        factor, *_ = self.downsampling
        side = 4 * self.num_splits * factor
        return side, side, side


class LatentAttentionSpec(Spec):
    """Self-attention over the latent grid of a variational autoencoder."""

    window: tuple[PositiveInt, ...] | None = Field(
        default=None, description="Latents along each axis that attend to each other; null: all."
    )
    relative_bias: bool = Field(
        default=False, description="A learned bias for each offset in a window, as Swin."
    )
    num_heads: PositiveInt = 3
    head_size: PositiveInt = 32
    dropout: Fraction = 0.0

    @model_validator(mode="after")
    def _check(self) -> "LatentAttentionSpec":
        if self.relative_bias and self.window is None:
            raise ValueError("relative_bias needs a window: its table has one entry per offset")
        return self


class KLAutoencoderSpec(Spec):
    """A variational autoencoder of volumes or slices, as the 3D VAE framework."""

    name: Literal["vae"] = "vae"
    spatial_dims: Literal[2, 3] = Field(default=3, description="2: every slice on its own.")
    latent_channels: PositiveInt = 4
    init_filters: PositiveInt = Field(default=8, description="Channels before the first level.")
    smallest_filters: PositiveInt = Field(
        default=64, description="Channels of the bottleneck that the latents are read from."
    )
    blocks_down: tuple[NonNegativeInt, ...] = Field(
        default=(1, 2, 2, 4), min_length=1, description="Residual blocks of each encoder level."
    )
    blocks_up: tuple[NonNegativeInt, ...] = Field(
        default=(1, 1, 1), description="Residual blocks of each decoder level."
    )
    strides: tuple[Shape, ...] | None = Field(
        default=None,
        description="(D, H, W) of the step into each level but the first; null: 2 along each axis.",
    )
    latent_stride: Shape | None = Field(
        default=None, description="(D, H, W) of the step into the bottleneck; null: 2 each."
    )
    res_block_weight: PositiveFloat = Field(
        default=0.01, description="Of what a residual block adds."
    )
    norm: Norm = "group"
    norm_groups: PositiveInt = 8
    activation: Activation = "relu"
    final_activation: (
        Literal["tanh", "sigmoid", "relu", "leaky_relu", "gelu", "elu", "softplus"] | None
    ) = "tanh"
    upsample: Literal["deconv", "nontrainable", "pixelshuffle", "pixelshuffle_v2"] = Field(
        default="deconv", description="pixelshuffle_v2 refines with a convolution."
    )
    dropout: Fraction = 0.0
    attention: LatentAttentionSpec | None = None
    log_variance: bool = Field(
        default=False, description="Predict the log variance; else softplus of the deviation."
    )
    fixed_std: NonNegativeFloat | None = Field(
        default=None, description="Deviation of all latents; the KL term is then mean(z^2)."
    )

    @model_validator(mode="after")
    def _check(self) -> "KLAutoencoderSpec":
        levels = len(self.blocks_down)
        if len(self.blocks_up) != levels - 1:
            raise ValueError(
                f"blocks_up needs one entry less than blocks_down: {levels} and "
                f"{len(self.blocks_up)}"
            )
        if self.strides is not None and len(self.strides) != levels - 1:
            raise ValueError(
                f"strides needs one entry per step between levels: {levels} levels, "
                f"{len(self.strides)} entries"
            )
        if self.norm == "group":
            for channels in (*self.widths, self.smallest_filters):
                if channels % self.norm_groups:
                    raise ValueError(
                        f"channels ({channels}) must be a multiple of norm_groups "
                        f"({self.norm_groups})"
                    )
        if self.spatial_dims == 2 and any(stride[0] != 1 for stride in self.all_strides):
            raise ValueError("a 2D model has stride 1 along D: every slice is on its own")
        window = self.attention and self.attention.window
        if window and len(window) != self.spatial_dims:
            raise ValueError(f"attention.window needs {self.spatial_dims} entries, not {window}")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, the first on the grid of the volume."""
        return tuple(self.init_filters * 2**level for level in range(len(self.blocks_down)))

    @property
    def all_strides(self) -> tuple[Shape, ...]:
        """Strides of the steps between levels, then of that into the bottleneck."""
        half: Shape = (2, 2, 2) if self.spatial_dims == 3 else (1, 2, 2)
        steps = self.strides or (half,) * (len(self.blocks_down) - 1)
        return (*steps, self.latent_stride or half)

    @property
    def downsampling(self) -> Shape:
        """Voxels per latent along (D, H, W)."""
        depth, height, width = (math.prod(axis) for axis in zip(*self.all_strides, strict=True))
        return depth, height, width


AutoencoderSpec = Annotated[
    CausalTokenizerSpec | MaisiTokenizerSpec | KLAutoencoderSpec, Field(discriminator="name")
]
