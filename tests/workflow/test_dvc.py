"""DVC and Snakemake agree: after `dvc repro` neither has anything left to do."""

import json
import shutil
import subprocess

import pytest
import yaml

from ct3dlib.cohort.labels import LABELS
from tests.test_config import merged
from tests.workflow.conftest import MINIATURE, every_tokenizer

pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.xdist_group("dvc")]

TRACKED = (
    *("Snakefile", "rules", "workflow_scripts", "ct3dlib", "profiles", "slurm", "dvc.yaml"),
    *("config.yaml", ".dvc", ".dvcignore", ".gitignore", "pyproject.toml"),
)


@pytest.fixture
def clone(repository, tmp_path):
    """Return a fresh checkout whose embedded default is the miniature."""
    target = tmp_path / "clone"
    target.mkdir()
    for name in TRACKED:
        source = repository / name
        ignored = shutil.ignore_patterns("__pycache__", "cache", "tmp")
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=ignored)
        else:
            shutil.copy(source, target / name)
    base = yaml.safe_load((repository / "config.yaml").read_text())
    lone = {**MINIATURE, "catalog": {"shards": {"train": 1, "tune": 1, "valid": 1}}}
    # DVC keeps every tokenizer of the embedded default.
    small = merged(base, every_tokenizer(lone))
    (target / "config.yaml").write_text(yaml.safe_dump(small))
    return target


def test_repro_builds_everything_and_then_nothing(clone, environment):
    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=clone, env=environment, capture_output=True, text=True, timeout=800
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
        return done.stdout + done.stderr

    run("git", "init", "-q")
    run("dvc", "repro")
    assert (clone / "results/report.html").exists()
    judged = json.loads((clone / "metrics/generation.json").read_text())
    for name in ("label_balanced_accuracy", "held_out_balanced_accuracy"):
        assert set(judged[name]) <= set(LABELS)
        assert all(0 <= value <= 1 for value in judged[name].values())
    assert len(judged["label_balanced_accuracy"]) == 2  # of two samples, one label each
    assert "Nothing to be done" in run("snakemake", "-n", "all")
    assert "up to date" in run("dvc", "repro")
    assert "up to date" in run("dvc", "status")
    assert "psnr_db" in run("dvc", "metrics", "show")
