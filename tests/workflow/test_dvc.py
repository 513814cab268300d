"""DVC and Snakemake agree: after `dvc repro` neither has anything left to do."""

import json
from pathlib import Path

import pytest

from ct3dlib.cohort.labels import LABELS
from tests.workflow.conftest import run_in

pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.xdist_group("dvc")]


def test_repro_builds_everything_and_then_nothing(
    reproduced: Path, environment: dict[str, str]
) -> None:
    assert (reproduced / "results/report.html").exists()
    judged = json.loads((reproduced / "metrics/generation.json").read_text())
    for name in ("label_balanced_accuracy", "held_out_balanced_accuracy"):
        assert set(judged[name]) <= set(LABELS)
        assert all(0 <= value <= 1 for value in judged[name].values())
    assert len(judged["label_balanced_accuracy"]) == 2  # of two samples, one label each

    def run(*command: str) -> str:
        return run_in(reproduced, environment, *command)

    assert "Nothing to be done" in run("snakemake", "-n", "all")
    assert "up to date" in run("dvc", "repro")
    assert "up to date" in run("dvc", "status")
    assert "psnr_db" in run("dvc", "metrics", "show")
