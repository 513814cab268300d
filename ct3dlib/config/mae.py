"""Sections of the masked autoencoder of whole scans, and of its embeddings."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from ct3dlib.config.base import Name, Shape, Spec
from ct3dlib.config.encoder import (
    Transformer,
    VisionTransformerSpec,
    VolumeEncoderNetworkSpec,
    VolumeEncoderSpec,
)
from ct3dlib.config.training import AugmentSpec, Beta, TrainSpec


class MaskedAutoencoderSpec(VolumeEncoderSpec):
    """An encoder of the patches that are visible, and a small decoder of those that are not."""

    name: Literal["mae"] = "mae"
    decoder: Transformer = VisionTransformerSpec(hidden_size=512, num_layers=8, num_heads=16)
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.75, description="Share of the patches that the encoder does not see."
    )
    norm_pix: bool = Field(
        default=False,
        description="Predict patches with mean 0 and deviation 1; else voxels in the range.",
    )


class MaskedAutoencoderNetworkSpec(MaskedAutoencoderSpec):
    """A masked autoencoder with what it takes from its recipe."""

    shape: Shape = Field(description="Voxels of a volume.")
    range: tuple[float, float] = Field(default=(0.0, 1.0), description="Of a volume's voxels.")

    @model_validator(mode="after")
    def _check(self) -> "MaskedAutoencoderNetworkSpec":
        patches = self.network.num_patches
        if self.num_visible < 1:
            raise ValueError(
                f"mask_ratio {self.mask_ratio} leaves none of {patches} patches visible; lower it, "
                f"or make patch_size smaller"
            )
        return self

    @property
    def network(self) -> VolumeEncoderNetworkSpec:
        """Its encoder."""
        return VolumeEncoderNetworkSpec(
            encoder=self.encoder,
            patch_size=self.patch_size,
            pad=self.pad,
            shape=self.shape,
            range=self.range,
        )

    @property
    def num_visible(self) -> int:
        """Patches that the encoder sees in training."""
        return int(self.network.num_patches * (1 - self.mask_ratio))


class MaeSpec(TrainSpec):
    """Pretraining of the masked autoencoder on whole volumes of one recipe."""

    recipe: Name
    model: MaskedAutoencoderSpec = MaskedAutoencoderSpec()
    augment: AugmentSpec = AugmentSpec()
    init_from: str | None = Field(
        default=None, description="Folder of a trained or imported one to go on from; null: fresh."
    )
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: NonNegativeFloat = 0.05


class EmbeddingsSpec(Spec):
    """Embeddings of whole splits."""

    model: Literal["mae", "mae_finetune"] = "mae"
    regional: Shape | None = Field(
        default=(4, 4, 4), description="Also the mean of each cell of this grid; null: none."
    )
    volumes_per_batch: PositiveInt = 4
