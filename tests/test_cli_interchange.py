"""`ct3d export` and `ct3d import`, as a user calls them."""

import hashlib
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ct3dlib.cli import main
from ct3dlib.cli_interchange import read_recipe
from ct3dlib.config import RecipeSpec
from ct3dlib.errors import CheckpointError, ConfigError
from ct3dlib.inference.btb3d_files import write_btb3d
from ct3dlib.inference.decode import find_tokens
from ct3dlib.inference.encode import read_indices
from ct3dlib.inference.imported import import_checkpoint
from ct3dlib.inference.pretrained_encoder import load_encoder
from ct3dlib.models.exported import load_model
from tests.models.btb3d_reference import Geometry, random_weights
from tests.models.mae_reference import ARGUMENTS, Reference, reference

RECIPE = {"spacing": [1.5, 0.75, 0.75], "axes": "dwh"}
CUBE = {"size": [16, 16, 16], "window": [-1200, 800], "range": [0, 1]}


def _ct3d(monkeypatch, capsys, *arguments: object, code: int = 0) -> str:
    """Run a command and return what it printed, errors if it was to fail."""
    monkeypatch.setattr(sys, "argv", ["ct3d", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    out = capsys.readouterr()
    assert exit_.value.code == code, out.err
    return " ".join((out.err if code else out.out).split())


@pytest.fixture
def model(tmp_path, monkeypatch, capsys) -> Path:
    """Return the folder of an imported tokenizer of 18 bits."""
    checkpoint, folder = tmp_path / "iter_1.ckpt", tmp_path / "models/btb3d"
    torch.save(random_weights(Geometry(32, 1, (1,), (), bits=18)), checkpoint)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"recipes": {"btb3d": RECIPE}}))
    arguments = ("--format", "btb3d", "--recipe", "btb3d", "--config", tmp_path / "config.yaml")
    found = _ct3d(monkeypatch, capsys, "import", "checkpoint", checkpoint, *arguments, "-o", folder)
    assert found == str(folder)
    return folder


def test_tokens_come_in_and_go_out_unchanged(tmp_path, model, monkeypatch, capsys):
    theirs, ours, table = tmp_path / "theirs", tmp_path / "ours", tmp_path / "tokens/valid.parquet"
    theirs.mkdir()
    files = [f"valid_{i}_a_1.nii_embedded.npz" for i in (1, 2)]
    for seed, name in enumerate(files):
        latents = np.random.default_rng(seed).normal(size=(18, 2, 3, 4))
        write_btb3d(theirs / name, np.sign(latents).astype(np.float32), axes="dwh")
    took = ("--format", "btb3d", "--model", model, "-o", table)
    found = _ct3d(monkeypatch, capsys, "import", "tokens", theirs, *took)
    assert found == f"{table}: 2 volumes"
    assert read_indices(find_tokens(table, "valid_1_a_1")).shape == (2, 3, 4)

    gave = ("--format", "btb3d", "--models", model.parent)
    found = _ct3d(monkeypatch, capsys, "export", table, *gave, "-o", ours)
    assert found.split() == [str(ours / name) for name in files]
    for name in files:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    one = tmp_path / "one"
    _ct3d(monkeypatch, capsys, "export", table, *gave, "--volume", "valid_2_a_1", "-o", one)
    assert [path.name for path in one.iterdir()] == files[1:]
    assert "2 volumes" in _ct3d(monkeypatch, capsys, "describe", table)
    assert _ct3d(monkeypatch, capsys, "verify", table) == "1 tables, 0 problems"


def test_what_a_user_can_get_wrong_is_one_line(tmp_path, model, monkeypatch, capsys):
    took = ("--format", "btb3d", "--model", model)
    error = _ct3d(monkeypatch, capsys, "import", "tokens", tmp_path, *took, "-o", "t.zarr", code=2)
    assert "t.zarr: the name must end with .parquet" in error
    given = ("--format", "magvit", "--recipe", "btb3d", "-o", tmp_path / "x")
    error = _ct3d(monkeypatch, capsys, "import", "checkpoint", tmp_path, *given, code=2)
    assert "'magvit' is not one of 'btb3d'" in error
    given = ("--format", "btb3d", "--recipe", tmp_path / "r.json", "-o", tmp_path / "x")
    (tmp_path / "r.json").write_text(json.dumps(RECIPE))
    missing = tmp_path / "gone.ckpt"
    error = _ct3d(monkeypatch, capsys, "import", "checkpoint", missing, *given, code=1)
    assert error == f"ct3d: {missing}: no such file; give a checkpoint that torch.save wrote"


