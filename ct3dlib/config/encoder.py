"""The vision transformer that masked autoencoders and what is fine-tuned from them share."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from ct3dlib.config.base import Fraction, Shape, Spec

Size = Literal["tiny", "small", "base", "large"]
# Width, layers and heads. base and large: Dosovitskiy et al., arXiv:2010.11929, table 1; tiny and
# small: Touvron et al., arXiv:2012.12877, table 1.
_SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}


class VisionTransformerSpec(Spec):
    """A stack of transformer blocks with absolute positions."""

    hidden_size: Annotated[int, Field(ge=6)]
    num_layers: PositiveInt
    num_heads: PositiveInt
    mlp_ratio: PositiveFloat = 4.0

    @model_validator(mode="after")
    def _check(self) -> "VisionTransformerSpec":
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_heads "
                f"({self.num_heads})"
            )
        return self


def _of_size(value: Any) -> Any:
    """Return the numbers that the name of a size stands for."""
    if isinstance(value, str) and value in _SIZES:
        width, layers, heads = _SIZES[value]
        return {"hidden_size": width, "num_layers": layers, "num_heads": heads}
    return value


Transformer = Annotated[
    VisionTransformerSpec,
    BeforeValidator(_of_size, json_schema_input_type=Size | VisionTransformerSpec),
]
_LARGE = VisionTransformerSpec(hidden_size=1024, num_layers=24, num_heads=16)


class VolumeEncoderSpec(Spec):
    """A vision transformer over the patches of whole volumes."""

    encoder: Transformer = Field(
        default=_LARGE, description="tiny, small, base, large, or its own numbers."
    )
    patch_size: Shape = Field(default=(16, 16, 16), description="Voxels of one token.")
    pad: bool = Field(
        default=False,
        description="Fill volumes with the range's low end to whole patches; else refuse them.",
    )


class VolumeEncoderNetworkSpec(VolumeEncoderSpec):
    """A volume encoder with what it takes from its recipe."""

    name: Literal["volume_encoder"] = "volume_encoder"
    shape: Shape = Field(description="Voxels of a volume.")
    range: tuple[float, float] = Field(default=(0.0, 1.0), description="Of a volume's voxels.")
    drop_path: Fraction = Field(
        default=0.0, description="Chance that an item skips a branch of the last block."
    )

    @model_validator(mode="after")
    def _check(self) -> "VolumeEncoderNetworkSpec":
        check_patches(self.shape, self, "a volume")
        return self

    @property
    def grid(self) -> Shape:
        """Patches along (D, H, W)."""
        d, h, w = (-(-n // p) for n, p in zip(self.shape, self.patch_size, strict=True))
        return d, h, w

    @property
    def num_patches(self) -> int:
        """Patches of a volume."""
        return self.grid[0] * self.grid[1] * self.grid[2]


def check_patches(shape: Shape, encoder: VolumeEncoderSpec, what: str) -> None:
    """Refuse volumes that are no whole number of patches where they are not padded.

    Raises:
        ValueError: They are not.
    """
    if not encoder.pad and any(n % p for n, p in zip(shape, encoder.patch_size, strict=True)):
        raise ValueError(
            f"{what} of {shape} voxels is no whole number of patches of {encoder.patch_size}; "
            f"change patch_size or the recipe's shape, or set pad to true"
        )
