"""Every setting of the pipeline as frozen specs. Standard library and pydantic only.

`load_config` turns the mapping that Snakemake read from config.yaml and a preset into a `Config`;
each step gets the JSON of its own section and nothing else.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator

from ct3dlib.config.base import SPLITS, Fraction, Name, Shape, Spec, Split, Triple
from ct3dlib.config.data import (
    CatalogSpec,
    ClassicalRegionsSpec,
    Dataset,
    Domain,
    Fault,
    PhantomSpec,
    RecipeSpec,
    RegionsSpec,
)
from ct3dlib.config.explain import explain
from ct3dlib.config.tokenizer import (
    CausalTokenizerSpec,
    LFQSpec,
    TokenizerLossSpec,
    TokenizerSpec,
    TokensSpec,
)
from ct3dlib.config.training import AugmentSpec, EarlyStopSpec, TrainSpec
from ct3dlib.config.transformer import (
    BlocksSpec,
    MaskGITNetworkSpec,
    MaskGITSpec,
    MaskSchedule,
    SamplesSpec,
    TransformerSpec,
)
from ct3dlib.errors import ConfigError

__all__ = [
    "SPLITS",
    "AugmentSpec",
    "BlocksSpec",
    "CatalogSpec",
    "CausalTokenizerSpec",
    "ClassicalRegionsSpec",
    "Config",
    "Dataset",
    "Domain",
    "EarlyStopSpec",
    "Fault",
    "Fraction",
    "LFQSpec",
    "MaskGITNetworkSpec",
    "MaskGITSpec",
    "MaskSchedule",
    "Name",
    "PhantomSpec",
    "RecipeSpec",
    "RegionsSpec",
    "ReportSpec",
    "SamplesSpec",
    "Shape",
    "Spec",
    "Split",
    "TokenizerLossSpec",
    "TokenizerSpec",
    "TokensSpec",
    "TrainSpec",
    "TransformerSpec",
    "Triple",
    "load_config",
    "schema",
]


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
    regions: RegionsSpec
    tokenizers: dict[Name, TokenizerSpec]
    tokens: TokensSpec
    transformer: TransformerSpec
    samples: SamplesSpec = SamplesSpec()
    report: ReportSpec = ReportSpec()

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
            shape = recipe and recipe.shape
            if shape and any(c > s for c, s in zip(tokenizer.crop, shape, strict=True)):
                raise ValueError(
                    f"tokenizers.{name}.crop {tokenizer.crop} is larger than the shape {shape} of "
                    f"its recipe {tokenizer.recipe!r}"
                )
        return self

    @model_validator(mode="after")
    def _check_names(self) -> "Config":
        readers = {f"tokenizers.{name}.recipe": t.recipe for name, t in self.tokenizers.items()}
        for key, recipe in {**readers, "regions.recipe": self.regions.recipe}.items():
            if recipe not in self.recipes:
                raise ValueError(f"{key}: no recipe {recipe!r}; there are {sorted(self.recipes)}")
        if "transformer" in self.tokenizers:
            raise ValueError("tokenizers: the name 'transformer' is taken; choose another")
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
                    raise ConfigError(
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
        ConfigError: An unknown key, a value out of range, names that do not fit each other, or an
            environment variable that is missing and has no default; the message names the key.
    """
    try:
        return Config.model_validate(
            _expand(mapping, os.environ if environ is None else environ, "")
        )
    except ValidationError as error:
        raise ConfigError(explain(error, Config.model_json_schema())) from error


def schema() -> dict[str, Any]:
    """Return the JSON schema of config.yaml."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
