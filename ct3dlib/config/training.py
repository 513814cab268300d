"""What every training shares."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from ct3dlib.config.base import Fraction, Seed, Spec

Beta = Annotated[float, Field(ge=0, lt=1)]
Flips = tuple[Fraction, Fraction, Fraction]


class EarlyStopSpec(Spec):
    """Stop when a validation metric has not improved for `patience` validations."""

    monitor: str = Field(description="A metric of the validation, as `val/loss`.")
    mode: Literal["min", "max"] = "min"
    patience: PositiveInt = 5


class AugmentSpec(Spec):
    """Random changes of training items, drawn anew for each item; all are off by default.

    Strengths are the largest change either way; a change is drawn uniformly, noise from a Gaussian.
    Intensities are shares of the width of the recipe's range, so that [0, 1] and [-1, 1] agree.
    """

    rotation: Annotated[float, Field(ge=0, le=180)] = Field(
        default=0.0, description="In the axial plane, degrees."
    )
    scale: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Of the size, relative: 0.1 is 0.9 to 1.1."
    )
    shift: NonNegativeFloat = Field(default=0.0, description="Along each axis, voxels.")
    geometry_probability: Fraction = Field(
        default=1.0, description="Of rotation, scale and shift, which are one resampling."
    )
    intensity_shift: Fraction = Field(default=0.0, description="Share of the range's width.")
    intensity_scale: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Of the contrast about the middle of the range, relative."
    )
    intensity_probability: Fraction = Field(
        default=1.0, description="Of intensity_shift and intensity_scale."
    )
    noise: Fraction = Field(
        default=0.0, description="Standard deviation, share of the range's width."
    )
    noise_probability: Fraction = 1.0
    flip: Flips = Field(
        default=(0.0, 0.0, 0.0), description="Probability of a flip along D, H and W."
    )
    laterality_safe: bool = Field(
        default=True, description="Refuse flips: they put the heart on the right."
    )

    @model_validator(mode="after")
    def _check(self) -> "AugmentSpec":
        if self.laterality_safe and any(self.flip):
            raise ValueError(
                f"augment.flip {list(self.flip)} mirrors the body, so that reports and regions "
                f"name the wrong side; set flip to [0, 0, 0], or laterality_safe to false"
            )
        return self

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        geometry = self.rotation or self.scale or self.shift or any(self.flip)
        return bool(geometry or self.intensity_shift or self.intensity_scale or self.noise)


class TrainSpec(Spec):
    """What every training shares; a training's section holds these keys beside its own."""

    steps: PositiveInt = Field(
        description="Optimizer steps; the learning rate's cosine spans them."
    )
    stop_at: PositiveInt | None = Field(default=None, description="Stop earlier; the cosine stays.")
    batch_size: PositiveInt = Field(description="Items per optimizer step, over all ranks.")
    micro_batch_size: PositiveInt = Field(description="Items per forward pass, per rank.")
    learning_rate: PositiveFloat = 1e-3
    min_learning_rate: NonNegativeFloat = Field(default=0.0, description="What its cosine ends at.")
    warmup_steps: NonNegativeInt = 0
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    ema: Fraction | None = Field(default=None, description="Decay of averaged weights; null: none.")
    validate_every: PositiveInt = Field(default=100, description="Steps between validations.")
    validation_items: PositiveInt = Field(default=64, description="Items of `tune` per validation.")
    save_every: PositiveInt = Field(default=100, description="Steps between resume checkpoints.")
    keep_last: PositiveInt = Field(default=2, description="Resume checkpoints kept.")
    monitor: str = Field(
        default="val/loss", description="Validation metric that chooses the best weights."
    )
    monitor_mode: Literal["min", "max"] = "min"
    early_stop: EarlyStopSpec | None = None
    log_every: PositiveInt = 10
    num_workers: NonNegativeInt = Field(default=0, description="Loader processes per rank.")
    threads: PositiveInt = Field(default=1, description="CPU cores of a rank.")
    devices: PositiveInt = Field(default=1, description="GPUs; more than one starts torchrun.")
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    activation_checkpointing: bool = False
    fully_shard: bool = Field(
        default=False, description="FSDP2 instead of DistributedDataParallel."
    )
    wandb_project: str | None = Field(
        default=None, description="Weights & Biases project (extra wandb)."
    )
    seed: Seed = 0

    @model_validator(mode="after")
    def _check_batches(self) -> "TrainSpec":
        if self.batch_size % (self.micro_batch_size * self.devices):
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch_size x devices "
                f"({self.micro_batch_size} x {self.devices})"
            )
        if self.stop_at is not None and self.stop_at > self.steps:
            raise ValueError(f"stop_at ({self.stop_at}) is beyond steps ({self.steps})")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate ({self.min_learning_rate}) is above learning_rate "
                f"({self.learning_rate})"
            )
        return self
