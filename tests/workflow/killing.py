"""A run that SIGKILL ends at several points, each time to be started again by the same command."""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

POINTS = [
    "data/raw/dataset/train/*/*/*",
    "data/volumes/chest/*/*.zarr/*/0/c.*",
    "runs/lfq/**/*.pt",
    "tokens/*/*.zarr/*/0/c.*",
    "runs/transformer/**/*.pt",
]


class Killed(NamedTuple):
    """A run that was killed on the way and has since finished.

    Args:
        folder: Where it ran.
        kept: When each array that was whole at a kill was written, ns.
    """

    folder: Path
    kept: dict[Path, int]


def kill_on_the_way(
    command: Sequence[str], folder: Path, *, cwd: Path, environment: dict[str, str]
) -> dict[Path, int]:
    """Start a run and kill it at every point; return when the arrays it left were written."""
    kept: dict[Path, int] = {}
    for point in POINTS:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            appears(folder, point, process)
        finally:
            process.kill()  # SIGKILL
            process.wait()
        end = time.monotonic() + 30
        while steps_running(folder.resolve()):
            assert time.monotonic() < end, "a step outlived the run that started it"
            time.sleep(0.1)
        for path in folder.glob("data/volumes/chest/*/*.zarr/*@*/0/c.*"):
            if ".partial" not in str(path):
                kept.setdefault(path, path.stat().st_mtime_ns)
    return kept


def appears(
    folder: Path, pattern: str, process: subprocess.Popen[str], seconds: float = 480
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
