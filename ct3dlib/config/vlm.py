"""Sections of the vision-language encoder: scans, their regions and what was written of them."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from ct3dlib.config.base import Fraction, Name, Seed, Shape, Spec
from ct3dlib.config.encoder import Transformer, VisionTransformerSpec
from ct3dlib.config.training import AugmentSpec, Beta, TrainSpec

SliceAttention = Literal["alternating", "divided", "joint", "hierarchical", "plane"]
TextPooling = Literal["cls", "mean", "pooler"]
WindowName = Literal["lung", "mediastinal", "bone", "wide"]
# (low, high) HU of a centre and width: lung -600/1500, mediastinal 40/400, bone 400/1800.
WINDOWS: dict[str, tuple[float, float]] = {
    "lung": (-1350.0, 150.0),
    "mediastinal": (-160.0, 240.0),
    "bone": (-500.0, 1300.0),
    "wide": (-1000.0, 1000.0),
}
_BASE = VisionTransformerSpec(hidden_size=768, num_layers=12, num_heads=12)


class SliceEncoderSpec(Spec):
    """A vision transformer over whole scans whose attention knows slices and regions."""

    encoder: Transformer = Field(
        default=_BASE, description="tiny, small, base, large, or its own numbers."
    )
    patch_size: Shape = Field(default=(4, 16, 16), description="Voxels of one token.")
    attention: SliceAttention = Field(
        default="alternating",
        description="Blocks within slices and along z in turn; both in every block; all with all; "
        "slices and now and then all with all; slices alone.",
    )
    plane_blocks: PositiveInt = Field(
        default=2, description="hierarchical: blocks within slices before each one of all."
    )
    windows: tuple[WindowName | tuple[float, float], ...] = Field(
        default=("wide",), min_length=1, description="HU windows (low, high); one channel each."
    )
    dropout: Fraction = 0.1
    attention_dropout: Fraction = 0.1
    region_input: bool = Field(
        default=True, description="Tell each token which regions its patch holds."
    )
    region_dropout: Fraction = Field(
        default=0.2, description="Chance that an item is trained as if nothing knew its regions."
    )
    least_voxels: PositiveInt = Field(
        default=32, description="Voxels from which on a region is present."
    )

    @property
    def bounds(self) -> tuple[tuple[float, float], ...]:
        """(low, high) of each channel, HU."""
        return tuple(WINDOWS[w] if isinstance(w, str) else w for w in self.windows)


class TextEncoderSpec(Spec):
    """BERT: one on disk, or a small one from these numbers."""

    path: str | None = Field(
        default=None,
        description="Folder of a BERT with its tokenizer, as BioBERT's; null: the one below.",
    )
    vocabulary: Annotated[int, Field(ge=300)] = Field(
        default=4096, description="Tokens of the byte-level BPE, trained on the train split."
    )
    encoder: VisionTransformerSpec = VisionTransformerSpec(
        hidden_size=256, num_layers=4, num_heads=4
    )
    dropout: Fraction = 0.1
    pooling: TextPooling = Field(default="cls", description="What stands for a step's tokens.")
    rate: Fraction = Field(
        default=1.0, description="Learning rate, relative; 0: frozen. 0.1 is usual for `path`."
    )
    joined: bool = Field(
        default=False, description="All steps as one sequence, cut at max_tokens; else one each."
    )
    question: bool = Field(default=False, description="The question as the first step.")
    question_only: bool = Field(
        default=False, description="Control: the question alone, which no scan has for itself."
    )
    max_steps: PositiveInt = 32
    max_tokens: Annotated[int, Field(ge=4, le=512)] = Field(
        default=64, description="Of a step, or of all where they are joined."
    )


class VlmModelSpec(Spec):
    """A scan encoder and a text encoder with one space for both."""

    vision: SliceEncoderSpec = SliceEncoderSpec()
    text: TextEncoderSpec = TextEncoderSpec()
    embedding_size: PositiveInt = 768
    temperature: PositiveFloat = Field(default=0.07, description="At the start.")
    learnable_temperature: bool = True


class VlmNetworkSpec(VlmModelSpec):
    """A vision-language encoder with what it takes from its data."""

    name: Literal["vlm"] = "vlm"
    shape: Shape = Field(description="Voxels of a volume.")
    spacing: tuple[float, float, float] | None = Field(
        default=None, description="Of its voxels, mm; null: it varies."
    )
    tokens: PositiveInt = Field(description="Size of the text's vocabulary.")


class MoreScansSpec(Spec):
    """Scans of another run, as of slices, that are trained along."""

    folder: Annotated[str, Field(min_length=1)] = Field(description="Where that run wrote.")
    recipe: Name
    share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.3, description="Of the optimizer steps."
    )


class VlmSpec(TrainSpec):
    """Contrastive training of scans, their regions and their reports."""

    recipe: Name
    model: VlmModelSpec = VlmModelSpec()
    init_from: str | None = Field(
        default=None, description="Folder of a trained one to go on from; null: fresh."
    )
    augment: AugmentSpec = AugmentSpec()
    more: MoreScansSpec | None = Field(
        default=None, description="Another data set, as OmniAbnorm-CT-14K; null: this one alone."
    )
    exclude: str | None = Field(
        default=None, description="File of volumes to leave out, a name a line."
    )
    global_weight: NonNegativeFloat = 1.0
    region_weight: NonNegativeFloat = 0.5
    within_weight: NonNegativeFloat = Field(
        default=0.0, description="Of the term that tells the regions of one scan apart."
    )
    shuffled: bool = Field(
        default=False, description="Control: each scan with another's text; nothing to learn."
    )
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.05
    monitor: str = "val/mean_recall"
    monitor_mode: Literal["min", "max"] = "max"

    @model_validator(mode="after")
    def _check_terms(self) -> "VlmSpec":
        if not self.global_weight + self.region_weight + self.within_weight:
            raise ValueError(
                "global_weight, region_weight and within_weight are all 0: nothing is learnt; "
                "raise one"
            )
        return self


class VlmEvaluateSpec(Spec):
    """What is measured of a trained vision-language encoder on held-out scans."""

    model: Literal["vlm_pretrain", "vlm_finetune"] = "vlm_pretrain"
    pool: PositiveInt = Field(default=32, description="Scans among which one is looked for.")
    repeats: PositiveInt = Field(default=100, description="Drawn divisions into pools.")
    findings: Literal[16, 18] = Field(
        default=18, description="Zero-shot: CT-RATE's, or without medical material and nodes."
    )
    control: bool = Field(
        default=True, description="Also train on shuffled pairs: what chance looks like."
    )
    scans_per_batch: PositiveInt = 4
    seed: Seed = 0
