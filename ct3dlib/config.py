"""Every setting of the pipeline as frozen specs. Standard library and pydantic only.

`load_config` turns the mapping that Snakemake read from config.yaml and a preset into a `Config`;
each step gets the JSON of its own section and nothing else. Triples and shapes are (D, H, W).
"""

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

Triple = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
Shape = tuple[PositiveInt, PositiveInt, PositiveInt]
Fraction = Annotated[float, Field(ge=0, le=1)]
Split = Literal["train", "tune", "valid"]
SPLITS: tuple[Split, ...] = ("train", "tune", "valid")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class Spec(BaseModel):
    """Base of every section: frozen, hashable, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# --- data ---------------------------------------------------------------------------------------

Fault = Literal["truncated", "nan", "no_metadata", "single_slice"]


class PhantomSpec(Spec):
    """The synthetic chest-CT cohort, written as a CT-RATE tree under the raw root."""

    train_patients: PositiveInt = Field(description="Patients in train/ (tune is drawn from them).")
    valid_patients: PositiveInt = Field(description="Patients in valid/.")
    reconstructions: tuple[PositiveInt, PositiveInt] = Field(
        default=(1, 2), description="Fewest and most reconstructions of one scan."
    )
    matrix: tuple[PositiveInt, PositiveInt] = Field(
        default=(144, 192), description="Smallest and largest rows = columns of a slice."
    )
    slice_spacing: tuple[PositiveFloat, PositiveFloat] = Field(
        default=(3.0, 5.0), description="Smallest and largest distance of slices, mm."
    )
    dicom_every: NonNegativeInt = Field(
        default=6, description="Every n-th series is DICOM; 0: none."
    )
    version: Literal["v1", "v2"] = Field(
        default="v1",
        description="v1: stored values, blank headers; v2: HU with geometry, in train_fixed/.",
    )
    faults: tuple[Fault, ...] = Field(
        default=(),
        description="Damaged series added to valid/, one each, to show how they are rejected.",
    )
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _check(self) -> "PhantomSpec":
        for name in ("reconstructions", "matrix", "slice_spacing"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"phantom.{name} must not fall: ({low}, {high})")
        if self.version == "v2" and "no_metadata" in self.faults:
            raise ValueError("phantom.faults: no_metadata damages nothing in v2; remove it")
        return self


class CatalogSpec(Spec):
    """Which reader lists the raw root, and how patients are split and spread over shards."""

    dataset: Literal["ct_rate", "folder"]
    tune: Fraction = Field(default=0.1, description="Share of patients kept to choose checkpoints.")
    valid: Fraction = Field(
        default=0.2,
        description="Share of patients that are reported (folder; CT-RATE brings its own).",
    )
    split_csv: str | None = Field(
        default=None,
        description="CSV under the raw root: `VolumeName`, `split` and optionally `patient`.",
    )
    min_slices: PositiveInt = Field(
        default=8, description="Slices of a volume that counts where a split must have a patient."
    )
    shards: dict[Split, PositiveInt] = Field(description="Number of shards of each split.")
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> "CatalogSpec":
        if set(self.shards) != set(SPLITS):
            raise ValueError(f"shards must name exactly {', '.join(SPLITS)}: {sorted(self.shards)}")
        if self.tune + self.valid >= 1:
            raise ValueError(f"tune + valid must stay under 1: {self.tune} + {self.valid}")
        return self


class RecipeSpec(Spec):
    """A named normalisation of volumes: one store, whose models see `window` as `range`."""

    spacing: Triple | None = Field(default=None, description="Resample to this spacing, mm.")
    size: Shape | None = Field(default=None, description="Or resample to this many voxels.")
    shape: Shape | None = Field(
        default=None, description="Then crop or pad to this shape; null: keep."
    )
    center: Literal["volume", "body"] = Field(
        default="volume", description="What stays in the middle of the crop: the grid or the body."
    )
    window: tuple[float, float] = Field(
        default=(-1000.0, 1000.0), description="HU that map to `range`."
    )
    range: tuple[float, float] = Field(default=(-1.0, 1.0), description="What models see.")
    hu_state: Literal["auto", "hu", "stored"] = Field(
        default="auto", description="Whether files hold HU, stored values, or each is found out."
    )
    min_slices: PositiveInt = Field(default=8, description="Series of fewer slices are rejected.")

    @model_validator(mode="after")
    def _check(self) -> "RecipeSpec":
        if self.spacing is not None and self.size is not None:
            raise ValueError("give spacing or size, not both")
        for name, (low, high) in {"window": self.window, "range": self.range}.items():
            if not low < high:
                raise ValueError(f"{name} must rise: ({low}, {high})")
        return self


class ClassicalRegionsSpec(Spec):
    """Regions by thresholds, components and morphology; no weights."""

    spacing: PositiveFloat = Field(default=3.0, description="Working grid, mm isotropic.")


class RegionsSpec(Spec):
    """Region ids 0-20 on the grid of one recipe."""

    recipe: Name
    backend: Literal["classical"] = "classical"
    classical: ClassicalRegionsSpec = ClassicalRegionsSpec()


# --- training -----------------------------------------------------------------------------------


class EarlyStopSpec(Spec):
    """Stop when a validation metric has not improved for `patience` validations."""

    monitor: str = Field(description="A metric of the validation, as `val/loss`.")
    mode: Literal["min", "max"] = "min"
    patience: PositiveInt = 5


class TrainSpec(Spec):
    """What every training shares; a training's section holds these keys beside its own."""

    steps: PositiveInt = Field(
        description="Optimizer steps; the learning rate's cosine spans them."
    )
    stop_at: PositiveInt | None = Field(default=None, description="Stop earlier; the cosine stays.")
    batch_size: PositiveInt = Field(description="Items per optimizer step, over all ranks.")
    micro_batch_size: PositiveInt = Field(description="Items per forward pass, per rank.")
    learning_rate: PositiveFloat = 1e-3
    warmup_steps: NonNegativeInt = 0
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
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
    seed: int = 0

    @model_validator(mode="after")
    def _check_batches(self) -> "TrainSpec":
        if self.batch_size % (self.micro_batch_size * self.devices):
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch_size x devices "
                f"({self.micro_batch_size} x {self.devices})"
            )
        if self.stop_at is not None and self.stop_at > self.steps:
            raise ValueError(f"stop_at ({self.stop_at}) is beyond steps ({self.steps})")
        return self


