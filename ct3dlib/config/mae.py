"""Sections of the masked autoencoder of whole scans, and of what is fine-tuned from it."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from ct3dlib.config.base import Fraction, Name, Seed, Shape, Spec
from ct3dlib.config.training import AugmentSpec, Beta, TrainSpec

Task = Literal["binary", "multiclass", "multilabel", "regression"]
Pooling = Literal["cls", "pooled", "both", "attentive"]
MaskKind = Literal["regions", "lesions"]
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


class HeadSpec(Spec):
    """What turns an encoder's tokens into predictions."""

    pooling: Pooling = Field(
        default="both",
        description="Class token, mean of the patches' tokens, both, or a learnt query an output.",
    )
    hidden_size: PositiveInt | None = Field(
        default=None, description="Width of one hidden layer; null: a linear head."
    )
    init_std: PositiveFloat = Field(
        default=2e-5, description="Deviation of the last layer's first weights."
    )


class PredictorNetworkSpec(Spec):
    """A volume encoder with a head."""

    name: Literal["predictor"] = "predictor"
    encoder: VolumeEncoderNetworkSpec
    head: HeadSpec
    num_outputs: PositiveInt


class FromEncoderSpec(TrainSpec):
    """What trainings that start from a pretrained encoder share."""

    recipe: Name
    init_from: str | None = Field(
        default="models/mae",
        description="Folder of a masked autoencoder, or of a model fine-tuned from one.",
    )
    model: VolumeEncoderSpec | None = Field(
        default=None, description="The encoder of a training from scratch, with init_from: null."
    )
    frozen: bool = Field(default=False, description="Train the head alone.")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Each layer learns slower than the next one by this factor."
    )
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augment: AugmentSpec = AugmentSpec(shift=3.0, intensity_shift=0.02)
    weight_decay: NonNegativeFloat = 0.05

    @model_validator(mode="after")
    def _check_start(self) -> "FromEncoderSpec":
        if (self.init_from is None) == (self.model is None):
            raise ValueError(
                "give init_from, or model and init_from: null for a training from scratch; not both"
            )
        if self.frozen and (self.layer_decay < 1 or self.drop_path or self.init_from is None):
            raise ValueError(
                "frozen trains the head of a pretrained encoder alone: it needs init_from, "
                "layer_decay 1 and drop_path 0"
            )
        return self


class LabelTableSpec(Spec):
    """A CSV of what to learn; a row a volume."""

    csv: Annotated[str, Field(min_length=1)]
    path_column: str = Field(default="Path", description="File of the scan, or the volume's name.")
    columns: tuple[str, ...] = Field(
        default=("Label",), min_length=1, description="What is learnt; several: one output each."
    )

    @model_validator(mode="after")
    def _check(self) -> "LabelTableSpec":
        _check_once("columns", self.columns)
        return self


class SmallBudgetSpec(Spec):
    """A pretrained encoder against one from scratch where labels are few, at equal steps."""

    patients: Annotated[int, Field(ge=2)] = Field(
        description="Patients of the train split with labels."
    )
    steps: PositiveInt
    seeds: tuple[Seed, ...] = Field(default=(0, 1, 2), min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "SmallBudgetSpec":
        _check_once("seeds", self.seeds)
        return self


class MaeFinetuneSpec(FromEncoderSpec):
    """Fine-tuning of a volume encoder on labels."""

    task: Task = "multilabel"
    labels: LabelTableSpec | None = Field(
        default=None, description="A CSV; null: the catalog's findings or classes."
    )
    findings: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Which of the catalog's; null: all."
    )
    head: HeadSpec = HeadSpec()
    mixup: NonNegativeFloat = Field(default=0.0, description="Alpha of mixup; 0: none.")
    cutmix: NonNegativeFloat = Field(default=0.0, description="Alpha of cutmix; 0: none.")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: Literal["balanced"] | tuple[PositiveFloat, ...] | None = Field(
        default="balanced",
        description="What a present label, or an item of each class, counts; null: 1.",
    )
    small_budget: SmallBudgetSpec | None = Field(
        default=None, description="Also measure what pretraining is worth; null: no."
    )

    @model_validator(mode="after")
    def _check_task(self) -> "MaeFinetuneSpec":
        if self.labels is not None and self.findings is not None:
            raise ValueError("findings are the catalog's; with labels.csv name its columns instead")
        _check_once("findings", self.findings or ())
        one = self.task in ("binary", "multiclass")
        if self.labels is None and self.task == "regression":
            raise ValueError("task: regression needs numbers; give labels.csv")
        if self.labels is not None and one and len(self.labels.columns) > 1:
            raise ValueError(f"task: {self.task} has one column, not {self.labels.columns}")
        if self.small_budget is not None and self.task in ("multiclass", "regression"):
            raise ValueError(f"small_budget compares findings; task: {self.task} has none")
        if self.task == "regression" and self.label_smoothing:
            raise ValueError("label_smoothing is of classes; set it to 0 for a regression")
        return self


class MaeSegmentSpec(FromEncoderSpec):
    """Training of a segmentation decoder over a volume encoder."""

    masks: tuple[MaskKind, ...] = Field(
        default=("regions",),
        min_length=1,
        description="Classes: the regions of the store, drawn lesions (one class), or both.",
    )
    filters: PositiveInt = Field(default=16, description="Channels at full resolution.")
    dice: NonNegativeFloat = Field(default=1.0, description="Weight of the soft Dice loss.")
    cross_entropy: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _check_masks(self) -> "MaeSegmentSpec":
        if len(set(self.masks)) < len(self.masks):
            raise ValueError(f"masks {list(self.masks)}: a kind stands twice; name each once")
        if not self.dice + self.cross_entropy:
            raise ValueError("dice and cross_entropy are both 0: nothing is learnt; raise one")
        return self


class SegmenterNetworkSpec(Spec):
    """A volume encoder with a decoder of masks."""

    name: Literal["segmenter"] = "segmenter"
    encoder: VolumeEncoderNetworkSpec
    filters: PositiveInt
    num_classes: Annotated[int, Field(ge=2)] = Field(description="Background included.")


class EmbeddingsSpec(Spec):
    """Embeddings of whole splits."""

    model: Literal["mae", "mae_finetune"] = "mae"
    regional: Shape | None = Field(
        default=(4, 4, 4), description="Also the mean of each cell of this grid; null: none."
    )
    volumes_per_batch: PositiveInt = 4


def _check_once(key: str, values: Sequence[object]) -> None:
    """Refuse values that are named twice.

    Raises:
        ValueError: One is.
    """
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"{key}: {', '.join(twice)} is named twice; name each once")


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
