"""Sections of the tokenizers: their losses, their training, and the tokens they make."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from ct3dlib.config.autoencoder import AutoencoderSpec, KLAutoencoderSpec, MaisiTokenizerSpec
from ct3dlib.config.base import Fraction, Name, Shape, Spec
from ct3dlib.config.quantizer import LFQSpec
from ct3dlib.config.training import AugmentSpec, TrainSpec


class DiscriminatorSpec(Spec):
    """A PatchGAN discriminator (Isola et al., arXiv:1611.07004), 2D or 3D as the model."""

    filters: PositiveInt = Field(default=32, description="Channels of the first layer.")
    num_layers: PositiveInt = Field(default=3, description="Layers that halve the grid.")
    norm: Literal["instance", "group"] = "instance"


class PerceptualSpec(Spec):
    """The frozen network whose features are compared."""

    network: Literal["slices", "alex", "vgg16", "medicalnet"] = Field(
        default="slices",
        description="slices: trained by the pipeline; the others read their weights from a file.",
    )
    weights: str | None = Field(
        default=None, description="File or folder of the weights; null: the pipeline's own."
    )
    slices: PositiveInt = Field(
        default=8, description="Slices of a crop that are compared, drawn anew each step."
    )

    @model_validator(mode="after")
    def _check(self) -> "PerceptualSpec":
        if self.network != "slices" and self.weights is None:
            raise ValueError(
                f"perceptual.network {self.network} needs perceptual.weights, a local file; "
                f"nothing is downloaded"
            )
        return self


class TokenizerLossSpec(Spec):
    """Weights of an autoencoder's loss terms; a term of weight 0 is not computed."""

    l1: NonNegativeFloat = 5.0
    l2: NonNegativeFloat = 0.0
    ssim: NonNegativeFloat = Field(default=0.0, description="Of 1 - SSIM.")
    gradient: NonNegativeFloat = Field(default=0.0, description="Of finite differences.")
    eagle: NonNegativeFloat = Field(
        default=0.0, description="Of the high frequencies of local gradient variances, by slice."
    )
    focal_frequency: NonNegativeFloat = 0.0
    perceptual: NonNegativeFloat = 0.0
    feature_matching: NonNegativeFloat = Field(
        default=0.0, description="Of the discriminator's features."
    )
    adversarial: NonNegativeFloat = 0.0
    adversarial_loss: Literal["non_saturating", "hinge", "least_squares"] = "non_saturating"
    adversarial_start: NonNegativeInt = Field(
        default=0, description="Step from which the discriminator learns and is listened to."
    )
    adaptive_limit: PositiveFloat | None = Field(
        default=None,
        description="Scale the adversarial term to the gradient of the others, at most by this "
        "(Esser et al., arXiv:2012.09841); null: do not scale it.",
    )
    lecam: NonNegativeFloat = Field(
        default=0.0, description="Regularises the discriminator (Tseng et al., arXiv:2104.03310)."
    )
    r1: NonNegativeFloat = Field(
        default=0.0, description="Gradient penalty on real crops (Mescheder, arXiv:1801.04406)."
    )
    r1_every: PositiveInt = Field(default=20, description="Steps between gradient penalties.")
    entropy: NonNegativeFloat = Field(
        default=0.0, description="LFQ: of the entropy terms once the warm-up is over."
    )
    entropy_start: NonNegativeFloat = Field(default=0.0, description="LFQ: the same at step 0.")
    entropy_warmup_steps: NonNegativeInt = 2000
    diversity: NonNegativeFloat = Field(default=1.0, description="LFQ: gamma of the batch entropy.")
    sharpness: PositiveFloat = Field(
        default=100.0,
        description="LFQ: inverse temperature of the assignment whose entropy is measured.",
    )
    commitment: NonNegativeFloat = Field(default=0.0, description="LFQ: of |z - code|^2.")
    kl: NonNegativeFloat = Field(
        default=0.0, description="VAE: beta, of the divergence from N(0, 1), mean over latents."
    )
    kl_warmup: Fraction = Field(
        default=0.3, description="VAE: share of the steps over which beta rises from 0."
    )
    free_bits: NonNegativeFloat = Field(
        default=0.0, description="VAE: nats of each latent that cost nothing."
    )

    @property
    def compares(self) -> bool:
        """Whether any term sees both a crop and its reconstruction."""
        voxels = self.l1, self.l2, self.ssim, self.gradient, self.eagle, self.focal_frequency
        return any(voxels) or bool(self.perceptual or self.feature_matching)

    @property
    def needs_discriminator(self) -> bool:
        """Whether any term asks for one."""
        return bool(self.adversarial or self.feature_matching)


