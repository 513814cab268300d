"""The three kinds of tokenizers through their rules, with what can be made of them on request."""

import json

import numpy as np
import pandas as pd
import pytest

from ct3dlib.cohort.verify import verify_table
from ct3dlib.inference.latents import find_latents, read_latents
from tests.workflow.conftest import run_in

pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.xdist_group("dvc")]

TARGETS = ("metrics/reconstruction.json", "latents/valid.done", "reconstructions/valid.done")


@pytest.fixture(scope="module")
def out(reproduced, environment):
    """Return a finished run of the targets."""
    run_in(reproduced, environment, "snakemake", *TARGETS)
    again = run_in(reproduced, environment, "snakemake", "-n", *TARGETS)
    assert "Nothing to be done" in again
    return reproduced


def test_all_three_are_measured_and_drawn(out):
    metrics = json.loads((out / "metrics/reconstruction.json").read_text())
    assert set(metrics) == {"lfq", "fsq", "vae"}
    for name, found in metrics.items():
        valid = found["valid"]
        assert valid["n"] == 2
        assert 0 < valid["psnr_db"] < valid["mean_volume_psnr_db"]  # four steps teach nothing
        assert (valid["code_usage"] is None) == (name == "vae")
        for file in ("picture.png", "movie.gif", "movie.mp4"):
            assert (out / "results/tokenizers" / name / file).stat().st_size > 1000


def test_a_stage_starts_from_the_last_and_a_frozen_encoder_stays(out):
    stages = json.loads((out / "models/fsq/spec.json").read_text())["training"]["stages"]
    assert [stage["step"] for stage in stages] == [2, 2]
    first, second = stages
    assert first["encoder_before"] != first["encoder_after"] == second["encoder_before"]
    assert second["encoder_before"] == second["encoder_after"]
    assert (out / "models/features/model.safetensors").is_file()


def test_latents_of_a_split_are_whole_and_described(out):
    marker = json.loads((out / "latents/valid.done").read_text())
    table = pd.read_parquet(out / "latents/valid.parquet")
    assert len(table) == 6
    encoded = table.loc[table["status"] == "encoded", "volume"]
    arrays = [read_latents(find_latents(out / "latents/valid", name)) for name in encoded]
    flat = np.concatenate([a.reshape(len(a), -1) for a in arrays], axis=1).astype(np.float64)
    np.testing.assert_allclose(marker["mean"], flat.mean(1), rtol=1e-6)
    np.testing.assert_allclose(marker["std"], flat.std(1), rtol=1e-6)
    tables = sorted((out / "latents/valid").glob("*.parquet"))
    assert [finding for path in tables for finding in verify_table(path)] == []


def test_reconstructions_of_a_split_are_files(out):
    table = pd.read_parquet(out / "reconstructions/valid.parquet")
    assert table["status"].value_counts().to_dict() == {"encoded": 2, "rejected": 4}
    assert len(list((out / "reconstructions/valid").rglob("*.nii.gz"))) == 2
