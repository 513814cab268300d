"""`ct3d generate` as a user calls it."""

import inspect
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch

from ct3dlib.cli import main
from ct3dlib.cli_generate import generate
from ct3dlib.config import (
    CausalTokenizerSpec,
    FSQSpec,
    LFQSpec,
    MaisiTokenizerSpec,
    MaskGITNetworkSpec,
    RecipeSpec,
    SamplesSpec,
    SlidingWindowSpec,
)
from ct3dlib.inference.decode import to_volume
from ct3dlib.inference.generate import label_conditions
from ct3dlib.inference.loaded import contract_of, load_tokenizer, load_transformer
from ct3dlib.inference.reconstruct import decode_indices
from ct3dlib.inference.sampler import Prompt, sample_indices, sample_seeds
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
MAISI = MaisiTokenizerSpec(
    num_channels=(4, 4),
    num_res_blocks=(1, 1),
    attention_levels=(False, False),
    norm_groups=2,
    quantizer=FSQSpec(levels=(8, 8)),
)
WINDOWS = SlidingWindowSpec(roi_size=(4, 8, 8), overlap=0.5)
TRANSFORMER = MaskGITNetworkSpec(
    hidden_size=12, num_layers=1, num_heads=2, radices=(8, 8), num_labels=2
)
CPU = torch.device("cpu")
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
    save_model(
        folder / "maisi",
        build_model(MAISI),
        spec=MAISI,
        contract=contract_of(MAISI, recipe, WINDOWS),
        training={},
    )
    contract |= {"tokenizer_sha256": load_model(folder / "maisi").sha256, "grid": [4, 6, 8]}
    contract |= {"volume_shape": [8, 12, 16]}
    save_model(folder / "windowed", transformer, spec=TRANSFORMER, contract=contract, training={})
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
        monkeypatch,
        capsys,
        "--checkpoint",
        models / "maskgit",
        "-o",
        out,
        "--num-samples",
        3,
        "--label",
        "stone",
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
        _ct3d(
            monkeypatch, capsys, "--checkpoint", models / "maskgit", "-o", tmp_path / name, *options
        )
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


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (("--overlap", 0), {"overlap": 0.0}),
        (("--roi-size", 2, 4, 6), {"roi_size": (2, 4, 6)}),
        (("--mode", "constant", "--sw-batch-size", 3), {"mode": "constant", "sw_batch_size": 3}),
    ],
    ids=["overlap 0", "roi size", "mode and batch"],
)
def test_tokens_are_decoded_in_the_windows_asked_for(
    models, tmp_path, options, changes, monkeypatch, capsys
):
    given = ("--checkpoint", models / "windowed", "--num-samples", 1, "--seed", 3)
    tables = {}
    for name, more in {"a": (), "b": options}.items():
        _ct3d(monkeypatch, capsys, *given, "-o", tmp_path / name, *more)
        tables[name] = pd.read_csv(tmp_path / name / "samples.csv")
    pd.testing.assert_frame_equal(tables["a"], tables["b"])  # the tokens are the same
    transformer = load_transformer(models / "windowed", CPU)
    prompt = Prompt(sample_seeds(3, 1), label_conditions(transformer, ""))
    indices = sample_indices(
        transformer.model, prompt, grid=transformer.grid, spec=SamplesSpec(seed=3)
    )
    tokenizer = load_tokenizer(models / "maisi", CPU)
    other = replace(tokenizer, sliding=WINDOWS.model_copy(update=changes))
    values = decode_indices(other, indices[0], shape=(8, 12, 16), window=(-1000.0, 1000.0))
    wanted = to_volume(values, {"affine": AFFINE}, domain="hu", stored_grid=True).array
    found = {name: nibabel.load(tmp_path / name / "sample_0000.nii.gz") for name in "ab"}
    np.testing.assert_array_equal(np.asarray(found["b"].dataobj), wanted.transpose(2, 1, 0))
    assert not np.array_equal(np.asarray(found["a"].dataobj), np.asarray(found["b"].dataobj))


