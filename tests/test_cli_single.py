"""`ct3d reconstruct`, `encode`, `decode` and `describe` of one file, as a user calls them."""

import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from ct3dlib.cli import main
from ct3dlib.config import (
    CausalTokenizerSpec,
    FSQSpec,
    KLAutoencoderSpec,
    MaisiTokenizerSpec,
    RecipeSpec,
    SlidingWindowSpec,
)
from ct3dlib.inference.decode import to_volume
from ct3dlib.inference.loaded import contract_of, load_tokenizer
from ct3dlib.inference.single import read_scan, reconstruct_scan, reconstruct_stack
from ct3dlib.models import build_model
from ct3dlib.models.exported import save_model
from ct3dlib.scan.mp4 import read_mp4, write_mp4
from ct3dlib.scan.nifti import write_nifti
from ct3dlib.scan.picture import read_stack
from ct3dlib.scan.volume import Volume

CPU = torch.device("cpu")
RECIPE = RecipeSpec(
    spacing=(2.0, 1.0, 1.0), window=(-1000, 600), hu_state="hu", min_slices=2, axes="dwh"
)
SPECS = {
    "causal": CausalTokenizerSpec(
        filters=4, num_res_blocks=1, channel_multipliers=(1, 2, 2), norm_groups=2
    ),
    "maisi": MaisiTokenizerSpec(
        num_channels=(4, 4),
        num_res_blocks=(1, 1),
        attention_levels=(False, False),
        norm_groups=2,
        quantizer=FSQSpec(levels=(8, 6, 5)),
    ),
    "vae": KLAutoencoderSpec(
        init_filters=4, smallest_filters=4, blocks_down=(1, 1), blocks_up=(1,), norm_groups=2
    ),
}
WINDOWS = SlidingWindowSpec(roi_size=(4, 8, 8), overlap=0.5)
AFFINE = np.array([[0, 0, -0.7, 30], [0, -0.8, 0, 12.5], [-2.5, 0, 0, 400], [0, 0, 0, 1.0]])


