"""The miniature graph on a real Slurm: one node, two fake GPUs, GPU rules asking for one."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.workflow.conftest import MINIATURE, environment  # noqa: F401

HERE = Path(__file__).parent
REAL_CONF = Path("/etc/slurm/slurm.conf")
MISSING = [p for p in ("slurmctld", "slurmd", "sbatch", "squeue", "srun") if not shutil.which(p)]

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.workflow,
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.skipif(bool(MISSING), reason=f"no {MISSING}: apt-get install slurm-wlm"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a private Slurm needs root"),
    pytest.mark.skipif(
        REAL_CONF.exists() and not REAL_CONF.is_symlink(), reason="a real cluster is configured"
    ),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    state = tmp_path_factory.mktemp("slurm") / "state"
    subprocess.run([HERE / "slurm_up.sh", state, "2"], check=True, timeout=90)
    yield {"SLURM_CONF": str(state / "slurm.conf")}
    subprocess.run([HERE / "slurm_down.sh", state], check=True, timeout=60)


def jobs(slurm: dict[str, str]) -> pd.DataFrame:
    """Return the jobs that Slurm has seen, with their rule, state, partition and GPUs."""
    fields = "jobid:12,state:14,partition:10,tres-per-job:24,comment:120"
    command = ["squeue", "--states=all", "-h", "-O", fields]
    out = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **slurm}
    )
    widths = (12, 14, 10, 24, 120)
    rows = []
    for line in out.stdout.splitlines():
        cells, at = [], 0
        for width in widths:
            cells.append(line[at : at + width].strip())
            at += width
        rows.append(cells)
    return pd.DataFrame(rows, columns=["job", "state", "partition", "gpus", "comment"])


def test_the_miniature_graph_runs_on_slurm(slurm, repository, environment, tmp_path):  # noqa: F811
    preset = tmp_path / "slurm.yaml"
    preset.write_text(
        yaml.safe_dump(
            {
                **MINIATURE,
                "phantom": {**MINIATURE["phantom"], "train_patients": 2, "faults": []},
                "catalog": {"tune": 0.3, "shards": {"train": 1, "tune": 1, "valid": 1}},
            }
        )
    )
    out = tmp_path / "out"
    command = ["snakemake", "--profile", "slurm", "all", "--directory", str(out)]
    command += ["--configfile", str(preset)]
    # This host has few cores and quick jobs: look early, do not wait for slow disks.
    command += ["--slurm-init-seconds-before-status-checks", "4", "--latency-wait", "5"]
    done = subprocess.run(
        ["timeout", "-k", "10", "700", *command],
        cwd=repository,
        env={**environment, **slurm},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    table = jobs(slurm)
    assert set(table["state"]) == {"COMPLETED"}
    asked = table[table["gpus"] == "gres:gpu:1"]
    rules = ("tokenizer", "encode", "transformer", "samples")
    assert all(any(f"rule_{rule}" in c for c in asked["comment"]) for rule in rules)
    assert set(asked["partition"]) == {"gpu"}
    marker = json.loads((out / "tokens/valid.done").read_text())
    assert marker["encoded"] == marker["volumes"] > 0
    assert (out / "results/report.html").stat().st_size > 10_000
