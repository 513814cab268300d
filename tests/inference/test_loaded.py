"""Models of every kind from their files, with the windows that their contract names."""

import pytest
import torch

from ct3dlib.config import (
    AutoencoderSpec,
    CausalTokenizerSpec,
    KLAutoencoderSpec,
    MaisiTokenizerSpec,
    RecipeSpec,
    SlidingWindowSpec,
    TokenizerSpec,
)
from ct3dlib.errors import CheckpointError
from ct3dlib.inference.loaded import Tokenizer, load_tokenizer, tokenizer_contract
from ct3dlib.models import build_model
from ct3dlib.models.exported import save_model
from tests.inference.doubles import fsq_model

CPU = torch.device("cpu")
RECIPE = RecipeSpec(window=(-1000, 600), axes="dwh")
CAUSAL = CausalTokenizerSpec(
    filters=2, num_res_blocks=1, channel_multipliers=(1,), temporal_downsample=(), norm_groups=1
)
MAISI = MaisiTokenizerSpec(
    num_channels=(4, 4), num_res_blocks=(1, 1), attention_levels=(False, False), norm_groups=2
)
VAE = KLAutoencoderSpec(
    init_filters=4, smallest_filters=4, blocks_down=(1, 1), blocks_up=(1,), norm_groups=2
)


def section(model: AutoencoderSpec, **keys: object) -> TokenizerSpec:
    """Return the section of a training that cuts crops of 9 or 8 voxels."""
    crop = (9, 8, 8) if model.name == "causal" else (8, 8, 8)
    fixed = {"recipe": "r", "steps": 1, "batch_size": 1, "micro_batch_size": 1}
    return TokenizerSpec.model_validate({**fixed, "crop": crop, "model": model, **keys})


@pytest.mark.parametrize(
    ("model", "sliding", "order"),
    [
        (CAUSAL, None, "msb_first_channel0"),
        (MAISI, SlidingWindowSpec(roi_size=(8, 8, 8)), "mixed_radix_channel0_least"),
        (VAE, SlidingWindowSpec(roi_size=(8, 8, 8)), None),
    ],
    ids=["causal", "maisi", "vae"],
)
def test_every_kind_is_loaded_with_its_contract(tmp_path, model, sliding, order):
    contract = tokenizer_contract(section(model), RECIPE)
    assert contract["bit_order"] == order
    assert contract["axis_order"] == "dwh"
    module = build_model(model)
    save_model(tmp_path, module, spec=model, contract=contract, training={})
    loaded = load_tokenizer(tmp_path, CPU)
    assert loaded.recipe == RECIPE
    assert loaded.sliding == sliding
    assert not loaded.model.training
    assert torch.equal(loaded.model.last_layer(), module.last_layer())


def test_a_section_may_name_its_windows_and_whole_volumes_have_none():
    windows = SlidingWindowSpec(roi_size=(16, 8, 8), overlap=0.25, mode="hann")
    named = tokenizer_contract(section(VAE, sliding_window=windows), RECIPE)
    assert SlidingWindowSpec.model_validate(named["sliding_window"]) == windows
    whole = tokenizer_contract(section(VAE, patching="none", crop=None), RECIPE)
    assert whole["sliding_window"] is None


def test_windows_are_the_crops_of_the_last_stage():
    stages = [{"steps": 1, "crop": (8, 8, 8)}, {"steps": 1, "crop": (16, 8, 4)}]
    contract = tokenizer_contract(section(VAE, stages=stages), RECIPE)
    assert contract["sliding_window"]["roi_size"] == [16, 8, 4]


def test_an_older_contract_names_no_windows(tmp_path):
    contract = {"recipe": RECIPE.model_dump(mode="json")}
    save_model(tmp_path, build_model(CAUSAL), spec=CAUSAL, contract=contract, training={})
    assert load_tokenizer(tmp_path, CPU).sliding is None


@pytest.mark.parametrize(
    ("model", "windows", "message"),
    [
        (CAUSAL, {"roi_size": [8, 8, 8]}, "a causal model has windows of its own; leave sliding_w"),
        (VAE, {"roi_size": [8, 8]}, "sliding_window of its contract: .*roi_size"),
        (VAE, {"roi_size": [8, 8, 8], "mode": "cosine"}, "sliding_window of its contract: .*mode"),
    ],
    ids=["causal", "two axes", "unknown mode"],
)
def test_windows_that_are_none_are_refused(tmp_path, model, windows, message):
    contract = {"recipe": RECIPE.model_dump(mode="json"), "sliding_window": windows}
    save_model(tmp_path, build_model(model), spec=model, contract=contract, training={})
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        load_tokenizer(tmp_path, CPU)


def test_a_contract_without_a_recipe_is_refused(tmp_path):
    save_model(tmp_path, build_model(CAUSAL), spec=CAUSAL, contract={}, training={})
    with pytest.raises(CheckpointError, match="its contract holds no recipe"):
        load_tokenizer(tmp_path, CPU)


def test_the_quantizer_is_there_where_tokens_are_needed():
    with_tokens = Tokenizer(fsq_model(), RECIPE, None, "f" * 64)
    assert with_tokens.quantizer.codebook_size == 240
    without = Tokenizer(build_model(VAE), RECIPE, None, "e" * 64)
    with pytest.raises(CheckpointError, match=r"e{12}: a model of the name vae has .* no tokens"):
        _ = without.quantizer
