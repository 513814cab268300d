"""Section of the slice features: the frozen network that perceptual losses compare through."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from ct3dlib.config.base import Name, Spec
from ct3dlib.config.training import AugmentSpec, TrainSpec


class SliceFeaturesSpec(Spec):
    """A small 2D network that tells anatomical regions apart on axial slices."""

    name: Literal["slice_features"] = "slice_features"
    filters: Annotated[int, Field(ge=8, multiple_of=8)] = Field(
        default=16, description="Channels of the first level; each next one has twice as many."
    )
    num_levels: Annotated[int, Field(ge=2, le=6)] = Field(
        default=4, description="Each level but the first halves the grid."
    )
    num_regions: PositiveInt = Field(
        default=21, description="Region ids that it is trained on, 0 (other) included."
    )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.filters * 2**level for level in range(self.num_levels))

    @property
    def cell(self) -> int:
        """Pixels of a slice along H and W to one position of the last level."""
        return 2 ** (self.num_levels - 1)


class FeaturesSpec(TrainSpec):
    """Training of the slice features on axial slices of one recipe's volumes and their regions."""

    recipe: Name
    crop: tuple[PositiveInt, PositiveInt] = Field(
        description="Pixels (H, W) of a slice's crop; as large as a slice for whole ones."
    )
    model: SliceFeaturesSpec = SliceFeaturesSpec()
    augment: AugmentSpec = AugmentSpec(
        rotation=10.0, scale=0.1, intensity_shift=0.02, intensity_scale=0.05, noise=0.01
    )

    @model_validator(mode="after")
    def _check(self) -> "FeaturesSpec":
        if any(side % self.model.cell for side in self.crop):
            raise ValueError(
                f"crop {self.crop} must be multiples of {self.model.cell}, the pixels to one "
                f"position of the last of {self.model.num_levels} levels"
            )
        if self.augment.shift:
            raise ValueError(
                "augment.shift moves a slice out of its own plane; leave it at 0: crops are drawn "
                "anywhere"
            )
        return self
