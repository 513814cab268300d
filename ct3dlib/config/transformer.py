"""Sections of the token transformer and of what is drawn from it."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from ct3dlib.config.base import Fraction, Seed, Spec
from ct3dlib.config.quantizer import FSQSpec, LFQSpec, QuantizerSpec
from ct3dlib.config.training import TrainSpec

logger = logging.getLogger(__name__)

MaskSchedule = Literal["cosine", "arccos", "linear", "sqrt", "log2", "square"]
SampleOrder = Literal["confidence", "random", "halton"]
Radix = Annotated[int, Field(ge=2, le=2**16)]


class BlocksSpec(Spec):
    """A stack of transformer blocks with 3D positions."""

    hidden_size: PositiveInt = 768
    num_layers: PositiveInt = 24
    num_heads: PositiveInt = 12
    mlp_ratio: PositiveFloat = 4.0
    dropout: Fraction = 0.1

    @model_validator(mode="after")
    def _check_heads(self) -> "BlocksSpec":
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_heads "
                f"({self.num_heads})"
            )
        if self.head_size % 2 or self.head_size < 6:
            raise ValueError(
                f"hidden_size / num_heads ({self.head_size}) must be even and at least 6: "
                f"each of the 3 axes rotates pairs of channels"
            )
        return self

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_heads


class ConditionedSpec(BlocksSpec):
    """Blocks that know what is asked for."""

    name: Literal["maskgit"] = "maskgit"
    conditioning: Literal["adaln", "in_context"] = Field(
        default="adaln",
        description="adaln: labels steer every block and a source is added to the tokens; "
        "in_context: both are tokens of their own before the others.",
    )


class MaskGITSpec(ConditionedSpec):
    """Masked-token transformer with a head for each digit of an index, and 3D positions."""

    bits_per_group: Annotated[int, Field(ge=1, le=16)] = Field(
        default=9, description="LFQ: bits of a head's 2^n classes. FSQ has a head for each level."
    )

    def radices(self, quantizer: QuantizerSpec) -> tuple[int, ...]:
        """Return the classes of each head, the least significant digit of an index first.

        Raises:
            ValueError: `bits_per_group` does not divide the bits of an index.
        """
        match quantizer:
            case FSQSpec():
                return quantizer.levels
            case LFQSpec():
                groups, left = divmod(quantizer.bits, self.bits_per_group)
                if left:
                    raise ValueError(
                        f"bits_per_group ({self.bits_per_group}) must divide the tokenizer's "
                        f"{quantizer.bits} bits"
                    )
                return (2**self.bits_per_group,) * groups


class SlabSpec(Spec):
    """Windows of a volume's tokens, each of which may see the end of the one below it."""

    size: PositiveInt = Field(default=8, description="Token slices of a window, along D.")
    context: NonNegativeInt = Field(
        default=2, description="The first slices of a window, which its neighbour below has made."
    )
    context_dropout: Fraction = Field(
        default=0.1, description="Share of items that do not know their neighbour."
    )

    @model_validator(mode="after")
    def _check_context(self) -> "SlabSpec":
        if self.context >= self.size:
            raise ValueError(
                f"context ({self.context}) must be less than size ({self.size}): a window has "
                f"slices of its own"
            )
        return self


class TextSpec(Spec):
    """A text per volume, as the vector that an encoder made of it."""

    embeddings: Annotated[str, Field(min_length=1)] = Field(
        description="Parquet table with columns `volume` and `embedding` (a list of numbers)."
    )
    dropout: Fraction = Field(default=0.1, description="Share of items without their text.")

    @field_validator("embeddings")
    @classmethod
    def _expand_home(cls, value: str) -> str:
        return str(Path(value).expanduser())


class MaskGITNetworkSpec(ConditionedSpec):
    """A token transformer with what it takes from its tokenizer and its catalog."""

    radices: tuple[Radix, ...] = Field(
        min_length=1, description="Classes of each digit of an index, the least significant first."
    )
    num_labels: NonNegativeInt = Field(description="Length of the label vector; 0: unconditional.")
    source: bool = Field(
        default=False, description="Whether it sees indices and labels of another volume."
    )
    text_size: NonNegativeInt = Field(
        default=0, description="Length of the vector of a text; 0: it sees none."
    )
    slab: SlabSpec | None = Field(
        default=None, description="The windows it was trained on; null: whole grids."
    )

    @property
    def codebook_size(self) -> int:
        """Number of indices."""
        return math.prod(self.radices)


class TransformerSpec(TrainSpec):
    """Training of the token transformer on the encoded train split."""

    model: MaskGITSpec
    mask_schedule: MaskSchedule = Field(default="arccos", description="Law of the masked share.")
    label_dropout: Fraction = Field(default=0.1, description="Share of items without their labels.")
    source: Literal["study"] | None = Field(
        default=None,
        description="study: translate from another volume of the same study, as another modality.",
    )
    source_dropout: Fraction = Field(default=0.1, description="Share of items without source.")
    text: TextSpec | None = Field(default=None, description="Texts to steer by; null: none.")
    slab: SlabSpec | None = Field(
        default=None,
        description="Train on windows of a volume, and draw it window by window; null: whole.",
    )
    label_smoothing: Fraction = 0.1


class SamplesSpec(Spec):
    """Volumes drawn from the transformer."""

    num_samples: PositiveInt = 4
    steps: PositiveInt = Field(default=12, description="Forward passes of one sample.")
    schedule: MaskSchedule = "arccos"
    order: SampleOrder = Field(
        default="halton",
        description="Which positions come first: the most certain, any, or spread over the grid.",
    )
    temperature: NonNegativeFloat = Field(
        default=1.0, description="0: the likeliest index, always the same."
    )
    top_k: PositiveInt | None = Field(
        default=None, description="Classes of a head that may be drawn; null: all."
    )
    choice_temperature: NonNegativeFloat = Field(
        default=4.5, description="Gumbel noise of the order by confidence."
    )
    guidance: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0, description="Weight of label guidance at the end."
    )
    labels: tuple[str, ...] = Field(
        default=(),
        description="Findings or classes asked for, one sample after another; empty: none.",
    )
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _read_prod9(cls, value: Any) -> Any:
        """Understand prod9's keys: `scheduler_type`, and `mask_value`, which means nothing here."""
        if not isinstance(value, Mapping):
            return value
        read = dict(value)
        if "mask_value" in read:
            del read["mask_value"]
            logger.warning("samples.mask_value: has no effect, [MASK] is learned; leave it out")
        if "scheduler_type" in read:
            # Only a preset says it, and it lies over config.yaml, which has a schedule. `log` is
            # what prod9 called log2 at first.
            named = read.pop("scheduler_type")
            read["schedule"] = "log2" if named == "log" else named
        return read