# --- tokenizers ---------------------------------------------------------------------------------


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


# --- token transformer --------------------------------------------------------------------------

MaskSchedule = Literal["cosine", "arccos", "linear", "sqrt", "log2"]


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


class MaskGITSpec(BlocksSpec):
    """Masked-token transformer with bit-group heads and 3D positions."""

    name: Literal["maskgit"] = "maskgit"
    bits_per_group: Annotated[int, Field(ge=1, le=16)] = Field(
        default=9, description="Bits of one head's 2^n classes."
    )


class MaskGITNetworkSpec(MaskGITSpec):
    """A token transformer with what it takes from its tokenizer and its catalog."""

    bits: Annotated[int, Field(ge=1, le=62)] = Field(
        description="Bits of an index of the tokenizer."
    )
    num_labels: NonNegativeInt = Field(description="Length of the label vector; 0: unconditional.")

    @model_validator(mode="after")
    def _check_groups(self) -> "MaskGITNetworkSpec":
        if self.bits % self.bits_per_group:
            raise ValueError(
                f"bits_per_group ({self.bits_per_group}) must divide the index's {self.bits} bits"
            )
        return self

    @property
    def num_groups(self) -> int:
        """Number of heads; group 0 holds the most significant bits."""
        return self.bits // self.bits_per_group


class TransformerSpec(TrainSpec):
    """Training of the token transformer on the encoded train split."""

    model: MaskGITSpec
    mask_schedule: MaskSchedule = Field(default="arccos", description="Law of the masked share.")
    label_dropout: Fraction = Field(default=0.1, description="Share of items without their labels.")
    label_smoothing: Fraction = 0.1


