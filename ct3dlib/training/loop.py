"""The one training loop, for any objective.

A run is a function of its spec, its items and its objective: every draw is seeded by what it is
for, so a run that was stopped anywhere goes on as if it had not been.
"""

import copy
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ct3dlib.config import TrainSpec
from ct3dlib.errors import TrainingError
from ct3dlib.progress import progress
from ct3dlib.training.checkpoint import Checkpoints, identity_of, only_writer
from ct3dlib.training.distributed import any_rank, process_group, rank
from ct3dlib.training.draws import seed_of
from ct3dlib.training.ema import Ema
from ct3dlib.training.engine import TorchEngine
from ct3dlib.training.loader import Items, batches, loader_errors
from ct3dlib.training.memory import keep_freed_memory
from ct3dlib.training.metric_log import MetricLog, Rate, gpu_metrics
from ct3dlib.training.objective import Batch, Objective
from ct3dlib.training.validation import Best, on_device, validate

logger = logging.getLogger(__name__)

_TERMINATED = 128 + signal.SIGTERM


@dataclass(frozen=True)
class TrainSummary:
    """How a training ended.

    Args:
        step: Optimizer steps done.
        monitor: The validation metric that chose the weights.
        best_step: When it was best; None without validation.
        best_value: Its best value.
        seconds: Time spent in all processes of the run.
        stopped_early: Whether `early_stop` ended it.
    """

    step: int
    monitor: str
    best_step: int | None
    best_value: float | None
    seconds: float
    stopped_early: bool


def train(
    objective: Objective,
    items: Items,
    spec: TrainSpec,
    *,
    run_dir: Path,
    validation: Items | None = None,
    code: str = "",
) -> TrainSummary:
    """Train an objective in place, going on from what `run_dir` holds of the same run.

    At the end the objective holds the weights that were best in validation; without validation the
    last ones (averaged if `ema` is set). Under torchrun every rank calls this and ends with the
    same weights. SIGTERM saves the state between two steps and exits with status 143.

    Args:
        objective: Built from the same seed on every rank.
        items: What is trained on.
        spec: How.
        run_dir: States, metrics.jsonl, TensorBoard. Another run's are moved to `stale-N` in it.
        validation: What chooses the weights; `spec.validation_items` of them.
        code: Fingerprint of the code, and of weights that the training starts from; a state made
            by others is moved aside too.

    Raises:
        ValueError: The spec does not fit the objective, the ranks or this machine.
        TrainingError: A value is not finite, a loader process died, or the folder is in use.
    """
    if validation is None and spec.early_stop is not None:
        raise ValueError("early_stop needs validation items; there are none")
    keep_freed_memory()
    with process_group(spec.device) as device, only_writer(run_dir):
        # Sharded parameters are of another type: the caller's objective keeps plain ones.
        trained = copy.deepcopy(objective) if spec.fully_shard else objective
        identity = identity_of(spec, objective, items=items, validation=validation, code=code)
        checkpoints = Checkpoints(run_dir, identity, keep=spec.keep_last)
        run = _Run(TorchEngine(trained, spec, device), spec, device, checkpoints=checkpoints)
        summary = run.fit(items, validation, run_dir)
        if trained is not objective:
            run.engine.copy_weights_to(objective)
    objective.eval()
    return summary


