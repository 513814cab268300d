"""Sections of the quantizers: how latents become integer indices."""

import math
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, field_validator

from ct3dlib.config.base import Spec

Level = Annotated[int, Field(ge=2, le=1024)]


class LFQSpec(Spec):
    """Lookup-free quantization (Yu et al., arXiv:2310.05737)."""

    name: Literal["lfq"] = "lfq"
    bits: Annotated[int, Field(ge=1, le=30)] = Field(
        default=18, description="log2 of the codebook size."
    )

    @property
    def channels(self) -> int:
        """Latent channels."""
        return self.bits

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return 2**self.bits


class FSQSpec(Spec):
    """Finite scalar quantization (Mentzer et al., arXiv:2309.15505)."""

    name: Literal["fsq"] = "fsq"
    levels: tuple[Level, ...] = Field(
        default=(8, 8, 8),
        min_length=1,
        validation_alias=AliasChoices("levels", "fsq_levels"),
        description="Values of each latent channel; their product is the codebook size.",
    )
    variant: Literal["fsq", "prod9"] = Field(
        default="fsq",
        description="Bound of the latents; prod9: as models that its program trained expect it.",
    )

    @field_validator("levels")
    @classmethod
    def _check_size(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if math.prod(levels) > 2**30:
            raise ValueError(f"levels {levels} make {math.prod(levels)} codes, at most 2^30")
        return levels

    @property
    def channels(self) -> int:
        """Latent channels."""
        return len(self.levels)

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return math.prod(self.levels)


QuantizerSpec = Annotated[LFQSpec | FSQSpec, Field(discriminator="name")]
