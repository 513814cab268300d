"""The network that looks at samples is an input of their evaluation."""

import subprocess
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]


def _plan(snakemake, miniature: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    preset = folder / "generation.yaml"
    section = {"network": "exported", "weights": "network.pt2", "slices": 4}
    preset.write_text(yaml.safe_dump({"generation": section}))
    target = "metrics/generation.json"
    return snakemake("-n", "-p", target, directory=folder, preset=[miniature, preset])


def test_the_file_of_the_network_is_an_input(snakemake, miniature, tmp_path):
    missing = _plan(snakemake, miniature, tmp_path)
    assert missing.returncode != 0
    assert "Missing input files for rule evaluate_samples" in missing.stdout + missing.stderr
    (tmp_path / "network.pt2").touch()
    done = _plan(snakemake, miniature, tmp_path)
    assert done.returncode == 0, done.stderr
    rule = (done.stdout + done.stderr).partition("rule evaluate_samples:")[2].partition("\n\n")[0]
    assert "network.pt2" in rule.partition("output:")[0]
    assert '"slices":4' in rule