class _Run:
    """The state of a training between two steps."""

    def __init__(
        self,
        engine: TorchEngine,
        spec: TrainSpec,
        device: torch.device,
        *,
        checkpoints: Checkpoints,
    ) -> None:
        self.engine = engine
        self._spec = spec
        self._device = device
        self._checkpoints = checkpoints
        self._ema = None if spec.ema is None else Ema(engine, spec.ema)
        self._best = Best(spec.monitor, spec.monitor_mode)
        early = spec.early_stop
        self._early = None if early is None else Best(early.monitor, early.mode)
        self._step = 0
        self._seconds = 0.0

    def fit(self, items: Items, validation: Items | None, run_dir: Path) -> TrainSummary:
        """Take all steps that are left, then the best weights."""
        self._resume()
        last = self._spec.stop_at or self._spec.steps
        if self._step > last:
            raise TrainingError(
                f"{run_dir}: has taken {self._step} steps, stop_at wants {last}; raise stop_at, or "
                f"remove the folder to train anew"
            )
        if self._step < last and not self._exhausted():
            project = self._spec.wandb_project
            with (
                MetricLog(run_dir, project, first_step=self._step) as log,
                _sigterm() as terminated,
                loader_errors(self._spec.num_workers),
            ):
                self.engine.objective.train()
                if rank() == 0:
                    self._announce(last)
                if validation is not None and self._step == 0:
                    self._check_monitors(self._validate(validation, log))
                self._take_steps(items, validation, log, terminated)
        self._take_best_weights()
        return TrainSummary(
            step=self._step,
            monitor=self._best.monitor,
            best_step=self._best.step,
            best_value=self._best.value,
            seconds=self._seconds,
            stopped_early=self._exhausted(),
        )

    def _announce(self, last: int) -> None:
        """Say what begins, and what would make it pointless."""
        spec = self._spec
        logger.info(
            "training: steps %d to %d on %s, %d items a step, learning rate %g",
            *(self._step, last, self._device, spec.batch_size, spec.learning_rate),
        )
        if spec.warmup_steps >= last:
            logger.warning(
                "warmup_steps (%d) are all of %d steps: the learning rate never reaches %g; lower "
                "warmup_steps or take more steps",
                *(spec.warmup_steps, last, spec.learning_rate),
            )

    def _take_steps(
        self, items: Items, validation: Items | None, log: MetricLog, terminated: threading.Event
    ) -> None:
        spec, last = self._spec, self._spec.stop_at or self._spec.steps
        loaded = batches(items, spec, first_step=self._step)
        rate = Rate(spec.batch_size)
        for step in progress(
            range(self._step, last), name="train", unit="step", initial=self._step
        ):
            with rate.waiting():
                micro_batches = next(loaded)
            metrics = self._update(step, micro_batches)
            self._step = step + 1
            self._seconds += rate.step()
            if self._step % spec.log_every == 0 or self._step == last:
                metrics |= {**rate.metrics(), **gpu_metrics(self._device)}
                log.scalars(self._step, {f"train/{k}": v for k, v in metrics.items()})
            # A stop between two validations must not choose weights that a whole run would not.
            if validation is not None and self._due(spec.validate_every, spec.steps):
                self._choose(self._validate(validation, log))
            stop = any_rank(terminated.is_set(), self._device)
            if stop or self._exhausted() or self._due(spec.save_every, last):
                self._save()
            if stop:
                logger.warning("SIGTERM: saved the state after %d steps", self._step)
                raise SystemExit(_TERMINATED)
            if self._exhausted():
                break
        loaded.close()

    def _due(self, every: int, last: int) -> bool:
        """Return whether something happens after this step: every n and after the last."""
        return self._step % every == 0 or self._step == last

    def _update(self, step: int, loaded: list[Batch]) -> dict[str, float]:
        """Let every turn take its step; return metrics, named by turn if there are several."""
        micro_batches = [on_device(batch, step, self._device) for batch in loaded]
        objective = self.engine.objective
        turns = objective.turns
        metrics: dict[str, float] = {}
        for index, turn in enumerate(turns):
            if not objective.acts(turn, step):
                continue
            torch.manual_seed(seed_of("step", self._spec.seed, step, rank(), index))
            found = self.engine.update(micro_batches, turn, step)
            prefix = f"{turn}/" if len(turns) > 1 else ""
            metrics |= {f"{prefix}{name}": value for name, value in found.items()}
        if self._ema is not None:
            self._ema.update(step)
        return metrics

    def _validate(self, items: Items, log: MetricLog) -> dict[str, float]:
        """Validate the weights that would be kept and log what comes out."""
        with self._kept_weights():
            metrics, pictures = validate(
                self.engine, items, self._spec, step=self._step, device=self._device
            )
        log.scalars(self._step, metrics)
        log.pictures(self._step, pictures)
        return metrics

    def _check_monitors(self, metrics: dict[str, float]) -> None:
        """Fail before the first step, not at the first validation."""
        self._best.check(metrics, "monitor")
        if self._early is not None:
            self._early.check(metrics, "early_stop.monitor")

    def _choose(self, metrics: dict[str, float]) -> None:
        """Keep the weights if they are the best so far."""
        if self._early is not None:
            self._early.update(self._step, metrics)
        if self._best.update(self._step, metrics):
            with self._kept_weights():
                self._checkpoints.save_best(self.engine.weights())

    def _exhausted(self) -> bool:
        """Return whether validation has not improved for too long."""
        early = self._spec.early_stop
        return (
            early is not None and self._early is not None and self._early.waited >= early.patience
        )

    def _kept_weights(self) -> AbstractContextManager[None]:
        """Let the objective hold, for a while, the weights that a run would keep."""
        return nullcontext() if self._ema is None else self._ema.swapped()

    def _save(self) -> None:
        self._checkpoints.save(
            self._step,
            {
                **self.engine.state(),
                "ema": None if self._ema is None else self._ema.state(),
                "best": asdict(self._best),
                "early": None if self._early is None else asdict(self._early),
                "seconds": self._seconds,
            },
        )

    def _resume(self) -> None:
        state = self._checkpoints.load()
        if state is None:
            return
        self.engine.load_state(state)
        if self._ema is not None:
            self._ema.load_state(state["ema"])
        self._best = Best(**state["best"])
        self._early = None if state["early"] is None else Best(**state["early"])
        self._step, self._seconds = state["step"], state["seconds"]

    def _take_best_weights(self) -> None:
        """Let the objective hold the best weights, or without validation the last."""
        if self._best.step is not None:
            self.engine.load_weights(self._checkpoints.load_best())
        elif self._ema is not None:
            self._ema.swap()


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets instead of ending the process."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)
