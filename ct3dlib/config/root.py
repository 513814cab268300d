"""The whole config: its sections, what they must agree on, and how it is read."""

import os
from collections.abc import Mapping
from typing import Any

from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator

from ct3dlib.config.base import Name, Spec
from ct3dlib.config.classifier import ClassifierSpec
from ct3dlib.config.data import CatalogSpec, PhantomSpec, RecipeSpec
from ct3dlib.config.encoder import check_patches
from ct3dlib.config.explain import explain
from ct3dlib.config.features import FeaturesSpec
from ct3dlib.config.finetune import FromEncoderSpec, MaeFinetuneSpec, MaeSegmentSpec
from ct3dlib.config.generation import GenerationSpec
from ct3dlib.config.mae import EmbeddingsSpec, MaeSpec, MaskedAutoencoderNetworkSpec
from ct3dlib.config.regions import RegionsSpec
from ct3dlib.config.tokenizer import LatentsSpec, TokenizerSpec, TokensSpec, check_fits
from ct3dlib.config.transformer import SamplesSpec, TransformerSpec
from ct3dlib.config.variables import expand
from ct3dlib.errors import ConfigError

# Folders of models/ that are not tokenizers'.
_MODELS = ("transformer", "features", "classifier", "mae", "mae_finetune", "mae_segment")


class ReportSpec(Spec):
    """The HTML report."""

    title: str = "ct3d report"
    num_examples: PositiveInt = Field(default=4, description="Volumes shown of each kind.")


class Config(Spec):
    """config.yaml with a preset laid over it."""

    raw_root: str = Field(
        description="Folder of the raw scans; relative to the working directory, or from ~."
    )
    phantom: PhantomSpec | None = Field(
        default=None, description="Generate this cohort into raw_root."
    )
    catalog: CatalogSpec
    recipes: dict[Name, RecipeSpec]
    regions: RegionsSpec | None = Field(
        default=None, description="Region masks; null: there are none, as of MR and pictures."
    )
    features: FeaturesSpec | None = Field(
        default=None, description="Slice features for perceptual terms; null: there are none."
    )
    tokenizers: dict[Name, TokenizerSpec]
    tokens: TokensSpec
    latents: LatentsSpec | None = Field(
        default=None, description="What latents/{split}.done holds; null: there is no such target."
    )
    transformer: TransformerSpec
    samples: SamplesSpec = SamplesSpec()
    generation: GenerationSpec = GenerationSpec()
    classifier: ClassifierSpec | None = Field(
        default=None, description="Judge of the samples' labels; null: nobody judges them."
    )
    mae: MaeSpec | None = Field(
        default=None, description="Pretraining of a masked autoencoder; null: there is none."
    )
    mae_finetune: MaeFinetuneSpec | None = Field(
        default=None, description="Fine-tuning of its encoder on labels; null: there is none."
    )
    mae_segment: MaeSegmentSpec | None = Field(
        default=None, description="Segmentation over its encoder; null: there is none."
    )
    embeddings: EmbeddingsSpec | None = Field(
        default=None, description="Embeddings of all splits; null: there are none."
    )
    report: ReportSpec = ReportSpec()

    @field_validator("tokenizers", mode="before")
    @classmethod
    def _drop_null(cls, value: Any) -> Any:
        """Leave out what a preset set to null: it does not want that tokenizer of config.yaml."""
        if isinstance(value, Mapping):
            return {name: section for name, section in value.items() if section is not None}
        return value

    @field_validator("raw_root")
    @classmethod
    def _expand_home(cls, value: str) -> str:
        if not value:
            raise ValueError(
                "is empty; set it (or CT3D_RAW, where it comes from there) to a folder"
            )
        return os.path.expanduser(value)  # noqa: PTH111  (a Path would turn "a//b" into "a/b")

    @model_validator(mode="after")
    def _check_crops(self) -> "Config":
        for name, tokenizer in self.tokenizers.items():
            recipe = self.recipes.get(tokenizer.recipe)
            if recipe is None or recipe.seen_shape is None:
                continue
            shape = recipe.seen_shape
            for stage in tokenizer.in_stages():
                if stage.crop is None:
                    check_fits(f"tokenizers.{name} takes whole volumes: shape", shape, stage.model)
                elif any(c > s for c, s in zip(stage.crop, shape, strict=True)):
                    raise ValueError(
                        f"tokenizers.{name}.crop {stage.crop} is larger than the shape {shape} of "
                        f"its recipe {tokenizer.recipe!r}"
                    )
        return self

    @model_validator(mode="after")
    def _check_features(self) -> "Config":
        for name, tokenizer in self.tokenizers.items():
            if tokenizer.wants_features and self.features is None:
                raise ValueError(
                    f"tokenizers.{name}.loss.perceptual: there is no section `features` to train "
                    f"the network of slices; add it, or give perceptual.weights"
                )
        return self

    @model_validator(mode="after")
    def _check_names(self) -> "Config":
        readers = {f"tokenizers.{name}.recipe": t.recipe for name, t in self.tokenizers.items()}
        if self.regions is not None:
            readers["regions.recipe"] = self.regions.recipe
        if self.features is not None:
            readers["features.recipe"] = self.features.recipe
            if self.regions is None:
                raise ValueError("features learn from regions and there is no section `regions`")
        readers |= {f"{name}.recipe": section.recipe for name, section in self.encoders().items()}
        for key, recipe in readers.items():
            if recipe not in self.recipes:
                raise ValueError(f"{key}: no recipe {recipe!r}; there are {sorted(self.recipes)}")
        maps = self.regions and self.regions.labelmap
        if maps is not None and self.catalog.dataset == "folder" and maps.is_below(self.raw_root):
            raise ValueError(
                f"regions.labelmap.folder: {maps.folder} lies below raw_root, where every file is "
                f"taken for a scan; move it out and give its absolute path"
            )
        for taken in _MODELS:
            if taken in self.tokenizers:
                raise ValueError(f"tokenizers: the name {taken!r} is taken; choose another")
        return self

    @model_validator(mode="after")
    def _check_tokens(self) -> "Config":
        if self.latents is not None and self.latents.tokenizer not in self.tokenizers:
            raise ValueError(
                f"latents.tokenizer: no tokenizer {self.latents.tokenizer!r}; there are "
                f"{sorted(self.tokenizers)}"
            )
        if self.tokens.tokenizer not in self.tokenizers:
            raise ValueError(
                f"tokens.tokenizer: no tokenizer {self.tokens.tokenizer!r}; there are "
                f"{sorted(self.tokenizers)}"
            )
        model = self.tokenizers[self.tokens.tokenizer].model
        if model.name == "vae":
            raise ValueError(
                f"tokens.tokenizer: {self.tokens.tokenizer!r} has no codebook, so it makes no "
                f"tokens; name one with a quantizer"
            )
        self.transformer.model.radices(model.quantizer)
        return self

    @model_validator(mode="after")
    def _check_encoders(self) -> "Config":
        for name, section in self.encoders().items():
            recipe = self.recipes[section.recipe]
            shape = recipe.seen_whole
            if shape is None:
                raise ValueError(
                    f"{name}: takes whole volumes of one shape; give its recipe "
                    f"{section.recipe!r} a shape or a size"
                )
            if isinstance(section, MaeSpec):
                MaskedAutoencoderNetworkSpec(**section.model.model_dump(), shape=shape)
            elif section.model is not None:
                check_patches(shape, section.model, f"{name}: a volume")
            start = getattr(section, "init_from", None)
            if start == "models/mae" and self.mae is None:
                raise ValueError(f"{name}.init_from: there is no section `mae` that trains {start}")
        segment, regions = self.mae_segment, self.regions and self.regions.recipe
        if segment and "regions" in segment.masks and segment.recipe != regions:
            raise ValueError(
                f"mae_segment.masks: regions are of recipe {regions!r}, not {segment.recipe!r}"
            )
        if self.embeddings is not None and getattr(self, self.embeddings.model) is None:
            raise ValueError(f"embeddings.model: there is no section {self.embeddings.model!r}")
        return self

    def encoders(self) -> dict[str, MaeSpec | FromEncoderSpec]:
        """Return the sections that train a volume encoder, by name."""
        named = {"mae": self.mae, "mae_finetune": self.mae_finetune}
        named["mae_segment"] = self.mae_segment
        return {name: section for name, section in named.items() if section is not None}