class SamplesSpec(Spec):
    """Volumes drawn from the transformer."""

    num_samples: PositiveInt = 4
    steps: PositiveInt = Field(default=12, description="Forward passes of one sample.")
    schedule: MaskSchedule = "cosine"
    temperature: PositiveFloat = 1.0
    choice_temperature: NonNegativeFloat = Field(
        default=4.5, description="Gumbel noise of the order."
    )
    guidance: NonNegativeFloat = Field(
        default=0.0, description="Weight of label guidance at the end."
    )
    labels: tuple[str, ...] = Field(
        default=(), description="Findings asked for, one sample after another; empty: none."
    )
    seed: int = 0


class ReportSpec(Spec):
    """The HTML report."""

    title: str = "ct3d report"
    num_examples: PositiveInt = Field(default=4, description="Volumes shown of each kind.")


class Config(Spec):
    """config.yaml with a preset laid over it."""

    raw_root: str = Field(description="Folder of the raw scans; relative to the working directory.")
    phantom: PhantomSpec | None = Field(
        default=None, description="Generate this cohort into raw_root."
    )
    catalog: CatalogSpec
    recipes: dict[Name, RecipeSpec]
    regions: RegionsSpec
    tokenizers: dict[Name, TokenizerSpec]
    tokens: TokensSpec
    transformer: TransformerSpec
    samples: SamplesSpec = SamplesSpec()
    report: ReportSpec = ReportSpec()

    @model_validator(mode="after")
    def _check_names(self) -> "Config":
        readers = {f"tokenizers.{name}.recipe": t.recipe for name, t in self.tokenizers.items()}
        for key, recipe in {**readers, "regions.recipe": self.regions.recipe}.items():
            if recipe not in self.recipes:
                raise ValueError(f"{key}: no recipe {recipe!r}; there are {sorted(self.recipes)}")
        if self.tokens.tokenizer not in self.tokenizers:
            raise ValueError(
                f"tokens.tokenizer: no tokenizer {self.tokens.tokenizer!r}; there are "
                f"{sorted(self.tokenizers)}"
            )
        bits = self.tokenizers[self.tokens.tokenizer].model.quantizer.bits
        if bits % self.transformer.model.bits_per_group:
            raise ValueError(
                f"transformer.model.bits_per_group ({self.transformer.model.bits_per_group}) must "
                f"divide the tokenizer's {bits} bits"
            )
        return self


# --- loading ------------------------------------------------------------------------------------

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::([^}]*))?\}")


def _expand(value: Any, environ: Mapping[str, str], key: str) -> Any:
    """Replace ${NAME} and ${NAME:default} in every string below `value`."""
    match value:
        case str():

            def substitute(found: re.Match[str]) -> str:
                name, default = found.groups()
                if name in environ:
                    return environ[name]
                if default is None:
                    raise ValueError(
                        f"{key}: the environment variable {name} is not set; "
                        f"export {name}=... or write ${{{name}:default}}"
                    )
                return default

            return _VARIABLE.sub(substitute, value)
        case Mapping():
            return {
                k: _expand(v, environ, f"{key}.{k}" if key else str(k)) for k, v in value.items()
            }
        case list() | tuple():
            return [_expand(v, environ, f"{key}[{i}]") for i, v in enumerate(value)]
        case _:
            return value


def load_config(mapping: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Config:
    """Return the checked config.

    Args:
        mapping: What YAML gave; ${NAME} and ${NAME:default} come from the environment.
        environ: The environment; that of the process when absent.

    Raises:
        ValueError: An unknown key, a value out of range, names that do not fit each other, or an
            environment variable that is missing and has no default; the message names the key.
    """
    return Config.model_validate(_expand(mapping, os.environ if environ is None else environ, ""))


def schema() -> dict[str, Any]:
    """Return the JSON schema of config.yaml."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
