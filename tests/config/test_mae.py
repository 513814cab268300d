"""What the sections of the masked autoencoder must agree on."""

from pathlib import Path

import pytest
import yaml

from ct3dlib.config import Config, VolumeEncoderNetworkSpec, load_config
from ct3dlib.errors import ConfigError
from tests.test_config import merged


@pytest.fixture
def base(repository: Path) -> dict:
    return yaml.safe_load((repository / "config.yaml").read_text())


def load(base: dict, **changes: object) -> Config:
    return load_config(merged(base, changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mae": {"model": {"patch_size": [7, 16, 16]}}}, r"no whole number of patches of \(7, 16"),
        ({"mae": {"model": {"mask_ratio": 0.9999}}}, "leaves none of 150 patches visible"),
        ({"mae": {"recipe": "nowhere"}}, "mae.recipe: no recipe 'nowhere'"),
        ({"mae": {"model": {"encoder": "huge"}}}, "mae.model.encoder"),
        ({"mae": {"model": {"encoder": {"num_heads": 5}}}}, "must be a multiple of num_heads"),
        ({"mae": None}, "mae_finetune.init_from: there is no section `mae`"),
        ({"recipes": {"chest": {"shape": None}}}, "give its recipe 'chest' a shape or a size"),
        ({"mae_finetune": {"init_from": None}}, "give init_from, or model and init_from: null"),
        ({"mae_finetune": {"frozen": True}}, "frozen trains the head of a pretrained encoder"),
        ({"mae_finetune": {"findings": ["a", "a"]}}, "findings: a is named twice; name each once"),
        ({"mae_finetune": {"findings": []}}, "mae_finetune.findings"),
        ({"mae_finetune": {"labels": {"csv": ""}}}, "mae_finetune.labels.csv"),
        (
            {"mae_finetune": {"labels": {"csv": "a", "columns": ["b", "b"]}}},
            "columns: b is named twice",
        ),
        ({"mae_finetune": {"task": "regression"}}, "regression needs numbers; give labels.csv"),
        (
            {"mae_finetune": {"labels": {"csv": "a"}, "findings": ["b"]}},
            "findings are the catalog's; with labels.csv name its columns",
        ),
        (
            {"mae_finetune": {"task": "binary", "labels": {"csv": "a", "columns": ["b", "c"]}}},
            "task: binary has one column",
        ),
        (
            {"mae_finetune": {"task": "multiclass", "small_budget": {"patients": 2, "steps": 1}}},
            "small_budget compares findings; task: multiclass has none",
        ),
        (
            {"mae_finetune": {"small_budget": {"patients": 2, "steps": 1, "seeds": [1, 1]}}},
            "seeds: 1 is named twice",
        ),
        (
            {
                "mae_finetune": {
                    "task": "regression",
                    "labels": {"csv": "a"},
                    "label_smoothing": 0.1,
                }
            },
            "label_smoothing is of classes",
        ),
        ({"regions": {"recipe": "vlm64"}}, "mae_segment.masks: regions are of recipe 'vlm64'"),
        (
            {"mae_finetune": None, "embeddings": {"model": "mae_finetune"}},
            "embeddings.model: there is no section 'mae_finetune'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused_by_its_key(base, changes, message):
    with pytest.raises(ConfigError, match=message):
        load(base, **changes)


def test_patches_are_held_against_the_axes_that_models_see(base):
    recipe = {"shape": [26, 40, 48], "axes": "dwh"}
    changes = {"recipes": {"chest": recipe}, "tokenizers": {"lfq": {"crop": [17, 16, 16]}}}
    changes["tokenizers"] |= {"fsq": {"crop": [17, 16, 16]}, "vae": {"crop": [16, 16, 16]}}
    assert load(base, **changes, mae={"model": {"patch_size": [13, 12, 10]}}).mae
    with pytest.raises(ConfigError, match="no whole number of patches"):
        load(base, **changes, mae={"model": {"patch_size": [13, 10, 12]}})


def test_sizes_by_name_and_by_numbers_are_the_same_section(base):
    found = load(base, mae={"model": {"encoder": "base"}}).mae
    assert found.model.encoder.hidden_size == 768
    assert load(base).mae.model.encoder.hidden_size == 96


def test_padded_grids_hold_the_whole_volume():
    spec = VolumeEncoderNetworkSpec(shape=(250, 250, 250), pad=True)
    assert spec.grid == (16, 16, 16)
    with pytest.raises(ValueError, match="or set pad to true"):
        VolumeEncoderNetworkSpec(shape=(250, 250, 250))