def load_config(mapping: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Config:
    """Return the checked config.

    Args:
        mapping: What YAML gave; ${NAME} and ${NAME:default} come from the environment.
        environ: The environment; that of the process when absent.

    Raises:
        ConfigError: An unknown key, a value out of range, names that do not fit each other, or an
            environment variable that is missing and has no default, or cannot be read; the message
            names the key.
    """
    try:
        return Config.model_validate(expand(mapping, os.environ if environ is None else environ))
    except ValidationError as error:
        raise ConfigError(explain(error, Config.model_json_schema())) from error


def load_regions(
    mapping: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> tuple[str, RegionsSpec]:
    """Return `raw_root` and the section `regions` of a config, or of a preset alone.

    What else the mapping holds is not looked at; its recipe and raw_root may be missing.

    Args:
        mapping: What YAML gave, with variables as `load_config` takes them.
        environ: The environment; that of the process when absent.

    Raises:
        ConfigError: There is no such section, or as `load_config`.
    """
    if not isinstance(mapping.get("regions"), Mapping):
        raise ConfigError("there is no section regions; give a config or a preset that has one")
    parts = {key: mapping[key] for key in ("raw_root", "regions") if key in mapping}
    found = expand(parts, os.environ if environ is None else environ)
    try:
        section = RegionsSpec.model_validate({"recipe": "any", **found["regions"]})
    except ValidationError as error:
        raise ConfigError(explain(error, RegionsSpec.model_json_schema())) from error
    return os.path.expanduser(found.get("raw_root", ".")), section  # noqa: PTH111  (as raw_root)


def schema() -> dict[str, Any]:
    """Return the JSON schema of config.yaml."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
