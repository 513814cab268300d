import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ct3dlib.config import AugmentSpec, ClassifierSpec, VolumeClassifierNetworkSpec
from ct3dlib.metrics.classification import balanced_accuracy
from ct3dlib.objectives.classify import ClassifyObjective
from ct3dlib.training.loader import Items
from ct3dlib.training.loop import train

TRAINING = {"steps": 120, "batch_size": 8, "micro_batch_size": 8, "device": "cpu"}
NETWORK = VolumeClassifierNetworkSpec(filters=8, num_levels=2, num_labels=2)


def _objective(**changes: object) -> ClassifyObjective:
    torch.manual_seed(0)
    spec = ClassifierSpec.model_validate({**TRAINING, **changes})
    return ClassifyObjective(spec, NETWORK, positive_weights=torch.tensor([3.0, 0.5]))


def _batch(volumes: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return {
        "volume": volumes,
        "labels": labels,
        "item_seed": torch.arange(len(volumes)),
        "step": torch.tensor(0),
    }


def test_loss_and_accuracy_by_hand():
    objective = _objective().eval()
    objective.model.forward = lambda volumes: torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    labels = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    loss, metrics = objective.loss(_batch(torch.zeros(2, 1, 4, 4, 4), labels), "model")
    present = [
        3 * math.log1p(math.exp(-2)),
        0.5 * math.log1p(math.e),
        0.5 * math.log1p(math.exp(-3)),
    ]
    wanted = (sum(present) + math.log1p(math.exp(0.5))) / 4
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    assert metrics["accuracy"].item() == 0.5


def test_volumes_are_changed_in_training_alone():
    objective = _objective(augment=AugmentSpec(noise=0.1, noise_probability=1.0))
    seen = []
    objective.model.forward = lambda volumes: seen.append(volumes) or torch.zeros(1, 2)
    batch = _batch(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 2))
    objective.train().loss(batch, "model")
    objective.eval().loss(batch, "model")
    assert (seen[0] != 0).any()
    assert torch.equal(seen[1], batch["volume"])


class Shapes(Items):
    """Noise; label 0 is a bright slab in the upper half, label 1 a dark one below."""

    def __init__(self, first: int, *, mixed: bool = False) -> None:
        self.first, self.mixed = first, mixed

    def __len__(self) -> int:
        return 64

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        own = np.random.default_rng(self.first + index)
        volume = own.normal(0, 0.2, (1, 8, 8, 8)).astype(np.float32)
        labels = own.integers(0, 2, 2)
        for half, (label, value) in enumerate(zip(labels, (1.0, -1.0), strict=True)):
            place = 4 * half + own.integers(0, 3)
            volume[:, :, place : place + 2] += label * value
        if self.mixed:
            labels = own.integers(0, 2, 2)
        return {"volume": torch.from_numpy(volume), "labels": torch.from_numpy(labels).float()}


@pytest.mark.parametrize("mixed", [False, True])
def test_it_tells_labels_of_volumes_that_it_has_not_seen(tmp_path: Path, mixed: bool):
    objective = _objective(learning_rate=1e-2, augment=AugmentSpec())
    objective.positive_weights.fill_(1.0)
    train(objective, Shapes(0, mixed=mixed), objective.spec, run_dir=tmp_path, code="c")
    others = [Shapes(1000).item(i, np.random.default_rng(0)) for i in range(64)]
    with torch.no_grad():
        told = objective.eval().model(torch.stack([o["volume"] for o in others])) > 0
    found = balanced_accuracy(told, torch.stack([o["labels"] for o in others]) > 0)
    if mixed:  # labels of other volumes teach nothing
        assert max(found) < 0.75
    else:
        assert min(found) > 0.9
