"""Sections of the volume tokenizers and of the tokens they make."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from ct3dlib.config.base import Name, Shape, Spec
from ct3dlib.config.training import AugmentSpec, TrainSpec


class LFQSpec(Spec):
    """Lookup-free quantization (Yu et al., arXiv:2310.05737)."""

    name: Literal["lfq"] = "lfq"
    bits: Annotated[int, Field(ge=1, le=30)] = Field(
        default=18, description="log2 of the codebook size."
    )


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
    quantizer: LFQSpec = LFQSpec()

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


class TokenizerLossSpec(Spec):
    """Weights of the tokenizer's loss terms."""

    l1: NonNegativeFloat = 5.0
    l2: NonNegativeFloat = 0.0
    entropy: NonNegativeFloat = Field(default=0.1, description="Weight once the warm-up is over.")
    entropy_start: NonNegativeFloat = Field(default=0.3, description="Weight at step 0.")
    entropy_warmup_steps: NonNegativeInt = 2000
    diversity: NonNegativeFloat = Field(default=1.0, description="gamma of the batch entropy.")
    sharpness: PositiveFloat = Field(
        default=100.0,
        description="Inverse temperature of the soft assignment whose entropy is measured.",
    )
    commitment: NonNegativeFloat = 0.25


class TokenizerSpec(TrainSpec):
    """Training of one tokenizer on crops of one recipe's volumes."""

    recipe: Name
    crop: Shape = Field(description="Voxels of a training crop.")
    model: CausalTokenizerSpec
    loss: TokenizerLossSpec = TokenizerLossSpec()
    augment: AugmentSpec = AugmentSpec()

    @model_validator(mode="after")
    def _check_crop(self) -> "TokenizerSpec":
        down = self.model.downsampling
        wanted = (self.crop[0] - 1) % down[0], self.crop[1] % down[1], self.crop[2] % down[2]
        if any(wanted):
            raise ValueError(
                f"crop {self.crop} must be (1 + n x {down[0]}, n x {down[1]}, n x {down[2]}) "
                f"for this model"
            )
        return self


class TokensSpec(Spec):
    """Which tokenizer encodes the data set."""

    tokenizer: Name
    windows_per_batch: PositiveInt = Field(
        default=8, description="Windows of one volume encoded together; part of the token format."
    )