def test_what_is_left_out_is_what_the_config_leaves_out():
    defaults = {name: p.default for name, p in inspect.signature(generate).parameters.items()}
    samples = SamplesSpec().model_dump(exclude={"labels"})
    assert {name: defaults[name] for name in samples} == samples


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
        "--choice-temperature",
        0,
    ]
    _ct3d(monkeypatch, capsys, "--checkpoint", models / "maskgit", "-o", tmp_path / "out", *options)
    assert len(pd.read_csv(tmp_path / "out/samples.csv")) == 4


def test_the_noise_of_the_order_changes_what_is_drawn(models, tmp_path, monkeypatch, capsys):
    found = []
    for noise in (0, 100):
        given = ("--checkpoint", models / "maskgit", "-o", tmp_path / str(noise))
        given = (*given, "--order", "confidence")
        _ct3d(monkeypatch, capsys, *given, "--temperature", 0, "--choice-temperature", noise)
        found.append(pd.read_csv(tmp_path / str(noise) / "samples.csv")["indices_sha256"].nunique())
    still, noisy = found
    assert still == 1 < noisy  # without noise every seed draws the likeliest


def test_what_is_wrong_is_said_before_anything_is_drawn(models, tmp_path, monkeypatch, capsys):
    def fails(*arguments: object, code: int) -> str:
        return _ct3d(monkeypatch, capsys, *arguments, code=code)

    transformer, out = models / "maskgit", tmp_path / "out"
    said = fails("--checkpoint", transformer, "-o", out, "--label", "nodule", code=1)
    assert "label 'nodule' is unknown to this model; it knows cyst, stone" in said
    assert "not a transformer" in fails("--checkpoint", models / "lfq", "-o", out, code=1)
    (tmp_path / "empty").mkdir()
    said = fails("--checkpoint", transformer, "-o", out, "--tokenizer", tmp_path / "empty", code=1)
    assert "no model here has the weights" in said
    (tmp_path / "full").mkdir()
    (tmp_path / "full/sample_0000.nii.gz").touch()
    said = fails("--checkpoint", transformer, "-o", tmp_path / "full", code=2)
    assert "is there already; give a folder that is new or" in said
    assert (tmp_path / "full/sample_0000.nii.gz").exists()


def test_a_scan_is_translated_on_its_own_grid(models, scan, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    asked = ("--source", scan, "--source-label", "cyst", "--target", "stone", "--num-samples", 2)
    _ct3d(monkeypatch, capsys, "--checkpoint", models / "translator", "-o", out, *asked)
    table = pd.read_csv(out / "samples.csv")
    assert table["indices_sha256"].nunique() == 2
    source = nibabel.load(scan)
    for name in table["file"]:
        image = nibabel.load(out / name)
        assert image.shape == source.shape
        np.testing.assert_allclose(image.affine, source.affine, atol=1e-4)

    def first(name: str, *changes: object) -> str:
        _ct3d(
            monkeypatch,
            capsys,
            "--checkpoint",
            models / "translator",
            "-o",
            tmp_path / name,
            *asked,
            *changes,
        )
        return pd.read_csv(tmp_path / name / "samples.csv")["indices_sha256"][0]

    before = table["indices_sha256"][0]
    assert first("again") == before
    assert first("from", "--source-label", "stone") != before
    assert first("to", "--target", "cyst") != before
    named = ("--source", scan, "--source-label", "cyst", "--label", "stone", "--label", "cyst")
    out = tmp_path / "labels"
    _ct3d(
        monkeypatch, capsys, "--checkpoint", models / "translator", "-o", out, *named, "--seed", 0
    )
    table = pd.read_csv(out / "samples.csv")
    assert table["label"].tolist() == ["stone", "cyst"] * 2  # one after another
    assert table["indices_sha256"][0] == before


def test_who_translates_and_what_is_said(models, scan, tmp_path, monkeypatch, capsys):
    def fails(*arguments: object, code: int) -> str:
        return _ct3d(monkeypatch, capsys, *arguments, "-o", tmp_path / "out", code=code)

    said = fails("--checkpoint", models / "maskgit", "--source", scan, code=1)
    assert "was trained without sources (transformer.source)" in said
    said = fails(
        "--checkpoint", models / "translator", "--source", scan, "--source-label", "t1", code=1
    )
    assert "label 't1' is unknown to this model" in said
    assert "belong to a --source" in fails(
        "--checkpoint", models / "translator", "--source-label", "cyst", code=2
    )
    assert "no such file" in fails(
        "--checkpoint", models / "translator", "--source", tmp_path / "x.nii", code=1
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "stone"), "--target stone: is what a --source becomes; give one, or say"),
        (
            ("--source", "x.nii", "--target", "stone", "--label", "cyst"),
            "--target stone, --label cyst: both say what the source becomes; give one of them",
        ),
        (("--overlap", 0.5), "is causal and has windows of its own; leave overlap out"),
    ],
    ids=["target alone", "target and label", "windows of a causal tokenizer"],
)
def test_options_that_do_not_go_together(models, tmp_path, options, message, monkeypatch, capsys):
    given = ("--checkpoint", models / "maskgit", "-o", tmp_path / "out", *options)
    said = _ct3d(monkeypatch, capsys, *given, code=1 if "--overlap" in options else 2)
    assert message.replace(" ", "") in said.replace(" ", "")  # a narrow terminal breaks lines
    assert not (tmp_path / "out").exists()


