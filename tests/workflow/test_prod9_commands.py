"""The commands that docs/models.md gives for prod9's, as they stand there, on a finished run."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from ct3dlib.cli import app
from tests.workflow.conftest import Run

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

ROW = re.compile(r"^\| `prod9-train-(\w+ \w+)` \| `([^`]+)` \|", re.MULTILINE)
# What prod9's commands take, beside the config that ours have in Snakemake's --configfile.
OPTIONS = {
    "reconstruct": ["--checkpoint", "--output", "--roi-size", "--overlap", "--sw-batch-size"],
    "generate": [
        *("--checkpoint", "--output", "--num-samples", "--roi-size", "--overlap"),
        "--sw-batch-size",
    ],
}


@pytest.fixture
def commands(repository: Path) -> dict[str, list[str]]:
    """Return our command for each of prod9's."""
    found = ROW.findall((repository / "docs/models.md").read_text())
    return {theirs: shlex.split(ours) for theirs, ours in found}


def test_each_command_of_prod9_has_one_here(commands: dict[str, list[str]]) -> None:
    assert list(commands) == [
        *(f"autoencoder {name}" for name in ("train", "validate", "test", "infer")),
        *(f"transformer {name}" for name in ("train", "validate", "test", "generate")),
    ]


@pytest.mark.parametrize("command", OPTIONS)
def test_help_lists_the_options_of_prod9(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert [name for name in OPTIONS[command] if name not in done.output] == []


def test_the_commands_run_as_they_stand(
    commands: dict[str, list[str]], copy: Path, snakemake: Run, environment: dict[str, str]
) -> None:
    shutil.copy(copy / "samples/sample_0000.nii.gz", copy / "scan.nii.gz")
    (copy / "metrics/transformer.json").unlink()
    said = {}
    for theirs, (program, *arguments) in commands.items():
        if program == "snakemake":
            done = snakemake(*arguments, "--cores", "2", directory=copy)
        else:
            done = subprocess.run(
                [program, *arguments], cwd=copy, env=environment, capture_output=True, text=True
            )
        assert done.returncode == 0, (theirs, done.stdout[-2000:], done.stderr[-4000:])
        said[theirs] = done.stdout
    assert '"best_value"' in said["autoencoder validate"]
    measured = json.loads((copy / "metrics/transformer.json").read_text())
    assert measured["tune"]["bits_per_index"] > 0
    scan, made = (nibabel.load(copy / f"{name}.nii.gz") for name in ("scan", "reconstructed"))
    assert made.shape == scan.shape
    np.testing.assert_allclose(made.affine, scan.affine, atol=1e-4)
    table = pd.read_csv(copy / "generated/samples.csv")
    assert list(table) == ["sample", "file", "label", "seed", "indices_sha256"]
    assert table["indices_sha256"].nunique() == table["file"].nunique() == len(table) == 10
    assert all((copy / "generated" / name).is_file() for name in table["file"])


def test_the_sampler_of_prod9_is_understood_with_one_notice(
    finished: Path, snakemake: Run, miniature: Path, tmp_path: Path
) -> None:
    preset = tmp_path / "prod9.yaml"
    preset.write_text("samples: {mask_value: -100}\n")
    done = snakemake("--cores", "2", directory=finished, preset=[miniature, preset])
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("samples.mask_value: has no effect") == 1
    assert "Nothing to be done" in done.stdout + done.stderr
