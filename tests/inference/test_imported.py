"""Checkpoints of other programs as models that the rest of inference takes."""

import hashlib

import pytest
import torch

from ct3dlib.config import FSQSpec, MaisiTokenizerSpec, RecipeSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.inference.imported import import_checkpoint
from ct3dlib.inference.loaded import load_tokenizer
from ct3dlib.models import build_model
from ct3dlib.models.exported import load_model
from tests.models.btb3d_reference import Geometry, random_weights

RECIPE = RecipeSpec(spacing=(1.5, 0.75, 0.75), axes="dwh")
CPU = torch.device("cpu")


def test_a_btb3d_checkpoint_becomes_a_tokenizer(tmp_path):
    weights = random_weights(Geometry(32, 1, (1, 1), (True,), bits=4))
    whole = {f"tokenizer.{name}": value for name, value in weights.items()}
    path = tmp_path / "iter_7.ckpt"
    torch.save({**whole, "discriminator.a": torch.ones(1)}, path)
    import_checkpoint(path, "btb3d", RECIPE, folder=tmp_path / "models/btb3d")
    tokenizer = load_tokenizer(tmp_path / "models/btb3d", CPU)
    assert tokenizer.recipe == RECIPE
    assert tokenizer.sliding is None
    assert tokenizer.model.downsampling == (4, 4, 4)
    loaded = load_model(tmp_path / "models/btb3d")
    assert loaded.contract["axis_order"] == "dwh"
    assert loaded.contract["bit_order"] == "msb_first_channel0"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.training == {
        "imported": {"format": "btb3d", "file": "iter_7.ckpt", "sha256": sha256},
        "weights": 56,
        "left_out": {"discriminator": 1},
    }
    kernel = loaded.module.state_dict()["decoder.output.2.weight"]
    assert torch.equal(kernel, weights["decoder.conv_last.conv.weight"])


def test_a_btb3d_model_is_not_shown_other_axes(tmp_path):
    torch.save(random_weights(Geometry(32, 1, (1,), (), bits=3)), tmp_path / "a.ckpt")
    turned = RECIPE.model_copy(update={"axes": "dhw"})
    message = r"a\.ckpt: BTB3D sees volumes as D W H, the recipe says axes: dhw; give a recipe"
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(tmp_path / "a.ckpt", "btb3d", turned, folder=tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_prod9_export_becomes_a_tokenizer_with_its_windows(tmp_path):
    spec = MaisiTokenizerSpec(
        num_channels=(4, 8),
        num_res_blocks=(1, 1),
        attention_levels=(False, False),
        norm_groups=2,
        quantizer=FSQSpec(levels=(4, 4), variant="prod9"),
    )
    config = {
        "spatial_dims": 3,
        "levels": [4, 4],
        "num_channels": [4, 8],
        "num_res_blocks": [1, 1],
        "attention_levels": [False, False],
        "norm_num_groups": 2,
        "num_splits": 16,
    }
    state = build_model(spec).state_dict()
    torch.save({"state_dict": state, "config": config}, tmp_path / "autoencoder.pt")
    recipe = RecipeSpec(range=(0.0, 1.0))
    import_checkpoint(tmp_path / "autoencoder.pt", "prod9", recipe, folder=tmp_path / "model")
    tokenizer = load_tokenizer(tmp_path / "model", CPU)
    assert tokenizer.model.spec == spec
    assert tokenizer.sliding is not None
    assert tokenizer.sliding.roi_size == (64, 64, 64)
    assert tokenizer.sliding.overlap == 0.5
    for name, value in tokenizer.model.state_dict().items():
        assert torch.equal(value, state[name])
