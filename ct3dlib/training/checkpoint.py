"""What a run needs to go on: whole states, the last few of them, and the best weights."""

import contextlib
import hashlib
import json
import logging
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ct3dlib.config import TrainSpec
from ct3dlib.errors import TrainingError
from ct3dlib.training.distributed import barrier, rank
from ct3dlib.training.loader import Items
from ct3dlib.training.objective import Objective

logger = logging.getLogger(__name__)

State = dict[str, Any]
Identity = dict[str, str]
_LOCK = "lock"
# Keys that leave the sequence of weights as it is: a run may go on with other values.
_FREE_KEYS = {
    "stop_at",
    "save_every",
    "keep_last",
    "log_every",
    "num_workers",
    "devices",
    "threads",
    "device",
    "wandb_project",
}


def identity_of(
    spec: TrainSpec, objective: Objective, *, items: Items, validation: Items | None, code: str
) -> Identity:
    """Return what must be the same for a run to go on from a state, by name."""
    keys = spec.model_dump(mode="json", exclude=_FREE_KEYS)
    shapes = [(name, list(value.shape)) for name, value in objective.state_dict().items()]
    return {
        **{f"spec.{name}": json.dumps(value, sort_keys=True) for name, value in keys.items()},
        "parameters": hashlib.sha256(json.dumps(shapes).encode()).hexdigest(),
        "items": items.key,
        "validation": "" if validation is None else validation.key,
        "code or starting weights": code,
    }


@contextlib.contextmanager
def only_writer(run_dir: Path, *, wait_s: float = 30.0) -> Iterator[None]:
    """Hold the lock of a run on rank 0.

    Args:
        run_dir: The run's folder.
        wait_s: How long to wait for it: a step that its run left behind needs a while to end.

    Raises:
        TrainingError: Another process trains in this folder.
    """
    if rank():
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / _LOCK)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise TrainingError(
            f"{run_dir}: another process trains here; wait for it or give another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


class Checkpoints:
    """The states of a run in `run_dir/checkpoints`, newest last, and `run_dir/best.pt`.

    Every rank reads; rank 0 writes, under another name first, so that a kill leaves no half file.

    Args:
        run_dir: The run's folder.
        identity: Of the run that wants to go on.
        keep: States kept.
    """

    def __init__(self, run_dir: Path, identity: Identity, *, keep: int) -> None:
        self._run_dir = run_dir
        self._identity = identity
        self._keep = keep

    def save(self, step: int, state: State) -> None:
        """Write the state after so many steps and remove those that are too old."""
        if rank() == 0:
            path = self._run_dir / "checkpoints" / f"step-{step:09d}.pt"
            _write(path, {**state, "step": step, "identity": self._identity})
            for old in self._paths()[: -self._keep]:
                old.unlink()
        barrier()

    def load(self) -> State | None:
        """Return the newest whole state of this run, None to start anew.

        A damaged file is passed over with a warning. What another run left (its identity differs)
        is moved to `stale-N` with a warning.
        """
        state = self._newest()
        differing = [] if state is None else _differing(state["identity"], self._identity)
        barrier()
        if differing:
            if rank() == 0:
                self._move_aside(differing)
            barrier()
            return None
        return state

    def save_best(self, weights: State) -> None:
        """Write the best weights."""
        if rank() == 0:
            _write(self._run_dir / "best.pt", weights)
        barrier()

    def load_best(self) -> State:
        """Return the best weights.

        Raises:
            TrainingError: They are missing or damaged.
        """
        path = self._run_dir / "best.pt"
        try:
            return _read(path)
        except _DAMAGED as error:
            raise TrainingError(
                f"{path}: the best weights are missing or damaged ({error}); remove "
                f"{self._run_dir} to train anew"
            ) from error

    def _paths(self) -> list[Path]:
        return sorted((self._run_dir / "checkpoints").glob("step-*.pt"))

    def _newest(self) -> State | None:
        for path in reversed(self._paths()):
            try:
                return _read(path)
            except _DAMAGED as error:
                if rank() == 0:
                    logger.warning("%s: damaged (%s), going back to the one before", path, error)
        return None

    def _move_aside(self, differing: list[str]) -> None:
        number = 1
        while (aside := self._run_dir / f"stale-{number}").exists():
            number += 1
        aside.mkdir()
        for path in self._run_dir.iterdir():
            if path.name != _LOCK and not path.name.startswith("stale-"):
                path.rename(aside / path.name)
        logger.warning(
            "%s: holds another run (other %s); moved to %s, starting anew",
            self._run_dir,
            ", ".join(differing),
            aside.name,
        )


# What a missing, cut or changed file raises below `_read`.
_DAMAGED = (
    *(OSError, RuntimeError, ValueError, EOFError, KeyError),
    *(zipfile.BadZipFile, zlib.error),
)


def _write(path: Path, state: State) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    torch.save(state, partial)
    partial.replace(path)


def _read(path: Path) -> State:
    """Return a state on the CPU; nothing but tensors and plain values is unpickled."""
    with zipfile.ZipFile(path) as file:
        damaged = file.testzip()  # torch itself does not compare the checksums
    if damaged is not None:
        raise ValueError(f"checksum of {damaged} differs")
    return torch.load(path, map_location="cpu", weights_only=True)


def _differing(found: Identity, wanted: Identity) -> list[str]:
    names = sorted(found.keys() | wanted.keys())
    return [name for name in names if found.get(name) != wanted.get(name)]
