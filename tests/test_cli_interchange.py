"""`ct3d export` and `ct3d import`, as a user calls them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ct3dlib.cli import main
from ct3dlib.cli_interchange import read_recipe
from ct3dlib.config import RecipeSpec
from ct3dlib.errors import ConfigError
from ct3dlib.inference.btb3d_files import write_btb3d
from ct3dlib.inference.decode import find_tokens
from ct3dlib.inference.encode import read_indices
from ct3dlib.models.exported import load_model
from tests.models.btb3d_reference import Geometry, random_weights

RECIPE = {"spacing": [1.5, 0.75, 0.75], "axes": "dwh"}


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