def test_a_recipe_is_found_by_name_or_file(tmp_path, model):
    config = tmp_path / "config.yaml"
    wanted = RecipeSpec.model_validate(RECIPE)
    assert read_recipe("btb3d", config) == wanted
    (tmp_path / "r.json").write_text(json.dumps(RECIPE))
    assert read_recipe(str(tmp_path / "r.json"), config) == wanted
    assert RecipeSpec.model_validate(load_model(model).contract["recipe"]) == wanted


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("recipes: {chest: {}}", "head", r"c\.yaml: no recipe 'head'; there are chest: give one"),
        ("recipes: {chest: {axes: hwd}}", "chest", "chest: not a recipe: axes: Input should be"),
        ("recipes: {chest: {axis: dwh}}", "chest", "axis: unknown key; did you mean 'axes'"),
        ("catalog: {}", "chest", r"c\.yaml: not a config with recipes; give another --config"),
        ("{", "chest", r"c\.yaml: not a config with recipes; give another --config"),
    ],
    ids=["name", "value", "key", "section", "yaml"],
)
def test_a_recipe_that_is_none_is_said(tmp_path, text, name, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(name, tmp_path / "c.yaml")


@pytest.fixture
def autoencoder(tmp_path) -> tuple[Path, Reference]:
    """Return a file of masked autoencoder's weights, and the network that they are of."""
    network, path = reference(), tmp_path / "tangerine.pth"
    weights = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"model": weights, "args": ARGUMENTS}, path)
    return path, network


def test_a_masked_autoencoder_comes_in_and_is_started_from(
    tmp_path, autoencoder, monkeypatch, capsys, caplog
):
    (path, network), folder = autoencoder, tmp_path / "models/tangerine"
    caplog.set_level(logging.INFO)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"recipes": {"mae256": CUBE}}))
    given = (path, "--format", "tangerine", "--config", tmp_path / "config.yaml", "-o", folder)
    assert _ct3d(monkeypatch, capsys, "import", "checkpoint", *given) == str(folder)
    assert f"{path}: not the published file of https://zenodo.org/records/18835750" in caplog.text
    assert f"{folder}: 74 weights imported from {path}, left out: none" in caplog.text

    recipe = RecipeSpec.model_validate(CUBE)
    encoder = load_encoder(folder, recipe)
    volumes = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted, _ = network.encode(volumes, torch.arange(64.0)[None], 64)
        torch.testing.assert_close(encoder(volumes), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"its window is \[-1000\.0, 400\.0\], init_from "):
        load_encoder(folder, recipe.model_copy(update={"window": (-1000.0, 400.0)}))

    described = _ct3d(monkeypatch, capsys, "describe", folder)
    assert f"{folder}: MaskedAutoencoder, " in described
    for wanted in ('"window": [ -1200.0, 800.0 ]', '"format": "tangerine"', '"num_heads": 4'):
        assert wanted in described


def test_the_published_file_is_known_by_its_checksum(tmp_path, autoencoder, monkeypatch, caplog):
    path, _ = autoencoder
    caplog.set_level(logging.INFO)
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr("ct3dlib.inference.imported._TANGERINE_MD5", md5)
    folder, recipe = tmp_path / "mae", RecipeSpec.model_validate(CUBE)
    import_checkpoint(path, "tangerine", recipe, folder=folder)
    assert f"{path}: the published file of https://zenodo.org/records/18835750" in caplog.text
    imported = load_model(folder).training["imported"]
    assert imported["record"] == "https://zenodo.org/records/18835750, CC-BY-NC-4.0"
    other = recipe.model_copy(update={"window": (-1000.0, 400.0)})
    message = (
        r"trained on HU in \[-1200\.0, 800\.0\], the recipe's window is \[-1000\.0, 400\.0\] of"
    )
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(path, "tangerine", other, folder=folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": None}, "sees whole volumes of one shape, the recipe keeps theirs; give a recipe"),
        (
            {"range": (-1, 1)},
            r"volumes in \[0\.0, 1\.0\], the recipe's range is \[-1\.0, 1\.0\]; give",
        ),
        (
            {"size": (16, 16, 17)},
            r"\(16, 16, 17\) voxels is no whole number of patches of \(4, 4, 4",
        ),
    ],
    ids=["size", "range", "patches"],
)
def test_a_recipe_that_a_masked_autoencoder_cannot_see_is_refused(
    tmp_path, autoencoder, changes, message
):
    recipe = RecipeSpec.model_validate({**CUBE, **changes})
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(autoencoder[0], "tangerine", recipe, folder=tmp_path / "mae")
    assert not (tmp_path / "mae").exists()


def test_a_recipe_of_another_grid_stretches_the_positions(tmp_path, autoencoder, caplog):
    caplog.set_level(logging.INFO)
    recipe = RecipeSpec.model_validate({**CUBE, "shape": (8, 16, 24), "axes": "dwh"})
    import_checkpoint(autoencoder[0], "tangerine", recipe, folder=tmp_path / "mae")
    assert load_model(tmp_path / "mae").spec.shape == (8, 24, 16)
    assert "positions of (4, 4, 4) patches stretched onto (2, 6, 4)" in caplog.text


def test_formats_whose_recipe_is_not_known_need_one(tmp_path, monkeypatch, capsys):
    given = (tmp_path / "a.ckpt", "--format", "prod9", "-o", tmp_path / "x")
    error = _ct3d(monkeypatch, capsys, "import", "checkpoint", *given, code=2)
    assert "a prod9 file does not say its recipe; give --recipe" in error