class SlidingWindowSpec(Spec):
    """How volumes larger than a training crop go through a model that is not causal."""

    roi_size: Shape = Field(description="Voxels of a window; a multiple of the model's step.")
    overlap: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.5, description="Share of a window that the next one covers too."
    )
    sw_batch_size: PositiveInt = Field(default=1, description="Windows at a time.")
    mode: Literal["gaussian", "constant", "hann"] = Field(
        default="gaussian", description="Weight of a window's voxels where windows overlap."
    )


class StageSpec(Spec):
    """A stage of a curriculum: what differs from the section; null: nothing does."""

    steps: PositiveInt
    crop: Shape | None = None
    batch_size: PositiveInt | None = None
    micro_batch_size: PositiveInt | None = None
    learning_rate: PositiveFloat | None = None
    freeze_encoder: bool | None = None
    loss: TokenizerLossSpec | None = None


class TokenizerSpec(TrainSpec):
    """Training of one tokenizer on crops of one recipe's volumes."""

    recipe: Name
    steps: NonNegativeInt = Field(
        description="Optimizer steps; 0: nothing is trained, init_from is used as it is."
    )
    patching: Literal["none", "full", "random_parts"] = Field(
        default="random_parts",
        description="none: whole volumes; full: every crop of a grid; random_parts: drawn crops.",
    )
    crop: Shape | None = Field(default=None, description="Voxels of a training crop.")
    model: AutoencoderSpec
    loss: TokenizerLossSpec = TokenizerLossSpec()
    discriminator: DiscriminatorSpec = DiscriminatorSpec()
    discriminator_rate: PositiveFloat = Field(
        default=1.0, description="Its learning rate, relative to the model's."
    )
    perceptual: PerceptualSpec = PerceptualSpec()
    augment: AugmentSpec = AugmentSpec()
    sliding_window: SlidingWindowSpec | None = Field(
        default=None,
        description="Part of the token format; null: windows of the crop's size, half overlapping.",
    )
    init_from: str | None = Field(
        default=None,
        min_length=1,
        description="Folder of a model of the same kind whose weights are the start.",
    )
    freeze_encoder: bool = Field(default=False, description="Train the decoder alone.")
    stages: tuple[StageSpec, ...] = Field(
        default=(), description="Trained one after the other, each from the last one's weights."
    )

    @field_validator("init_from")
    @classmethod
    def _expand_home(cls, value: str | None) -> str | None:
        return None if value is None else str(Path(value).expanduser())

    @model_validator(mode="after")
    def _check_steps(self) -> "TokenizerSpec":
        if self.steps == 0 and (self.init_from is None or self.stages):
            raise ValueError(
                "steps: 0 trains nothing and uses a model as it is; name its folder in init_from "
                "and leave stages out"
            )
        return self

    @model_validator(mode="after")
    def _check_crop(self) -> "TokenizerSpec":
        if (self.crop is None) != (self.patching == "none"):
            raise ValueError(
                "crop: give its voxels; only patching: none takes whole volumes and has no crop"
            )
        if self.crop is not None:
            check_fits("crop", self.crop, self.model)
        return self

    @model_validator(mode="after")
    def _check_stages(self) -> "TokenizerSpec":
        self.in_stages()
        return self

    @model_validator(mode="after")
    def _check_adaptive(self) -> "TokenizerSpec":
        if self.fully_shard and self.loss.adaptive_limit is not None:
            raise ValueError(
                "loss.adaptive_limit compares gradients of a whole layer, which fully_shard "
                "divides; set one of them to null or false"
            )
        return self

    @model_validator(mode="after")
    def _check_norm(self) -> "TokenizerSpec":
        batch = isinstance(self.model, KLAutoencoderSpec) and self.model.norm == "batch"
        if batch and self.activation_checkpointing:
            raise ValueError(
                "activation_checkpointing recomputes blocks, which would count twice in the "
                "statistics of model.norm: batch; choose another norm"
            )
        return self

    @model_validator(mode="after")
    def _check_terms(self) -> "TokenizerSpec":
        quantizer = getattr(self.model, "quantizer", None)
        terms = self.loss
        if not terms.compares:
            raise ValueError("loss: no term compares the reconstruction with its crop; give l1")
        if not isinstance(quantizer, LFQSpec) and (
            terms.entropy or terms.entropy_start or terms.commitment
        ):
            raise ValueError("loss.entropy, entropy_start and commitment are for an LFQ quantizer")
        if not isinstance(self.model, KLAutoencoderSpec) and (terms.kl or terms.free_bits):
            raise ValueError("loss.kl and free_bits are for a model of the name vae")
        return self

    @model_validator(mode="after")
    def _check_window(self) -> "TokenizerSpec":
        window = self.sliding_window
        if window is None:
            return self
        if self.model.name == "causal":
            raise ValueError(
                "sliding_window: a causal model has windows of its own; leave the key out"
            )
        check_fits("sliding_window.roi_size", window.roi_size, self.model)
        return self

    @property
    def wants_features(self) -> bool:
        """Whether any stage listens to the pipeline's own feature network."""
        own = self.perceptual.weights is None
        return own and any(stage.loss.perceptual for stage in self.in_stages())

    def in_stages(self) -> "list[TokenizerSpec]":
        """Return the training's sections, one a stage, each without stages of its own."""
        if not self.stages:
            return [self]
        specs = []
        for stage in self.stages:
            changed: dict[str, Any] = {
                name: value
                for name in StageSpec.model_fields
                if (value := getattr(stage, name)) is not None
            }
            fields = {**self.model_dump(), **{k: _dumped(v) for k, v in changed.items()}}
            try:
                specs.append(TokenizerSpec.model_validate({**fields, "stages": ()}))
            except ValidationError as error:
                what = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"stages[{len(specs)}]: {what}") from error
        return specs


