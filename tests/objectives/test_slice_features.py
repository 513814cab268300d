import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ct3dlib.config import AugmentSpec, FeaturesSpec, SliceFeaturesSpec
from ct3dlib.datasets.phantom_findings import make_patient
from ct3dlib.datasets.phantom_render import render
from ct3dlib.datasets.phantom_space import Grid
from ct3dlib.objectives.slice_features import SliceFeaturesObjective, region_shares
from ct3dlib.training.loader import Items
from ct3dlib.training.loop import train

GRID = Grid((12, 40, 48), (24.0, 7.0, 7.0), (-140.0, -145.0, -168.0))


def _objective(**changes: object) -> SliceFeaturesObjective:
    values = {
        "steps": 120,
        "batch_size": 8,
        "micro_batch_size": 8,
        "learning_rate": 1e-2,
        "warmup_steps": 10,
        "device": "cpu",
        "recipe": "chest",
        "crop": (40, 48),
        "model": SliceFeaturesSpec(filters=8),
    }
    torch.manual_seed(0)
    return SliceFeaturesObjective(FeaturesSpec.model_validate({**values, **changes}))


def _batch(volumes: Tensor, regions: Tensor) -> dict[str, Tensor]:
    return {
        "volume": volumes,
        "regions": regions,
        "item_seed": torch.arange(len(volumes)),
        "step": torch.tensor(0),
    }


def test_shares_count_the_pixels_of_each_cell():
    regions = torch.tensor([[[0, 0, 2, 2], [0, 1, 2, 2], [1, 1, 0, 2], [2, 0, 0, 0]]])
    shares = region_shares(regions, num_regions=3, cell=2)
    cells = [[[3, 0], [1, 3]], [[1, 0], [2, 0]], [[0, 4], [1, 1]]]  # K h w, of 4 pixels
    assert torch.equal(shares[0], torch.tensor(cells) / 4)


def test_loss_and_metrics_by_hand():
    objective = _objective(
        model=SliceFeaturesSpec(filters=8, num_levels=2, num_regions=3), crop=(2, 4)
    )
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]]).T.view(1, 3, 1, 2)
    objective.model.region_logits = lambda slices: logits
    regions = torch.tensor([[0, 0, 2, 2], [0, 1, 2, 2]]).view(1, 1, 1, 2, 4)
    loss, metrics = objective.eval().loss(_batch(torch.zeros(1, 1, 1, 2, 4), regions), "model")
    log_p = [
        [x - math.log(math.exp(2) + 1 + math.e) for x in (2, 0, 1)],
        [-math.log(2 + math.exp(3))],
    ]
    wanted = (-(0.75 * log_p[0][0] + 0.25 * log_p[0][1]) - log_p[1][0]) / 2
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / 2
    assert metrics["divergence"].item() == pytest.approx(wanted - entropy, rel=1e-5)
    assert metrics["accuracy"].item() == 0.5  # the second cell holds 2, 1 is likeliest


def test_training_turns_slices_and_regions_together():
    augment = AugmentSpec(rotation=40, scale=0.2)
    objective = _objective(augment=augment, crop=(32, 32))
    seen = {}

    def look(slices: Tensor) -> Tensor:
        seen["slices"] = slices
        return torch.zeros(len(slices), 21, 4, 4)

    objective.model.region_logits = look
    regions = torch.zeros(2, 1, 1, 32, 32, dtype=torch.int64)
    regions[..., 6:12, 20:26] = 1
    volumes = 2.0 * regions - 1
    objective.eval().loss(_batch(volumes, regions), "model")
    assert torch.equal(seen["slices"], volumes[:, :, 0])
    objective._shares = lambda batch: (
        seen.update(batch) or region_shares(batch["regions"][:, 0, 0], num_regions=21, cell=8)
    )
    objective.train().loss(_batch(volumes, regions), "model")
    assert not torch.equal(seen["volume"], volumes)
    same = (seen["volume"] > 0) == (seen["regions"] == 1)
    assert same.float().mean() > 0.99


def test_the_picture_shows_slice_truth_and_prediction():
    objective = _objective().eval()
    regions = torch.zeros(1, 1, 1, 16, 24, dtype=torch.int64)
    regions[..., 8:] = 10
    picture = objective.pictures(_batch(torch.ones(1, 1, 1, 16, 24), regions))["regions"]
    assert picture.shape == (3, 16, 72)
    assert (picture[:, :, :24] == 1).all()
    truth = picture[:, :, 24:48]
    assert (truth[:, :, 8:] == truth[:, :1, -1:]).all()
    assert not torch.equal(truth[:, :, 0], truth[:, :, -1])


class Slices(Items):
    """Every slice of synthetic patients with its true regions."""

    def __init__(self, seeds: range) -> None:
        self._slices = []
        for seed in seeds:
            hu, regions, _ = render(make_patient(np.random.default_rng(seed), []), GRID)
            noisy = hu + np.random.default_rng(seed).normal(0, 25, hu.shape)
            values = np.clip(noisy / 1000, -1, 1).astype(np.float32)
            self._slices += zip(values, regions.astype(np.int64), strict=True)

    def __len__(self) -> int:
        return len(self._slices)

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        volume, regions = (torch.from_numpy(x)[None, None] for x in self._slices[index])
        return {"volume": volume, "regions": regions}


def test_it_learns_the_anatomy_of_patients_it_has_not_seen(tmp_path: Path):
    seen, unseen = Slices(range(4)), Slices(range(4, 6))
    objective = _objective(validate_every=120, validation_items=24)
    train(objective, seen, objective.spec, run_dir=tmp_path, validation=unseen)
    items = [unseen.item(i, np.random.default_rng(0)) for i in range(len(unseen))]
    volumes, regions = (
        torch.cat([item[name][0] for item in items]) for name in ("volume", "regions")
    )
    truth = region_shares(regions, num_regions=21, cell=8).argmax(dim=1)
    with torch.no_grad():
        right = objective.model.region_logits(volumes[:, None]).argmax(dim=1) == truth
    anatomy = truth > 0
    for cells, margin in ((torch.ones_like(anatomy), 0.12), (anatomy, 0.4)):
        majority = (truth[cells] == truth[cells].mode().values).float().mean()
        assert right[cells].float().mean() > majority + margin
