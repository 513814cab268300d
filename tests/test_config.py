"""The config: one default, presets over it, clear errors, a schema that does not drift."""

import ast
import json
import re
import subprocess
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from ct3dlib.config import Config, RecipeSpec, Spec, load_config, schema
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
        weights = {"MEDSAM2_WEIGHTS": "/medsam2.pt", "MEDSAM2_SHA256": "0" * 64}
        config = load_config(merged(base, text), {"CT3D_RAW": "/scans", **weights})
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
    ("text", "environ", "found"),
    [
        ("${V}", {"V": "/a b"}, "/a b"),
        ("${V:def}", {}, "def"),
        ("${V:def}", {"V": ""}, ""),  # set, if to nothing
        ("x${V:}", {}, "x"),
        ("${V:s3://bucket/a:b/c}", {}, "s3://bucket/a:b/c"),
        ("${V:-5}", {}, "-5"),  # a default is what stands there: this is no shell
        ("${V}", {"V": "${W:x}"}, "${W:x}"),  # what the environment holds is not read again
        ("$V {V} 5$", {}, "$V {V} 5$"),
    ],
)
def test_variables_by_the_table(base, text, environ, found):
    title = load_config({**base, "report": {"title": text}}, environ).report.title
    assert title == found


@pytest.mark.parametrize("text", ["${A:${B:c}}", "${A:${B}}", "${A", "${}", "${1A}", "${A-b}"])
def test_what_looks_like_a_variable_and_is_none_is_refused(base, text):
    message = rf"^report\.title: {re.escape(repr(text))} cannot be read; .* holds no other variable"
    with pytest.raises(ConfigError, match=message):
        load_config({**base, "report": {"title": text}}, {"A": "a", "B": "b"})


def test_a_variable_in_a_list_or_a_section_is_named_by_its_key(base):
    change = {"samples": {"labels": ["Emphysema", "${LABEL}"]}}
    with pytest.raises(ConfigError, match=r"^samples\.labels\[1\]: .* LABEL is not set; export"):
        load_config(merged(base, change), {})
    change = {"transformer": {"steps": "${STEPS}"}}
    with pytest.raises(ConfigError, match=r"^transformer\.steps: .* STEPS is not set"):
        load_config(merged(base, change), {})


def test_variables_become_numbers_and_comments_are_not_read(base):
    text = """
    transformer:
      steps: ${STEPS:150}  # or ${NOT_SET}
      learning_rate: ${RATE:1e-4}
      compile: ${COMPILE:false}
      weight_decay: 1e-2  # YAML 1.1 reads a string
    # ${NOT_SET_EITHER}
    """
    section = load_config(merged(base, yaml.safe_load(text)), {"STEPS": "7"}).transformer
    assert (section.steps, section.learning_rate, section.compile) == (7, 1e-4, False)
    assert section.weight_decay == 0.01
    assert [type(x) for x in (section.steps, section.learning_rate)] == [int, float]
    with pytest.raises(ConfigError, match=r"^transformer\.steps: .*integer.*, found 'many'$"):
        load_config(merged(base, yaml.safe_load(text)), {"STEPS": "many"})


def test_the_sampler_of_prod9_is_understood(base, caplog):
    own = load_config(merged(base, {"samples": {"schedule": "log2"}}), {}).samples
    assert caplog.messages == []
    named = {"mask_value": -100, "scheduler_type": "log2"}
    prod9 = load_config(merged(base, {"samples": named}), {}).samples
    assert caplog.messages == ["samples.mask_value: has no effect, [MASK] is learned; leave it out"]
    assert prod9.model_dump_json() == own.model_dump_json()  # so that nothing is run again
    assert load_config(merged(base, {"samples": {"scheduler_type": "log"}}), {}).samples == own
    known = "'cosine', 'arccos', 'linear', 'sqrt', 'log2' or 'square'"
    with pytest.raises(ConfigError, match=rf"^samples\.schedule: .*{known}, found 'cubic'$"):
        load_config(merged(base, {"samples": {"scheduler_type": "cubic"}}), {})
    with pytest.raises(ConfigError, match=r"^transformer\.mask_value: unknown key"):
        load_config(merged(base, {"transformer": {"mask_value": -100}}), {})