def _ct3d(monkeypatch, capsys, *arguments: object, code: int = 0) -> str:
    """Run a command and return what it printed, errors if it was to fail."""
    monkeypatch.setattr(sys, "argv", ["ct3d", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    out = capsys.readouterr()
    assert exit_.value.code == code, out.err
    return (out.err if code else out.out).strip()


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Return a folder of one model of each kind."""
    folder = tmp_path_factory.mktemp("models")
    for name, spec in SPECS.items():
        torch.manual_seed(0)
        windows = None if name == "causal" else WINDOWS
        contract = contract_of(spec, RECIPE, windows)
        save_model(folder / name, build_model(spec), spec=spec, contract=contract, training={})
    return folder


@pytest.fixture
def scan(tmp_path) -> Path:
    """Return a scan of 7 x 10 x 13 voxels whose axes all run the other way."""
    hu = np.random.default_rng(0).integers(-1024, 1500, (7, 10, 13)).astype(np.int16)
    write_nifti(tmp_path / "scan.nii.gz", Volume(hu, AFFINE))
    return tmp_path / "scan.nii.gz"


def _array(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


@pytest.mark.parametrize("name", list(SPECS))
def test_a_scan_comes_back_in_hu_on_its_own_grid(tmp_path, models, scan, name, monkeypatch, capsys):
    out = tmp_path / "new/out.nii.gz"
    found = _ct3d(monkeypatch, capsys, "reconstruct", scan, "--model", models / name, "-o", out)
    assert found == str(out)
    first, second = nibabel.load(scan), nibabel.load(out)
    assert (second.shape, second.get_data_dtype()) == (first.shape, np.int16)
    np.testing.assert_array_equal(second.affine, first.affine)
    tokenizer = load_tokenizer(models / name, CPU)
    read = read_scan(scan, RECIPE)
    ct3d = {"affine": read.record.affine, "record": read.record.model_dump(mode="json")}
    wanted = to_volume(reconstruct_scan(tokenizer, read), ct3d, domain="hu")
    np.testing.assert_array_equal(_array(out), wanted.array.transpose(2, 1, 0))
    assert -1000 <= wanted.array.min() < wanted.array.max() <= 600

    stored = tmp_path / "stored.nii"
    arguments = ("--model", models / name, "-o", stored, "--stored-grid")
    _ct3d(monkeypatch, capsys, "reconstruct", scan, *arguments)
    assert nibabel.load(stored).shape == tuple(reversed(read.volume.shape)) == (9, 8, 8)


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (("--overlap", 0), {"overlap": 0.0}),
        (("--roi-size", 2, 4, 6), {"roi_size": (2, 4, 6)}),
        (("--mode", "constant"), {"mode": "constant"}),
        (("--sw-batch-size", 3, "--mode", "hann"), {"sw_batch_size": 3, "mode": "hann"}),
    ],
    ids=["overlap 0", "roi size", "mode", "batch"],
)
def test_windows_are_honoured(tmp_path, models, scan, options, changes, monkeypatch, capsys):
    given = ("--model", models / "maisi", "-o")
    _ct3d(monkeypatch, capsys, "reconstruct", scan, *given, tmp_path / "a.nii")
    _ct3d(monkeypatch, capsys, "reconstruct", scan, *given, tmp_path / "b.nii", *options)
    tokenizer = load_tokenizer(models / "maisi", CPU)
    sliding = WINDOWS.model_copy(update=changes)
    read = read_scan(scan, RECIPE)
    ct3d = {"affine": read.record.affine, "record": read.record.model_dump(mode="json")}
    hu = reconstruct_scan(replace(tokenizer, sliding=sliding), read)
    wanted = to_volume(hu, ct3d, domain="hu").array.transpose(2, 1, 0)
    np.testing.assert_array_equal(_array(tmp_path / "b.nii"), wanted)
    assert not np.array_equal(_array(tmp_path / "a.nii"), wanted)


def test_pictures_come_back_as_what_they_are(tmp_path, models, monkeypatch, capsys):
    grey = np.random.default_rng(0).integers(0, 256, (3, 11, 14), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    for number, plane in enumerate(grey, start=9):
        Image.fromarray(plane).save(tmp_path / f"in/s{number}.png")
    write_mp4(tmp_path / "in.mp4", np.repeat(grey, 2, axis=0)[:, :10], fps=6)
    tokenizer = load_tokenizer(models / "causal", CPU)
    outs = {"in/s9.png": "one.png", "in": "out", "in.mp4": "out.mp4"}
    for source, name in outs.items():
        out = tmp_path / name
        given = ("--model", models / "causal", "-o", out)
        assert _ct3d(monkeypatch, capsys, "reconstruct", tmp_path / source, *given) == str(out)
        wanted = reconstruct_stack(tokenizer, read_stack(tmp_path / source).array)
        found = read_stack(out).array
        assert found.shape == wanted.shape
        most = 0 if name != "out.mp4" else 24
        assert np.abs(found.astype(int) - wanted).max() <= most
    assert read_stack(tmp_path / "out").names == ("s9.png", "s10.png", "s11.png")
    assert read_mp4(tmp_path / "out.mp4").fps == 6


@pytest.mark.parametrize(("every", "count"), [(1, 8), (3, 3)])
def test_a_movie_has_a_frame_for_every_n_slices_of_the_recipes_grid(
    tmp_path, models, scan, every, count, monkeypatch, capsys
):
    given = ("--model", models / "maisi", "-o", tmp_path / "o.nii", "--every", every)
    for name in ("a.gif", "a.mp4"):
        found = _ct3d(monkeypatch, capsys, "reconstruct", scan, *given, "--movie", tmp_path / name)
        assert found.split() == [str(tmp_path / "o.nii"), str(tmp_path / name)]
    with Image.open(tmp_path / "a.gif") as file:
        assert (getattr(file, "n_frames", 1), file.size) == (count, (36, 8))
        drawn = np.array(file.convert("L"))[:, :9].astype(int)
    assert read_mp4(tmp_path / "a.mp4").frames.shape == (count, 8, 36)
    # Grey follows the window of the model's recipe, -1000 to 600 HU.
    hu = read_scan(scan, RECIPE).volume.array[0].clip(-1000, 600)
    assert np.abs(drawn - (hu + 1000) / 1600 * 255).max() <= 12


@pytest.mark.parametrize("name", list(SPECS))
def test_a_scan_is_encoded_and_decoded_without_a_store(
    tmp_path, models, scan, name, monkeypatch, capsys
):
    tokens, model = tmp_path / "scan.npz", models / name
    found = _ct3d(monkeypatch, capsys, "encode", scan, "--model", model, "-o", tokens)
    grids = {"causal": "indices 2 x 2 x 1", "maisi": "indices 4 x 5 x 4", "vae": "latents 4 x"}
    assert found.startswith(f"{tokens}: {grids[name]}")
    _ct3d(monkeypatch, capsys, "reconstruct", scan, "--model", model, "-o", tmp_path / "a.nii")
    for which, folder in (("b", models), ("c", model)):
        out = tmp_path / f"{which}.nii"
        _ct3d(monkeypatch, capsys, "decode", tokens, "--models", folder, "-o", out)
        np.testing.assert_array_equal(_array(out), _array(tmp_path / "a.nii"))


def test_describe_prints_the_way_of_a_volume_to_tokens(models, monkeypatch, capsys):
    lines = _ct3d(monkeypatch, capsys, "describe", models / "causal").splitlines()
    assert lines[1:12] == [
        "  values: hu",
        "  spacing, mm: 2 x 1 x 1",
        "  centre: volume",
        "  window: -1000 to 600 HU",
        "  range: -1 to 1",
        "  axes: dwh, of volumes D H W",
        "  windows: causal, 10 slices every 8",
        "  voxels a latent: 8 x 8 x 8",
        "  codebook: 262,144 codes of 18 channels, 18 bits, msb_first_channel0",
        "spec: {",
        '  "name": "causal",',
    ]
    text = _ct3d(monkeypatch, capsys, "describe", models / "maisi")
    assert "\n  windows: 4 x 8 x 8, overlap 0.5, gaussian\n" in text
    assert "  codebook: 240 codes of 3 channels, 8 bits, mixed_radix_channel0_least\n" in text
    text = _ct3d(monkeypatch, capsys, "describe", models / "vae")
    assert "\n  codebook: none; latents stay continuous\n" in text


def _in_box(words: str, error: str) -> bool:
    """Return whether an error says something; a narrow terminal breaks it at any letter."""
    return words.replace(" ", "") in error.replace(" ", "")


def test_what_a_user_can_get_wrong_is_said_before_anything_is_computed(
    tmp_path, models, scan, monkeypatch, capsys
):
    def fails(*arguments: object, code: int = 2) -> str:
        return " ".join(_ct3d(monkeypatch, capsys, *arguments, code=code).replace("│", "").split())

    causal, maisi = ("--model", models / "causal"), ("--model", models / "maisi")
    out, picture = tmp_path / "o.nii", tmp_path / "a.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
    error = fails("reconstruct", scan, *causal, "-o", out, "--overlap", 0, code=1)
    assert error.endswith("is causal and has windows of its own; leave overlap out")
    error = fails("reconstruct", scan, *maisi, "-o", out, "--roi-size", 3, 8, 8, code=1)
    assert error.startswith("ct3d: roi_size (3, 8, 8) is not whole latents; each axis must be")
    assert _in_box(
        "is the input itself; give another", fails("reconstruct", scan, *causal, "-o", scan)
    )
    error = fails("reconstruct", scan, *causal, "-o", tmp_path / "o.png")
    assert _in_box("the name must end with .nii or .nii.gz", error)
    error = fails("reconstruct", picture, *causal, "-o", out, code=1)
    assert _in_box(
        "o.nii: the name must end with .png or .jpg or .jpeg, as a.png is a picture", error
    )
    error = fails("reconstruct", picture, *causal, "-o", tmp_path / "b.png", "--stored-grid")
    assert _in_box("a.png: pictures have no metadata, series or stored grid", error)
    error = fails("reconstruct", scan, *causal, "-o", out, "--movie", "m.avi")
    assert _in_box("m.avi: the name must end with .gif or .mp4", error)
    assert _in_box(
        "pictures are no scan", fails("encode", picture, *causal, "-o", tmp_path / "a.npz")
    )
    error = fails("encode", scan, *causal, "-o", "tokens.npy")
    assert _in_box("tokens.npy: the name must end with .npz", error)
    error = fails("decode", tmp_path / "tokens/valid", "-o", out)
    assert _in_box("holds many volumes; give the id of one, --volume", error)
    assert not out.exists()


def test_tokens_of_a_model_that_is_away_are_not_decoded(
    tmp_path, models, scan, monkeypatch, capsys
):
    tokens, given = tmp_path / "a.npz", ("--model", models / "maisi")
    _ct3d(monkeypatch, capsys, "encode", scan, *given, "-o", tokens)
    arguments = ("--models", models / "vae", "-o", tmp_path / "o.nii")
    error = _ct3d(monkeypatch, capsys, "decode", tokens, *arguments, code=1)
    assert "no model here has the weights" in error
    assert error.endswith("or give the folder that holds them")


@pytest.mark.parametrize("command", ["reconstruct", "encode"])
def test_a_model_is_a_checkpoint_and_must_be_given(
    tmp_path, models, scan, command, monkeypatch, capsys
):
    error = _ct3d(monkeypatch, capsys, command, scan, "-o", tmp_path / "o.npz", code=2)
    assert _in_box("Missing option '--model' / '--checkpoint'", error.replace("│", ""))
    output = tmp_path / ("o.npz" if command == "encode" else "o.nii")
    _ct3d(monkeypatch, capsys, command, scan, "--checkpoint", models / "maisi", "-o", output)
    assert output.is_file()