def _dumped(value: Any) -> Any:
    """Return a spec as a mapping, anything else as it is."""
    return value.model_dump() if isinstance(value, Spec) else value


def check_fits(key: str, shape: Shape, model: AutoencoderSpec) -> None:
    """Raise unless a shape fills whole latents of a model."""
    down = model.downsampling
    first = 1 if model.name == "causal" else 0
    if (shape[0] - first) % down[0] or shape[1] % down[1] or shape[2] % down[2]:
        depth = f"1 + n x {down[0]}" if first else f"n x {down[0]}"
        raise ValueError(
            f"{key} {shape} must be ({depth}, n x {down[1]}, n x {down[2]}) for this model"
        )
    if isinstance(model, MaisiTokenizerSpec) and model.num_splits > 1:
        _check_splits(key, shape, model)


def _check_splits(key: str, shape: Shape, model: MaisiTokenizerSpec) -> None:
    """Raise unless a shape can be convolved in parts: MONAI drops voxels of uneven ones."""
    step = model.downsampling[0] * model.num_splits
    if shape[0] % step:
        raise ValueError(
            f"{key} {shape}: {shape[0]} slices are no multiple of {step}, the step of "
            f"{model.num_splits} num_splits; change it, or set num_splits 1"
        )
    if any(have < need for have, need in zip(shape, model.smallest, strict=True)):
        raise ValueError(
            f"{key} {shape} is too small for num_splits {model.num_splits}: at least "
            f"{model.smallest} voxels, or num_splits 1"
        )


class TokensSpec(Spec):
    """Which tokenizer encodes the data set."""

    tokenizer: Name
    windows_per_batch: PositiveInt = Field(
        default=8, description="Windows of one volume encoded together; part of the token format."
    )


class LatentsSpec(Spec):
    """Which tokenizer's latents are kept: the mean of a VAE, or what a quantizer is given."""

    tokenizer: Name
