"""Where a training's numbers go: metrics.jsonl, TensorBoard and, if asked, Weights & Biases."""

import importlib.util
import json
import math
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ct3dlib.errors import TrainingError
from ct3dlib.training.distributed import rank


class MetricLog:
    """The log of a run. Rank 0 writes; on the others nothing happens.

    `metrics.jsonl` has one object per log step: `step` (optimizer steps done) and the metrics, null
    where a value is not finite. What an earlier process logged beyond `first_step` is taken out,
    since it will be logged again.

    Args:
        run_dir: The run's folder; TensorBoard reads `tensorboard/` in it.
        wandb_project: Log to this project of Weights & Biases too.
        first_step: The step a resume starts from; 0 starts anew.

    Raises:
        TrainingError: Weights & Biases is asked for and not installed.
    """

    def __init__(
        self, run_dir: Path, wandb_project: str | None = None, *, first_step: int = 0
    ) -> None:
        self._path = run_dir / "metrics.jsonl"
        self._writer: SummaryWriter | None = None
        self._wandb: Any = None
        if rank():
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        _truncate(self._path, first_step)
        self._writer = SummaryWriter(
            str(run_dir / "tensorboard"), purge_step=first_step + 1 if first_step else 0
        )
        if wandb_project is not None:
            self._wandb = _start_wandb(run_dir, wandb_project)

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close all files, also after an error."""
        del error, trace
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics, as `train/loss`, after so many optimizer steps."""
        if self._writer is None:
            return
        finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log({**metrics, "step": step})

    def pictures(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Log pictures, C H W in [0, 1], after so many optimizer steps.

        Movies, N 1 H W, become `movies/{name}-{step}.gif` in the run's folder.
        """
        if self._writer is None:
            return
        found = {k: v.detach().float().clamp(0, 1).cpu().numpy() for k, v in pictures.items()}
        for name, movie in found.items():
            if movie.ndim == 4:
                _write_gif(self._path.parent / "movies" / f"{name}-{step:09d}.gif", movie[:, 0])
        arrays = {name: array for name, array in found.items() if array.ndim == 3}
        for name, array in arrays.items():
            self._writer.add_image(name, array, step)
        if self._wandb is not None and arrays:
            import wandb

            images = {k: wandb.Image(v.transpose(1, 2, 0)) for k, v in arrays.items()}
            self._wandb.log({**images, "step": step})


def _write_gif(path: Path, movie: NDArray[np.float32]) -> None:
    """Write frames, N H W in [0, 1]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = (Image.fromarray(np.rint(frame * 255).astype(np.uint8)) for frame in movie)
    first.save(path, save_all=True, append_images=others, duration=100, loop=0)


class Rate:
    """Samples per second and the share of time spent waiting for data, since the last log."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._reset()
        self._last = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Enclose the wait for data."""
        start = time.perf_counter()
        # What lay between two steps (validation, saving) is no part of the rate.
        self._last = start
        yield
        self._waited += time.perf_counter() - start

    def step(self) -> float:
        """Count a step that ended now; return its seconds."""
        seconds = time.perf_counter() - self._last
        self._steps += 1
        self._seconds += seconds
        return seconds

    def metrics(self) -> dict[str, float]:
        """Return the rate and the share, and start anew."""
        metrics = {
            "samples_per_s": self._steps * self._batch_size / self._seconds,
            "data_wait": self._waited / self._seconds,
        }
        self._reset()
        return metrics

    def _reset(self) -> None:
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0


def gpu_metrics(device: torch.device) -> dict[str, float]:
    """Return peak memory, GiB, and utilisation, %, of a CUDA device; nothing for others."""
    if device.type != "cuda":
        return {}
    metrics = {"gpu_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}
    if importlib.util.find_spec("pynvml") is not None:
        metrics["gpu_utilisation"] = float(torch.cuda.utilization(device))
    return metrics


def _truncate(path: Path, first_step: int) -> None:
    """Keep the whole lines up to a step; all go where a run starts anew."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        # A killed process may leave half a line, which is always the last.
        if not first_step or not line.endswith("\n") or json.loads(line)["step"] > first_step:
            break
        kept.append(line)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text("".join(kept))
    partial.replace(path)


def _start_wandb(run_dir: Path, project: str) -> Any:
    """Start or go on with the Weights & Biases run of a folder."""
    if importlib.util.find_spec("wandb") is None:
        raise TrainingError(
            f"wandb_project is {project!r} and wandb is not installed; "
            f"pip install 'ct3dlib[wandb]' or set wandb_project: null"
        )
    import wandb

    id_file = run_dir / "wandb_id"
    if not id_file.exists():
        id_file.write_text(uuid.uuid4().hex[:12])
    run = wandb.init(
        project=project,
        name=run_dir.name,
        id=id_file.read_text(),
        dir=str(run_dir),
        resume="allow",
    )
    # A resume logs steps again, which W&B's own counter refuses.
    run.define_metric("*", step_metric="step")
    return run
