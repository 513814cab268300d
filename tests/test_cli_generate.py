"""`ct3d generate` as a user calls it."""

import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch

from ct3dlib.cli import main
from ct3dlib.config import CausalTokenizerSpec, LFQSpec, MaskGITNetworkSpec, RecipeSpec
from ct3dlib.inference.loaded import contract_of
from ct3dlib.models import build_model
from ct3dlib.models.exported import load_model, save_model

TOKENIZER = CausalTokenizerSpec(
    filters=4,
    num_res_blocks=1,
    channel_multipliers=(1, 2),
    temporal_downsample=(False,),
    norm_groups=2,
    quantizer=LFQSpec(bits=6),
)
TRANSFORMER = MaskGITNetworkSpec(
    hidden_size=12, num_layers=1, num_heads=2, radices=(8, 8), num_labels=2
)
AFFINE = np.array([[0, 0, 2.0, 5], [0, 2.0, 0, 6], [3.0, 0, 0, 7], [0, 0, 0, 1]])


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Return a folder with a tokenizer and a transformer of its tokens, neither trained."""
    torch.manual_seed(0)
    recipe = RecipeSpec(spacing=(3.0, 2.0, 2.0))
    folder = tmp_path / "models"
    save_model(
        folder / "lfq",
        build_model(TOKENIZER),
        spec=TOKENIZER,
        contract=contract_of(TOKENIZER, recipe, None),
        training={},
    )
    contract = {
        "grid": [2, 3, 4],
        "volume_shape": [3, 12, 16],
        "affine": AFFINE.tolist(),
        "labels": ["cyst", "stone"],
        "tokenizer_sha256": load_model(folder / "lfq").sha256,
    }
    transformer = build_model(TRANSFORMER)
    for block in transformer.blocks:  # zero at first, so that no label shows
        torch.nn.init.normal_(block.modulation.weight, std=0.5)
    save_model(folder / "maskgit", transformer, spec=TRANSFORMER, contract=contract, training={})
    return folder


def _ct3d(monkeypatch, capsys, *arguments: object, code: int = 0) -> str:
    monkeypatch.setattr(sys, "argv", ["ct3d", "generate", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    out = capsys.readouterr()
    assert exit_.value.code == code, out.err
    return " ".join((out.err if code else out.out).replace("│", " ").split())


def test_volumes_lie_on_the_grid_of_the_training_and_their_table_names_them(
    models, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    said = _ct3d(
        monkeypatch, capsys, models / "maskgit", "-o", out, "--num-samples", 3, "--label", "stone"
    )
    assert said == f"{out}: 3 volumes"
    table = pd.read_csv(out / "samples.csv")
    assert table["label"].tolist() == ["stone"] * 3
    assert table["seed"].nunique() == table["indices_sha256"].nunique() == 3
    arrays = []
    for name in table["file"]:
        image = nibabel.load(out / name)
        assert image.shape == (16, 12, 3)
        np.testing.assert_allclose(image.header.get_zooms(), (2, 2, 3))
        arrays.append(np.asarray(image.dataobj))
    assert not np.array_equal(arrays[0], arrays[1])


def test_a_seed_is_a_sample_and_a_label_changes_it(models, tmp_path, monkeypatch, capsys):
    def indices(name: str, *options: object) -> list[str]:
        _ct3d(monkeypatch, capsys, models / "maskgit", "-o", tmp_path / name, *options)
        return pd.read_csv(tmp_path / name / "samples.csv")["indices_sha256"].tolist()

    four = indices("four", "--seed", 5)
    assert indices("two", "--seed", 5, "--num-samples", 2) == four[:2]
    assert indices("other", "--seed", 6, "--num-samples", 1) != four[:1]
    asked = indices("asked", "--seed", 5, "--num-samples", 1, "--label", "cyst")
    assert asked != four[:1]
    guided = indices(
        "guided", *("--seed", 5, "--num-samples", 1, "--label", "cyst"), "--guidance", 4
    )
    assert guided != asked


@pytest.mark.parametrize("order", ["random", "halton"])
def test_other_orders_and_greedy_drawing(models, tmp_path, monkeypatch, capsys, order):
    options = [
        "--order",
        order,
        "--temperature",
        0,
        "--top-k",
        3,
        "--steps",
        4,
        "--schedule",
        "log2",
    ]
    _ct3d(monkeypatch, capsys, models / "maskgit", "-o", tmp_path / "out", *options)
    assert len(pd.read_csv(tmp_path / "out/samples.csv")) == 4


def test_what_is_wrong_is_said_before_anything_is_drawn(models, tmp_path, monkeypatch, capsys):
    def fails(*arguments: object, code: int) -> str:
        return _ct3d(monkeypatch, capsys, *arguments, code=code)

    transformer, out = models / "maskgit", tmp_path / "out"
    said = fails(transformer, "-o", out, "--label", "nodule", code=1)
    assert "label 'nodule' is unknown to this model; it knows cyst, stone" in said
    assert "not a transformer" in fails(models / "lfq", "-o", out, code=1)
    (tmp_path / "empty").mkdir()
    said = fails(transformer, "-o", out, "--tokenizer", tmp_path / "empty", code=1)
    assert "no model here has the weights" in said
    (tmp_path / "full").mkdir()
    (tmp_path / "full/sample_0000.nii.gz").touch()
    said = fails(transformer, "-o", tmp_path / "full", code=2)
    assert "is there already; give a folder that is new or" in said
    assert (tmp_path / "full/sample_0000.nii.gz").exists()
