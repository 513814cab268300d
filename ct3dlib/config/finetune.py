"""Sections of what is fine-tuned from a volume encoder: labels of volumes, and masks."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from ct3dlib.config.base import Name, Seed, Spec
from ct3dlib.config.encoder import VolumeEncoderNetworkSpec, VolumeEncoderSpec
from ct3dlib.config.training import AugmentSpec, TrainSpec

Task = Literal["binary", "multiclass", "multilabel", "regression"]
Pooling = Literal["cls", "pooled", "both", "attentive"]
MaskKind = Literal["regions", "lesions"]


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


def _check_once(key: str, values: Sequence[object]) -> None:
    """Refuse values that are named twice.

    Raises:
        ValueError: One is.
    """
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"{key}: {', '.join(twice)} is named twice; name each once")