# Read otherwise than as an attribute outside a check.
READ_OTHERWISE = {
    "l1": "voxel_terms looks weights up by the names of their terms",
    "l2": "voxel_terms looks weights up by the names of their terms",
    "laterality_safe": "is a check itself",
}


def _sections(spec: type[Spec]) -> set[type[Spec]]:
    """Return a section's type and those of all sections below it."""
    found, waiting = set(), [spec]
    while waiting:
        section = waiting.pop()
        if section not in found:
            found.add(section)
            waiting += [t for f in section.model_fields.values() for t in _specs_in(f.annotation)]
    return found


def _specs_in(annotation: Any) -> Iterator[type[Spec]]:
    """Yield the sections that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _specs_in(part)


def _attributes(tree: ast.AST) -> Iterator[str]:
    """Yield the names of all attributes that are read, but in functions that only check."""
    waiting = [tree]
    while waiting:
        match waiting.pop():
            case ast.FunctionDef(name=name) if name.startswith("_check"):
                continue
            case node:
                if isinstance(node, ast.Attribute):
                    yield node.attr
                waiting += ast.iter_child_nodes(node)


def test_every_key_is_read_somewhere(repository):
    read = set(READ_OTHERWISE)
    for folder in ("ct3dlib", "workflow_scripts"):
        for path in (repository / folder).rglob("*.py"):
            read |= set(_attributes(ast.parse(path.read_text())))
    for path in (repository / "rules").glob("*.smk"):
        read |= set(re.findall(r"\.([a-z_0-9]+)\b", path.read_text()))
        read |= set(re.findall(r'spec\("([a-z]+)"\)', path.read_text()))
    keys = {f"{s.__name__}.{key}" for s in _sections(Config) for key in s.model_fields}
    assert len(keys) > 100
    assert [key for key in sorted(keys) if key.partition(".")[2] not in read] == []


def test_the_yaml_of_the_pages_loads(repository, base):
    pages = [repository / "README.md", *sorted((repository / "docs").glob("*.md"))]
    inline = re.compile(r"`((?:tokenizers|samples|transformer|recipes|latents): \{[^`]*\})`")
    found = []
    for page in pages:
        text = page.read_text()
        found += re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        found += inline.findall(text)
    assert found
    for block in found:
        load_config(merged(base, yaml.safe_load(block)), {"CT3D_RAW": "/scans"})


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
            {"regions": {"labelmap": {"folder": "maps"}}, "catalog": {"dataset": "folder"}},
            "regions.labelmap.folder: maps lies below raw_root, where every file is taken for",
        ),
        (
            {"tokenizers": {"lfq": {"crop": [16, 80, 96]}}},
            r"crop \(16, 80, 96\) must be \(1 \+ n x",
        ),
        ({"tokenizers": {"lfq": {"batch_size": 3, "micro_batch_size": 2}}}, "must be a multiple"),
        ({"tokenizers": {"lfq": {"stop_at": 10**6}}}, "is beyond steps"),
        ({"recipes": {"chest": {"window": [5, 5]}}}, "window must rise"),
        ({"recipes": {"chest": {"size": [8, 8, 8]}}}, "give spacing or size, not both"),
        ({"recipes": {"chest": {"letterbox": True}}}, "letterbox fits pictures into size; give"),
        ({"recipes": {"chest": {"slices": 4}}}, "slices are of pictures, domain window8, not 'hu'"),
        (
            {"recipes": {"a": {"domain": "window8", "slices": 4, "size": [1, 8, 8]}}},
            r"size \[1, 8, 8\] would blend 4 slices; begin it with 4",
        ),
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
        (
            {"transformer": {"slab": {"size": 2, "context": 2}}},
            r"transformer.slab: .*context \(2\) must be less than size \(2\)",
        ),
        ({"transformer": {"text": {"embeddings": ""}}}, "embeddings: .* at least 1 character"),
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
