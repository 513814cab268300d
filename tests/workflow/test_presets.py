"""Presets of other data than chest CT, shrunk, on small files of their layouts."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from ct3dlib.cohort.verify import find_tables, verify_table
from ct3dlib.models.exported import load_model
from ct3dlib.scan.nifti import write_nifti
from ct3dlib.scan.volume import Volume
from tests.workflow.conftest import SHORT, Run

pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.xdist_group("presets")]

ONE_SHARD = {"train": 1, "tune": 1, "valid": 1}
TINY = {**SHORT, "batch_size": 2, "micro_batch_size": 2, "num_workers": 0, "precision": "fp32"}
MAISI = {
    **TINY,
    "loss": {"adversarial_start": 2},
    "discriminator": {"filters": 8, "num_layers": 2},
}
AFFINE = np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])


def _ball(number: int) -> np.ndarray:
    """Return a ball, larger with the number, 0 to 1."""
    places = np.indices((16, 16, 16)) - 7.5
    return np.clip(5 + number % 3 - np.linalg.norm(places, axis=0), 0, 2) / 2


def _brats(root: Path) -> dict[str, Any]:
    for patient in range(5):
        for number, modality in enumerate(("t1", "t1ce", "t2", "flair")):
            name = f"BraTS2021_{patient:05d}"
            (root / name).mkdir(parents=True, exist_ok=True)
            array = (_ball(patient) * (300 + 50 * number)).astype(np.int16)
            write_nifti(root / name / f"{name}_{modality}.nii.gz", Volume(array, AFFINE, "mr"))
    model = {
        "fmaps": [8, 8, 8],
        "num_res_blocks": [1, 1, 1],
        "attention_levels": [False, False, True],
        "norm_groups": 4,
    }
    window = {"roi_size": [8, 8, 8], "overlap": 0.5, "sw_batch_size": 2, "mode": "gaussian"}
    section = {**MAISI, "crop": [8, 8, 8], "model": model, "sliding_window": window}
    transformer = {
        "model": {"hidden_size": 32, "num_layers": 1, "num_heads": 2},
        "slab": {"size": 3, "context": 1},
        "text": {"embeddings": str(_texts(root))},
    }
    return {
        "catalog": {"tune": 0.2, "valid": 0.2, "shards": ONE_SHARD},
        "tokenizers": {"maisi": section},
        "transformer": {**TINY, **transformer},
        "samples": {"num_samples": 2, "steps": 3},
    }


def _texts(root: Path) -> Path:
    """Write what an encoder made of the texts of one volume of each patient."""
    path = root.parent / "texts.parquet"
    volumes = [f"BraTS2021_{patient:05d}_t1" for patient in range(5)]
    vectors = np.random.default_rng(0).normal(size=(5, 6)).tolist()
    pd.DataFrame({"volume": volumes, "embedding": vectors}).to_parquet(path)
    return path


def _medmnist(root: Path) -> dict[str, Any]:
    arrays = {}
    for part, number in (("train", 4), ("val", 2), ("test", 2)):
        balls = [(_ball(item) * 255).astype(np.uint8) for item in range(number)]
        arrays[f"{part}_images"] = np.stack(balls)
        arrays[f"{part}_labels"] = np.arange(number, dtype=np.uint8)[:, None]
    root.mkdir(parents=True)
    np.savez_compressed(root / "organmnist3d.npz", **arrays)
    model = {"fmaps": [8, 8, 8, 8], "norm_groups": 4}
    return {
        "catalog": {"shards": ONE_SHARD},
        "recipes": {"medmnist": {"shape": [16, 16, 16]}},
        "tokenizers": {"maisi": {**MAISI, "model": model}},
    }


def _pictures(root: Path) -> dict[str, Any]:
    for patient in range(5):
        for name in ("a.png", "b.jpg"):
            (root / f"p{patient}").mkdir(parents=True, exist_ok=True)
            pixels = np.kron(_ball(patient)[7] * 255, np.ones((3, 4))).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"p{patient}" / name)
    fsq = {"filters": 8, "norm_groups": 4}
    vae = {"init_filters": 8, "smallest_filters": 8}
    return {
        "catalog": {"tune": 0.2, "valid": 0.2, "shards": ONE_SHARD},
        "recipes": {"pictures": {"size": [1, 32, 32]}},
        "tokenizers": {
            "fsq": {**TINY, "crop": [1, 32, 32], "model": fsq},
            "vae": {**TINY, "crop": [1, 32, 32], "model": vae},
        },
    }


PRESETS = {
    "brats-fsq": ("BRATS_DATA_DIR", _brats, 8),
    "medmnist3d-fsq": ("MEDMNIST_DIR", _medmnist, 2),
    "pictures": ("CT3D_RAW", _pictures, 2),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_measures_and_encodes(
    name: str, snakemake: Run, repository: Path, tmp_path: Path
) -> None:
    variable, write, encoded = PRESETS[name]
    preset = tmp_path / "preset.yaml"
    preset.write_text(yaml.safe_dump(write(tmp_path / "raw")))
    variables = {variable: str(tmp_path / "raw")}
    targets = ["tokens/valid.done", "reconstructions/valid.done", "metrics/reconstruction.json"]
    targets += {
        "pictures": ["latents/valid.done"],
        "brats-fsq": ["samples/samples.csv", "metrics/transformer.json"],
    }.get(name, [])

    def run(over: Path) -> None:
        given = [repository / f"configs/{name}.yaml", over]
        done = snakemake(*targets, directory=tmp_path / "out", preset=given, **variables)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]

    run(preset)
    out = tmp_path / "out"
    assert json.loads((out / "tokens/valid.done").read_text())["encoded"] == encoded
    for found in json.loads((out / "metrics/reconstruction.json").read_text()).values():
        assert found["valid"]["n"] == encoded
        assert -1 < found["valid"]["ssim"] < 1  # four steps teach nothing
    tables = find_tables(out)
    assert not [finding for table in tables for finding in verify_table(table)]
    if name == "brats-fsq":
        # The transformer is asked for modalities, and has learnt to translate one into another, to
        # read, and to draw grids of 4 slices from slabs of 3.
        assert pd.read_csv(out / "samples/samples.csv")["label"].tolist() == ["t1", "t1ce"]
        found = json.loads((out / "models/transformer/spec.json").read_text())
        assert found["spec"]["source"]
        assert found["spec"]["text_size"] == 6
        measured = json.loads((out / "metrics/transformer.json").read_text())
        assert measured["valid"]["n"] == encoded
        assert all(0 < part["bits_per_index"] < 20 for part in measured.values())
        assert (found["spec"]["slab"]["size"], found["contract"]["grid"]) == (3, [4, 4, 4])
    if name == "pictures":
        _encodes_the_same_with_a_model_that_is_given(run, tmp_path)


def _encodes_the_same_with_a_model_that_is_given(run: Any, folder: Path) -> None:
    """Take the trained model as one from elsewhere: nothing is trained, the tokens stay."""
    out = folder / "out"
    shutil.copytree(out / "models/fsq", folder / "given")
    before = pd.read_parquet(out / "tokens/valid.parquet")
    preset = yaml.safe_load((folder / "preset.yaml").read_text())
    preset["tokenizers"]["fsq"] |= {"init_from": str(folder / "given"), "steps": 0}
    (folder / "given.yaml").write_text(yaml.safe_dump(preset))
    shutil.rmtree(out / "models/fsq")
    shutil.rmtree(out / "runs/fsq")
    run(folder / "given.yaml")
    assert load_model(out / "models/fsq").training["taken_from"] == str(folder / "given")
    assert not (out / "runs/fsq").exists()
    pd.testing.assert_frame_equal(pd.read_parquet(out / "tokens/valid.parquet"), before)
