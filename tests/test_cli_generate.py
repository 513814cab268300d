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
from ct3dlib.scan.nifti import write_nifti
from ct3dlib.scan.volume import Volume

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
    recipe = RecipeSpec(spacing=(3.0, 2.0, 2.0), hu_state="hu", min_slices=2)
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
    spec = TRANSFORMER.model_copy(update={"source": True})
    translator = build_model(spec)
    for block in translator.blocks:
        torch.nn.init.normal_(block.modulation.weight, std=0.5)
    save_model(folder / "translator", translator, spec=spec, contract=contract, training={})
    return folder


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Return a scan of another grid than the training's."""
    array = np.random.default_rng(0).integers(-1000, 1000, (12, 17, 14)).astype(np.int16)
    affine = np.array([[0, 0, -2.0, 40], [0, -2.0, 0, 30], [2.5, 0, 0, -9], [0, 0, 0, 1]])
    path = tmp_path / "scan.nii.gz"
    write_nifti(path, Volume(array, affine))
    return path


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


def test_a_scan_is_translated_on_its_own_grid(models, scan, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    asked = ("--source", scan, "--source-label", "cyst", "--label", "stone", "--num-samples", 2)
    _ct3d(monkeypatch, capsys, models / "translator", "-o", out, *asked)
    table = pd.read_csv(out / "samples.csv")
    assert table["indices_sha256"].nunique() == 2
    source = nibabel.load(scan)
    for name in table["file"]:
        image = nibabel.load(out / name)
        assert image.shape == source.shape
        np.testing.assert_allclose(image.affine, source.affine, atol=1e-4)

    def first(name: str, *changes: object) -> str:
        _ct3d(monkeypatch, capsys, models / "translator", "-o", tmp_path / name, *asked, *changes)
        return pd.read_csv(tmp_path / name / "samples.csv")["indices_sha256"][0]

    before = table["indices_sha256"][0]
    assert first("again") == before
    assert first("from", "--source-label", "stone") != before
    assert first("to", "--label", "cyst", "--seed", 0) == before  # two labels, one after another


def test_who_translates_and_what_is_said(models, scan, tmp_path, monkeypatch, capsys):
    def fails(*arguments: object, code: int) -> str:
        return _ct3d(monkeypatch, capsys, *arguments, "-o", tmp_path / "out", code=code)

    said = fails(models / "maskgit", "--source", scan, code=1)
    assert "was trained without sources (transformer.source)" in said
    said = fails(models / "translator", "--source", scan, "--source-label", "t1", code=1)
    assert "label 't1' is unknown to this model" in said
    assert "belong to a --source" in fails(models / "translator", "--source-label", "cyst", code=2)
    assert "no such file" in fails(models / "translator", "--source", tmp_path / "x.nii", code=1)
