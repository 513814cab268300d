"""SIGKILL at any point, then the same command: it completes and nothing is done twice."""

import pandas as pd
import pytest

from tests.workflow.killing import Killed

pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.xdist_group("workflow")]


def test_killed_runs_complete_by_the_same_command(killed: Killed) -> None:
    folder, kept = killed
    assert kept
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for split in ("train", "tune", "valid"):
        tokens = pd.read_parquet(folder / f"tokens/{split}.parquet")
        assert tokens["volume"].is_unique
    assert not list(folder.glob("**/*.attempts.json"))
