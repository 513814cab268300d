"""Validation: the same items with the same draws each time, and the best value so far."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ct3dlib.config import TrainSpec
from ct3dlib.errors import TrainingError
from ct3dlib.training.distributed import sum_over_ranks
from ct3dlib.training.draws import seed_of
from ct3dlib.training.engine import TorchEngine
from ct3dlib.training.loader import Items, validation_batches
from ct3dlib.training.objective import Batch


def on_device(batch: Batch, step: int, device: torch.device) -> Batch:
    """Return a batch of the loader on the device, with the step."""
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    return {**moved, "step": torch.tensor(step, device=device)}


@torch.no_grad()
def validate(
    engine: TorchEngine, items: Items, spec: TrainSpec, *, step: int, device: torch.device
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the metrics, as `val/loss`, and the pictures of the first batch.

    A metric is the mean over the terms of all batches of all ranks (`Objective.weight`).
    """
    objective = engine.objective
    objective.eval()
    sums: dict[str, Tensor] = {}
    pictures: dict[str, Tensor] = {}
    for index, (loaded, counts) in enumerate(validation_batches(items, spec)):
        torch.manual_seed(seed_of("validation", spec.seed, index))
        batch = on_device(loaded, step, device)
        weight = objective.weight(batch, objective.turns[0]) * counts
        with engine.autocast():
            metrics = objective.validate(batch)
            if index == 0:
                pictures = objective.pictures(batch)
        for name, value in {**metrics, "": torch.ones_like(weight)}.items():
            term = torch.where(weight > 0, value.float() * weight, 0.0)
            sums[name] = sums.get(name, 0.0) + term
    objective.train()
    stacked = sum_over_ranks(torch.stack(list(sums.values())))
    totals = dict(zip(sums, stacked.tolist(), strict=True))
    count = totals.pop("")
    return {f"val/{name}": value / count for name, value in totals.items()}, {
        f"val/{name}": picture for name, picture in pictures.items()
    }


@dataclass
class Best:
    """The best value of a validation metric and when it was.

    Args:
        monitor: Name of the metric, as `val/loss`.
        mode: Whether low or high is good.
        step: When the best value was; None before the first.
        value: The best value.
        waited: Validations since then.
    """

    monitor: str
    mode: Literal["min", "max"]
    step: int | None = None
    value: float | None = None
    waited: int = 0

    def check(self, metrics: dict[str, float], key: str) -> None:
        """Refuse a monitor that the validation does not give.

        Raises:
            TrainingError: It does not; the message lists what there is.
        """
        if self.monitor not in metrics:
            raise TrainingError(
                f"{key}: no metric {self.monitor!r}; the validation gives {', '.join(metrics)}"
            )

    def update(self, step: int, metrics: dict[str, float]) -> bool:
        """Take the metrics of a validation; return whether they are the best so far.

        Raises:
            TrainingError: The value is not finite.
        """
        value = metrics[self.monitor]
        if not math.isfinite(value):
            raise TrainingError(f"step {step}: {self.monitor} is {value}; see the tune split")
        sign = 1 if self.mode == "min" else -1
        better = self.value is None or sign * value < sign * self.value
        if better:
            self.step, self.value, self.waited = step, value, 0
        else:
            self.waited += 1
        return better
