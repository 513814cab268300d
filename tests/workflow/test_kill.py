"""SIGKILL at any point, then the same command: it completes and nothing is done twice."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.xdist_group("kill")]


def appears(
    folder: Path, pattern: str, process: subprocess.Popen[str], seconds: float = 240
) -> None:
    """Wait until a file appears below a folder."""
    end = time.monotonic() + seconds
    while not any(folder.glob(pattern)):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end, f"{pattern} never appeared"
        time.sleep(0.05)


def steps_running(folder: Path) -> list[int]:
    """Return the Python processes that work in a folder: steps and their workers."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            where = (entry / "cwd").readlink()
        except OSError:
            continue
        if b"python" in command.split(b"\0")[0] and where == folder:
            found.append(int(entry.name))
    return found


POINTS = [
    "data/raw/dataset/train/*/*/*",
    "data/volumes/chest/*/*.zarr/*/0/c.*",
    "runs/lfq/**/*.pt",
    "tokens/*/*.zarr/*/0/c.*",
    "runs/transformer/**/*.pt",
]


def test_killed_runs_complete_by_the_same_command(
    tmp_path, repository, miniature, environment, snakemake
):
    command = ["snakemake", "all", "--cores", "2"]
    command += ["--directory", str(tmp_path), "--configfile", str(miniature)]
    kept: dict[Path, int] = {}
    for point in POINTS:
        process = subprocess.Popen(
            command,
            cwd=repository,
            env=environment,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        appears(tmp_path, point, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        end = time.monotonic() + 30
        while steps_running(tmp_path.resolve()):
            assert time.monotonic() < end, "a step outlived the run that started it"
            time.sleep(0.1)
        for path in tmp_path.glob("data/volumes/chest/*/*.zarr/*@*/0/c.*"):
            if ".partial" not in str(path):
                kept.setdefault(path, path.stat().st_mtime_ns)
    done = snakemake("all", "--cores", "2", directory=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert kept
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    for split in ("train", "tune", "valid"):
        tokens = pd.read_parquet(tmp_path / f"tokens/{split}.parquet")
        assert tokens["volume"].is_unique
    assert not list(tmp_path.glob("**/*.attempts.json"))