def test_a_text_steers_a_model_that_was_trained_with_texts(models, tmp_path, monkeypatch, capsys):
    loaded = load_model(models / "maskgit")
    spec = TRANSFORMER.model_copy(update={"text_size": 3})
    torch.manual_seed(0)
    reader = build_model(spec)
    for block in reader.blocks:
        torch.nn.init.normal_(block.modulation.weight)  # a new block ignores its condition
    save_model(models / "reader", reader, spec=spec, contract=loaded.contract, training={})
    found = []
    for vector in ([1.0, 2.0, 3.0], [3.0, 2.0, -1.0], [2.0, 4.0, 6.0]):
        file, out = tmp_path / "text.npy", tmp_path / str(vector[:2])
        np.save(file, np.array(vector))
        given = ("--checkpoint", models / "reader", "-o", out, "--num-samples", 1)
        _ct3d(monkeypatch, capsys, *given, "--text", file)
        found.append(pd.read_csv(out / "samples.csv")["indices_sha256"][0])
    assert found[0] != found[1]
    assert found[0] == found[2]  # encoders differ in scale
    for model, message in (("maskgit", "was trained without texts"), ("reader", "trained with 3")):
        np.save(file, np.ones(4))
        given = ("--checkpoint", models / model, "-o", tmp_path / "none", "--text", file)
        assert message in _ct3d(monkeypatch, capsys, *given, code=1)


def test_numbers_out_of_range_and_late_labels_are_said_at_once(
    models, tmp_path, monkeypatch, capsys
):
    given = ("--checkpoint", models / "maskgit", "-o", tmp_path / "out")
    for option, value in (("guidance", "inf"), ("seed", 2**63), ("temperature", "inf")):
        said = _ct3d(monkeypatch, capsys, *given, f"--{option}", value, code=2)
        assert f"{option}: " in said
    said = _ct3d(monkeypatch, capsys, *given, "--label", "cyst", "--label", "typo", code=1)
    assert "label 'typo' is unknown" in said
    said = _ct3d(monkeypatch, capsys, *given, "--tokenizer", tmp_path / "none", code=1)
    assert "no such folder of models" in said
    assert not (tmp_path / "out").exists()


def test_labels_of_a_model_without_any_are_refused(models, tmp_path, monkeypatch, capsys):
    spec = TRANSFORMER.model_copy(update={"num_labels": 0})
    contract = {**load_model(models / "maskgit").contract, "labels": []}
    save_model(models / "plain", build_model(spec), spec=spec, contract=contract, training={})
    given = ("--checkpoint", models / "plain", "-o", tmp_path / "out", "--label", "cyst")
    said = _ct3d(monkeypatch, capsys, *given, code=2)
    assert "was trained without labels; leave --label and --target out" in said


def test_a_checkpoint_must_be_given(tmp_path, monkeypatch, capsys):
    said = _ct3d(monkeypatch, capsys, "-o", tmp_path / "out", code=2)
    assert "Missing option '--checkpoint'" in said
