import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ct3dlib.errors import TrainingError
from ct3dlib.training.engine import TorchEngine
from ct3dlib.training.loader import Items
from ct3dlib.training.objective import Batch, Metrics, Objective
from ct3dlib.training.validation import Best, validate
from tests.contracts.objective_cases import spec_of


class Values(Items):
    """Item i holds i; its weight is i too."""

    def __len__(self) -> int:
        return 5

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        return {"x": torch.tensor([float(index)])}


class Mean(Objective):
    """The mean of the items' values, weighted by themselves; draws noise from all generators."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5))
        self.seen: list[tuple[bool, bool, int]] = []

    def weight(self, batch: Batch, turn: str) -> Tensor:
        return batch["x"].sum()

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        self.seen.append((self.training, torch.is_grad_enabled(), int(batch["step"])))
        mean = batch["x"].square().sum() / batch["x"].sum()
        return mean, {"noise": torch.rand(())}

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        return {"first": batch["x"].expand(1, -1, 4)}


def _validate(objective: Objective, **changes: object):
    spec = spec_of(validation_items=5, **changes)
    engine = TorchEngine(objective, spec, torch.device("cpu"))
    return validate(engine, Values(), spec, step=9, device=torch.device("cpu"))


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_a_metric_is_the_mean_over_all_terms(micro_batch_size):
    # 0 + 1 + 4 + 9 + 16 over 0 + 1 + 2 + 3 + 4, whatever the batches; one of weight 0 is NaN.
    metrics, _ = _validate(Mean(), micro_batch_size=micro_batch_size)
    assert metrics["val/loss"] == pytest.approx(30 / 10)


def test_validation_repeats_and_leaves_training_mode():
    objective = Mean().train()
    first, pictures = _validate(objective, micro_batch_size=2)
    torch.rand(3)
    again, _ = _validate(objective, micro_batch_size=2)
    assert first == again
    assert set(objective.seen) == {(False, False, 9)}
    assert objective.training
    assert pictures["val/first"].shape == (1, 2, 4)


def test_the_best_is_remembered_and_waiting_counted():
    best = Best("val/psnr_db", "max")
    found = [best.update(i, {"val/psnr_db": v}) for i, v in enumerate([20.0, 22.0, 22.0, 21.0])]
    assert found == [True, True, False, False]
    assert (best.step, best.value, best.waited) == (1, 22.0, 2)
    low = Best("val/loss", "min")
    assert [low.update(i, {"val/loss": v}) for i, v in enumerate([2.0, 3.0, 1.0])] == [
        True,
        False,
        True,
    ]


def test_a_monitor_that_is_not_finite_stops():
    with pytest.raises(TrainingError, match="step 3: val/loss is nan; see the tune split"):
        Best("val/loss", "min").update(3, {"val/loss": math.nan})
