"""`ct3d predict`, `embed` and `attention`, as a user calls them."""

import csv
import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK
import torch
import zarr

from ct3dlib.cli import main
from ct3dlib.inference.embed import load_volume_encoder
from ct3dlib.inference.loaded import tokenizer_contract
from ct3dlib.models import build_model
from ct3dlib.models.exported import load_model, save_model
from tests.corpus.dicom_files import one_slice
from tests.inference.encoders import (
    RECIPE,
    hu_of,
    save_mae,
    save_predictor,
    seen_of,
    write_scan,
)
from tests.inference.test_loaded import VAE, section
from tests.stores import write_shard

NAMES = ["nodule", "effusion"]


def _ct3d(monkeypatch, capsys, *arguments: object, code: int = 0) -> str:
    """Run a command and return what it printed, errors if it was to fail."""
    monkeypatch.setattr(sys, "argv", ["ct3d", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    out = capsys.readouterr()
    assert exit_.value.code == code, out.err
    return " ".join((out.err if code else out.out).replace("│", " ").split())


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    contract = {"task": "multilabel", "names": NAMES}
    save_predictor(folder / "mae_finetune", contract, num_outputs=2)
    save_mae(folder / "mae")
    contract = tokenizer_contract(section(VAE), RECIPE)
    save_model(folder / "vae", build_model(VAE), spec=VAE, contract=contract, training={})
    return folder


@pytest.fixture
def scans(tmp_path) -> Path:
    """Return a CSV of four scans and what else a table may hold: two of them can be read."""
    write_scan(tmp_path / "scans/a.nii.gz", hu_of(0))
    write_scan(tmp_path / "scans/deep/b.nii.gz", hu_of(1))
    cut = write_scan(tmp_path / "scans/cut.nii.gz", hu_of(2))
    cut.write_bytes(cut.read_bytes()[:2000])
    rows = [
        ["note", "Path", "Label"],
        ["b, first", "deep/b.nii.gz", "007"],
        ["", "cut.nii.gz", "NA"],
        ["", "", ""],
        ["x", "", "1"],
        ["gone", "c.nii.gz", ""],
        ['says "a"', str(tmp_path / "scans/a.nii.gz"), "1.50"],
    ]
    with (tmp_path / "scans/in.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path / "scans/in.csv"


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _direct(models: Path, seed: int) -> np.ndarray:
    """Return what the model itself says of a volume."""
    with torch.no_grad():
        return load_model(models / "mae_finetune").module(seen_of(hu_of(seed))).sigmoid()[0].numpy()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_predict_keeps_rows_and_goes_on_after_a_bad_scan(
    monkeypatch, capsys, tmp_path, models, scans, batch_size
):
    out = tmp_path / "new/out.csv"
    said = _ct3d(
        monkeypatch, capsys, "predict", "--checkpoint", models / "mae_finetune", "--input", scans,
        "--output", out, "--batch-size", batch_size,
    )  # fmt: skip
    assert said == f"{out}: 2 of 5 scans, 3 with an error"
    b, cut, empty, gone, a = rows = _rows(out)
    assert list(b) == ["note", "Path", "Label", "prob_nodule", "prob_effusion", "error"]
    assert [row["note"] for row in rows] == ["b, first", "", "x", "gone", 'says "a"']
    assert [row["Label"] for row in rows] == ["007", "NA", "1", "", "1.50"]
    for row, seed in ((a, 0), (b, 1)):
        found = [float(row[f"prob_{name}"]) for name in NAMES]
        np.testing.assert_allclose(found, _direct(models, seed), atol=1e-6)
        assert row["error"] == ""
    for row in (cut, empty, gone):
        assert row["prob_nodule"] == row["prob_effusion"] == ""
    assert cut["error"].startswith("FILE_TRUNCATED: ")
    assert "cut.nii.gz" in cut["error"]
    assert empty["error"] == "FILE_MISSING: row 5: its Path is empty; fill it in"
    assert gone["error"].startswith(f"FILE_MISSING: {scans.parent}/c.nii.gz: no such file")
    assert not list(out.parent.glob("*.partial"))


def test_a_root_and_a_column_are_the_users(monkeypatch, capsys, tmp_path, models, scans):
    table = tmp_path / "elsewhere.csv"
    table.write_text("Path,scan\n,deep/b.nii.gz\n")
    _ct3d(
        monkeypatch, capsys, "predict", "--checkpoint", models / "mae_finetune", "-i", table,
        "-o", tmp_path / "o.csv", "--root", scans.parent, "--path-column", "scan",
    )  # fmt: skip
    (row,) = _rows(tmp_path / "o.csv")
    assert row["error"] == ""


def test_a_scan_is_the_same_in_every_format(monkeypatch, capsys, tmp_path, models):
    hu = hu_of(0)
    write_scan(tmp_path / "a.nii.gz", hu)
    # Arrays of ITK are D H W with axes up, to the back and to the left where nothing else is said.
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(hu), tmp_path / "a.nrrd")
    (tmp_path / "series").mkdir()
    for k, pixels in enumerate(hu):  # stored values of an intercept of -1024
        one_slice(tmp_path / f"series/{k}.dcm", k, (pixels + 1024).astype(np.uint16))
    (tmp_path / "in.csv").write_text("Path\na.nii.gz\na.nrrd\nseries\n")
    _ct3d(
        monkeypatch, capsys, "predict", "--checkpoint", models / "mae_finetune",
        "-i", tmp_path / "in.csv", "-o", tmp_path / "o.csv",
    )  # fmt: skip
    rows = _rows(tmp_path / "o.csv")
    assert [row["error"] for row in rows] == [""] * 3
    for row in rows:
        found = [float(row[f"prob_{name}"]) for name in NAMES]
        np.testing.assert_allclose(found, _direct(models, 0), atol=1e-6)


def test_predict_fails_where_no_scan_can_be_used(monkeypatch, capsys, tmp_path, models):
    table = tmp_path / "in.csv"
    table.write_text("Path\nx.nii\ny.nii\n")
    error = _ct3d(
        monkeypatch, capsys, "predict", "--checkpoint", models / "mae_finetune", "-i", table,
        "-o", tmp_path / "o.csv", code=1,
    )  # fmt: skip
    assert error.startswith(f"ct3d: no scan could be used, as FILE_MISSING: {tmp_path}/x.nii: no")
    assert len(_rows(tmp_path / "o.csv")) == 2


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("Path,error\na,\n", "the input has a column 'error' already, which the output gets; rena"),
        ("Path,prob_nodule\na,\n", "the input has a column 'prob_nodule' already"),
        ("path\na\n", "in.csv: no column 'Path', found 'path'; name the column of the scans with"),
        ("Path,x,x\na,,\n", "in.csv: a column twice, found 'Path', 'x', 'x'"),
        ("", "in.csv: no column 'Path', found none"),
        ("Path\n\n", "in.csv: no row below its header; list a scan in each"),
        (
            "Path\na,b\n",
            "in.csv: row 2 has 2 cells, the header 1; put what holds a comma",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_at_once(
    monkeypatch, capsys, tmp_path, models, text, match
):
    (tmp_path / "in.csv").write_text(text)
    error = _ct3d(
        monkeypatch, capsys, "predict", "--checkpoint", models / "mae_finetune",
        "-i", tmp_path / "in.csv", "-o", tmp_path / "o.csv", code=1,
    )  # fmt: skip
    assert match in error
    assert not (tmp_path / "o.csv").exists()


def test_other_inputs_and_names_are_refused(monkeypatch, capsys, tmp_path, models):
    (tmp_path / "bytes.csv").write_bytes(b"Path\n\xff\n")
    model = ("--checkpoint", models / "mae_finetune", "-o", tmp_path / "o.csv")
    for arguments, match in (
        (["-i", tmp_path / "no.csv"], "no.csv: cannot be read"),
        (["-i", tmp_path / "bytes.csv"], "bytes.csv: cannot be read ('utf-8' codec"),
        (["-i", "a.csv", "-i", "b.csv"], "2 inputs, not all .parquet; give one CSV, or tables of"),
    ):
        assert match in _ct3d(monkeypatch, capsys, "predict", *model, *arguments, code=1)
    for command, name, match in (
        ("predict", "o.txt", "o.txt: the name must end with .csv"),
        ("embed", "o.csv", "o.csv: the name must end with .parquet or"),
        ("predict", "in.csv", "in.csv: is the input itself; give another"),
    ):
        arguments = ["--checkpoint", models / "mae", "-i", "in.csv", "-o", name]
        assert match in _ct3d(monkeypatch, capsys, command, *arguments, code=2)


def test_predict_of_a_store_checks_its_recipe(monkeypatch, capsys, tmp_path, models):
    arrays = {"b": hu_of(1), "a": hu_of(0)}
    table = write_shard(tmp_path / "0000.parquet", "volumes", arrays, RECIPE)
    more = write_shard(tmp_path / "0001.parquet", "volumes", {"c": hu_of(2)}, RECIPE)
    arguments = ["predict", "--checkpoint", models / "mae_finetune", "-o", tmp_path / "o.csv"]
    _ct3d(monkeypatch, capsys, *arguments, "-i", table, "-i", more)
    rows = _rows(tmp_path / "o.csv")
    assert [row["volume"] for row in rows] == ["b", "a", "c"]
    for row, seed in zip(rows, (1, 0, 2), strict=True):
        assert float(row["prob_nodule"]) == pytest.approx(_direct(models, seed)[0], abs=1e-6)
    other = RECIPE.model_copy(update={"center": "body"})
    table = write_shard(tmp_path / "0002.parquet", "volumes", arrays, other)
    error = _ct3d(monkeypatch, capsys, *arguments, "-i", table, code=1)
    assert "its center is body, the model" in error
    assert "was trained on volume; store these scans with the model's recipe" in error


@pytest.mark.parametrize("command", ["predict", "embed"])
def test_the_recipe_that_a_user_believes_in_is_checked(
    monkeypatch, capsys, tmp_path, models, scans, command
):
    (tmp_path / "c.yaml").write_text("recipes: {lung: {shape: [8, 16, 12], window: [-1200, 800]}}")
    (tmp_path / "same.json").write_text(RECIPE.model_dump_json())
    out = tmp_path / ("o.csv" if command == "predict" else "o.parquet")
    arguments = [command, "--checkpoint", models / "mae_finetune", "-i", scans, "-o", out]
    error = _ct3d(
        monkeypatch, capsys, *arguments, "--recipe", "lung", "--config", tmp_path / "c.yaml", code=1
    )
    assert "recipe lung: its window is [-1200.0, 800.0], the model" in error
    assert "was trained on [-1000.0, 600.0]" in error
    assert not out.exists()
    _ct3d(monkeypatch, capsys, *arguments, "--recipe", tmp_path / "same.json")


@pytest.mark.parametrize(
    ("command", "name", "said"),
    [
        ("predict", "mae", ": a MaskedAutoencoder predicts nothing; give a fine-tuned model, as"),
        ("predict", "vae", ": a KLAutoencoder predicts nothing; give a fine-tuned model, as"),
        ("predict", "none", "/spec.json: no such file; train the model or pull it again"),
        ("embed", "vae", ": a KLAutoencoder without a volume encoder; give a masked autoencoder"),
    ],
    ids=["predict mae", "predict vae", "predict none", "embed vae"],
)
def test_a_model_of_another_kind_is_refused_before_a_scan_is_read(
    monkeypatch, capsys, tmp_path, models, scans, command, name, said
):
    out = tmp_path / ("o.csv" if command == "predict" else "o.parquet")
    arguments = [command, "--checkpoint", models / name, "-i", scans, "-o", out]
    error = _ct3d(monkeypatch, capsys, *arguments, code=1)
    assert error.startswith(f"ct3d: {models / name}{said}")
    assert not out.exists()


def test_embeddings_are_those_of_the_model(monkeypatch, capsys, tmp_path, models, scans):
    arguments = ["embed", "--checkpoint", models / "mae", "-i", scans, "--regional", "1,2,3"]
    said = _ct3d(monkeypatch, capsys, *arguments, "-o", tmp_path / "o.parquet")
    assert said.endswith("2 of 5 scans, 3 with an error")
    _ct3d(monkeypatch, capsys, *arguments, "-o", tmp_path / "o.zarr")
    table = pd.read_parquet(tmp_path / "o.parquet")
    assert list(table) == ["Path", "error", "class", "pooled", "regional"]
    encoder = load_volume_encoder(models / "mae", torch.device("cpu"))
    for row, seed in ((0, 1), (4, 0)):
        with torch.no_grad():
            tokens = encoder.model(seen_of(hu_of(seed)))[0].numpy()
        np.testing.assert_allclose(table["class"][row], tokens[0], atol=1e-5)
        np.testing.assert_allclose(table["pooled"][row], tokens[1:].mean(0), atol=1e-5)
    assert [error.split(":")[0] for error in table["error"]] == [
        "", "FILE_TRUNCATED", "FILE_MISSING", "FILE_MISSING", "",
    ]  # fmt: skip
    group = zarr.open_group(tmp_path / "o.zarr")
    assert group["ids"][:].tolist() == table["Path"].tolist()
    np.testing.assert_array_equal(group["regional"][4].ravel(), table["regional"][4])
    error = _ct3d(monkeypatch, capsys, *arguments, "-o", tmp_path / "o.zarr", code=2)
    assert "is there already; delete it or give" in error
    error = _ct3d(monkeypatch, capsys, *arguments[:-1], "4,4", "-o", "o.parquet", code=2)
    assert "--regional 4,4: wanted D,H,W, three whole numbers above 0" in error


def test_attention_is_written_on_the_scans_own_grid(monkeypatch, capsys, tmp_path, models, scans):
    scan, out = scans.parent / "a.nii.gz", tmp_path / "map.nii.gz"
    arguments = ["attention", scan, "--checkpoint", models / "mae_finetune"]
    assert _ct3d(monkeypatch, capsys, *arguments, "-o", out, "--rollout", "--layer", 2) == str(out)
    made, given = nibabel.load(out), nibabel.load(scan)
    assert made.get_data_dtype() == np.float32
    assert made.shape == given.shape
    np.testing.assert_allclose(made.affine, given.affine, atol=1e-6)
    # Shares of 24 patches add up to 1; each fills 4 x 4 x 4 voxels.
    assert made.get_fdata().sum() / 64 == pytest.approx(1, abs=0.05)
    error = _ct3d(monkeypatch, capsys, *arguments, "-o", out, "--layer", 9, code=1)
    assert "layer 9: the model's blocks are 1 to 3" in error
    error = _ct3d(monkeypatch, capsys, *arguments, "-o", scan, code=2)
    assert "is the input itself" in error
