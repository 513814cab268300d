"""The config: one default, presets over it, clear errors, a schema that does not drift."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from ct3dlib.config import Config, RecipeSpec, load_config, schema
from ct3dlib.errors import ConfigError


def merged(base: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """Lay a preset over the base as Snakemake does."""
    out = dict(base)
    for key, value in preset.items():
        old = out.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        out[key] = merged(old, value) if both else value
    return out


@pytest.fixture
def base(repository: Path) -> dict[str, Any]:
    return yaml.safe_load((repository / "config.yaml").read_text())


def test_default_config_loads_without_environment(base):
    config = load_config(base, {})
    assert config.raw_root == "data/raw"
    assert config.tokenizers["lfq"].recipe in config.recipes


def test_every_preset_loads(repository, base):
    presets = sorted((repository / "configs").glob("*.yaml"))
    assert presets
    for preset in presets:
        text = yaml.safe_load(preset.read_text())
        config = load_config(merged(base, text), {"CT3D_RAW": "/scans"})
        assert isinstance(config, Config), preset.name


def test_environment_fills_values_and_a_missing_variable_is_named(base):
    named = {**base, "raw_root": "${CT3D_RAW:data/raw}"}
    assert load_config(named, {"CT3D_RAW": "/scans"}).raw_root == "/scans"
    assert load_config(named, {}).raw_root == "data/raw"
    with pytest.raises(ValueError, match=r"raw_root: the environment variable NOWHERE is not set"):
        load_config({**base, "raw_root": "${NOWHERE}/x"}, {})


def test_empty_default_and_text_around_a_variable(base):
    config = load_config({**base, "raw_root": "a/${B:}/c${D:d}"}, {})
    assert config.raw_root == "a//cd"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepz": 1}, r"^stepz: unknown key; did you mean 'steps'\?$"),
        ({"transformer": {"stps": 3}}, r"^transformer\.stps: unknown key; did you mean 'steps'\?$"),
        ({"transformer": {"steps": -3}}, r"^transformer\.steps: .*greater than 0, found -3$"),
        ({"transformer": {"max_grad_norm": float("inf")}}, "max_grad_norm: .*finite number"),
        ({"transformer": {"betas": [0.9, 1]}}, r"betas\.1: .*less than 1, found 1"),
        ({"transformer": {"seed": 2**63}}, "seed: .*less than"),
        ({"raw_root": ""}, "^raw_root: is empty; set it"),
        (
            {"recipes": {"chest": {"spacing": [400, 4, 4]}}},
            r"spacing\.0: .*less than or equal to 100",
        ),
        ({"tokenizers": {"lfq": {"crop": [17, 48, 104]}}}, r"crop \(17, 48, 104\) is larger than"),
        (
            {"tokenizers": {"lfq": {"crop": [17, 80, 96]}}, "recipes": {"chest": {"axes": "dwh"}}},
            r"crop \(17, 80, 96\) is larger than the shape \(65, 96, 80\)",
        ),
        ({"tokens": {"tokenizer": "vq"}}, "no tokenizer 'vq'; there are"),
        ({"regions": {"recipe": "brain"}}, "no recipe 'brain'; there are"),
        (
            {"tokenizers": {"lfq": {"crop": [16, 80, 96]}}},
            r"crop \(16, 80, 96\) must be \(1 \+ n x",
        ),
        ({"tokenizers": {"lfq": {"batch_size": 3, "micro_batch_size": 2}}}, "must be a multiple"),
        ({"tokenizers": {"lfq": {"stop_at": 10**6}}}, "is beyond steps"),
        ({"recipes": {"chest": {"window": [5, 5]}}}, "window must rise"),
        ({"recipes": {"chest": {"size": [8, 8, 8]}}}, "give spacing or size, not both"),
        ({"catalog": {"tune": 0.9}}, "must stay under 1"),
        ({"catalog": {"shards": {"test": 1}}}, "test"),
        ({"transformer": {"model": {"num_heads": 3}}}, "multiple of num_heads"),
        ({"transformer": {"model": {"bits_per_group": 7}}}, "must divide the tokenizer's 18 bits"),
        ({"tokenizers": {"fsq": {"loss": {"entropy": 0.1}}}}, "are for an LFQ quantizer"),
        (
            {"tokenizers": {"lfq": {"loss": {"kl": 0.1}}}},
            "kl and free_bits are for a model of the name vae",
        ),
        (
            {"tokenizers": {"lfq": {"sliding_window": {"roi_size": [17, 48, 48]}}}},
            "a causal model has windows of its own",
        ),
        ({"tokenizers": {"vae": {"crop": None}}}, "crop: give its voxels; only patching: none"),
        ({"tokenizers": {"vae": {"patching": "none"}}}, "crop: give its voxels"),
        (
            {"tokenizers": {"vae": {"sliding_window": {"roi_size": [15, 48, 48]}}}},
            r"roi_size \(15, 48, 48\) must be \(n x 4",
        ),
        (
            {"tokenizers": {"lfq": {"stages": [{"steps": 2, "crop": [16, 48, 48]}]}}},
            r"stages\[0\]: crop \(16, 48, 48\) must be",
        ),
        (
            {"tokenizers": {"lfq": {"stages": [{"steps": 2, "crop": [129, 48, 48]}]}}},
            r"crop \(129, 48, 48\) is larger than the shape \(65, 80, 96\)",
        ),
        (
            {"tokenizers": {"fsq": {"stages": [{"steps": 2, "loss": {"entropy": 1}}]}}},
            r"stages\[0\]: loss\.entropy, .* are for an LFQ quantizer",
        ),
        (
            {"tokenizers": {"vae": {"patching": "none", "crop": None}}},
            r"tokenizers\.vae takes whole volumes: shape \(65, 80, 96\) must be \(n x 4",
        ),
        ({"tokenizers": {"vae": {"loss": {"l2": 0}}}}, "no term compares the reconstruction"),
        (
            {"tokenizers": {"vae": {"activation_checkpointing": True, "model": {"norm": "batch"}}}},
            "would count twice in the statistics of model.norm: batch",
        ),
        (
            {"tokenizers": {"vae": {"fully_shard": True, "loss": {"adaptive_limit": 10}}}},
            "adaptive_limit compares gradients of a whole layer, which fully_shard divides",
        ),
        ({"tokenizers": {"vae": {"steps": 0}}}, "steps: 0 trains nothing .* name its folder in"),
        ({"tokenizers": {"vae": {"init_from": ""}}}, "init_from: .* at least 1 character"),
        ({"tokens": {"tokenizer": "vae"}}, "'vae' has no codebook, so it makes no tokens"),
        ({"latents": {"tokenizer": "kl"}}, "latents.tokenizer: no tokenizer 'kl'"),
        ({"features": {"recipe": "brain"}}, "features.recipe: no recipe 'brain'"),
        (
            {"features": None, "tokenizers": {"vae": {"loss": {"perceptual": 1}}}},
            "there is no section `features` to train",
        ),
        (
            {"tokenizers": {"vae": {"perceptual": {"network": "vgg16"}}}},
            r"network vgg16 needs perceptual\.weights, a local file",
        ),
    ],
)
def test_wrong_values_are_refused_by_name(base, change, message):
    with pytest.raises(ConfigError, match=message):
        load_config(merged(base, change), {})


@pytest.mark.parametrize("domain", ["uint8", "window8"])
def test_8_bit_values_have_their_window_without_being_told(domain):
    assert RecipeSpec(domain=domain).window == (0, 255)
    # The rule of the volumes does not name a window, which no stored voxel depends on.
    said = RecipeSpec(domain=domain, range=(0, 1)).model_dump_json(exclude={"window", "range"})
    assert RecipeSpec.model_validate_json(said).window == (0, 255)
    with pytest.raises(ValueError, match="window of 8-bit values is"):
        RecipeSpec(domain=domain, window=(0, 100))


def test_specs_are_frozen_and_hashable(base):
    config = load_config(base, {})
    assert hash(config.recipes["chest"]) == hash(load_config(base, {}).recipes["chest"])
    with pytest.raises(ValidationError):
        config.recipes["chest"].min_slices = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_a_section_survives_json(base):
    config = load_config(base, {})
    spec = config.tokenizers["lfq"]
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec


def test_schema_matches_the_specs(repository, update_golden):
    path = repository / "config.schema.json"
    text = json.dumps(schema(), indent=2) + "\n"
    if update_golden:
        path.write_text(text)
    assert path.read_text() == text, "run `make schema`"


def test_config_imports_no_torch():
    code = "import sys, ct3dlib.config, ct3dlib.fingerprint; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
