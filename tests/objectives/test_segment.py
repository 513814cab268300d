"""Training of the segmenter: its loss, what moves with a volume, what learns how fast."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ct3dlib.config import MaeSegmentSpec, SegmenterNetworkSpec, TrainSpec
from ct3dlib.losses.segmentation import balanced_cross_entropy, soft_dice_loss
from ct3dlib.metrics.overlap import dice
from ct3dlib.objectives.segment import SegmentObjective, foreground_dice
from ct3dlib.training.loader import Items
from ct3dlib.training.loop import TrainSummary, train
from tests.cubes import SHAPE, TINY, WINDOW, bright_logits, cube

VALUES = {"steps": 1, "batch_size": 1, "micro_batch_size": 1, "recipe": "small", "init_from": None}


class Cubes(Items):
    """A bright box each, always at the same place of an item."""

    def __init__(self, count: int, first: int = 0) -> None:
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def item(self, index: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        del rng
        hu, inside = cube(np.random.default_rng(self.first + index))
        return {
            "values": torch.from_numpy(hu)[None],
            "window": torch.tensor(WINDOW),
            "mask": torch.from_numpy(inside)[None],
        }


def objective(**changes) -> SegmentObjective:
    values = {**VALUES, "model": TINY, "augment": {}, **changes}
    if values["init_from"]:
        del values["model"]
    torch.manual_seed(0)
    network = {"encoder": {**TINY, "shape": SHAPE}, "filters": 8, "num_classes": 2}
    return SegmentObjective(
        MaeSegmentSpec.model_validate(values), SegmenterNetworkSpec.model_validate(network)
    )


def batch(count: int = 2) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    items = [Cubes(count).item(i, rng) for i in range(count)]
    stacked = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    return {**stacked, "item_seed": torch.arange(count) + 5, "step": torch.tensor(0)}


@pytest.fixture
def knows(monkeypatch):
    monkeypatch.setattr("ct3dlib.models.segmenter.Segmenter.forward", bright_logits)


@pytest.mark.parametrize(("overlap", "entropy"), [(1, 0), (0, 1), (0.5, 2)], ids=str)
def test_the_loss_is_the_weighted_sum(overlap, entropy):
    found = objective(dice=overlap, cross_entropy=entropy).eval()
    given = batch()
    loss, _ = found.loss(given, "model")
    volumes = (given["values"].float() + 1000) / 2000
    logits = found.model(volumes.clamp(0, 1))
    wanted = overlap * soft_dice_loss(logits, given["mask"]).mean()
    wanted = wanted + entropy * balanced_cross_entropy(logits, given["mask"]).mean()
    torch.testing.assert_close(loss, wanted)


def test_dice_is_that_of_counted_voxels():
    generator = torch.Generator().manual_seed(0)
    told, mask = (
        torch.randint(0, 4, (3, 1, 4, 5, 6), generator=generator, dtype=torch.uint8)
        for _ in range(2)
    )
    mask[1][mask[1] == 2] = 1  # told and not there: counts, as 0
    told[2][told[2] == 3] = 0  # neither told nor there: does not count
    mask[2][mask[2] == 3] = 0
    found = foreground_dice(told, mask, num_classes=5)
    for i in range(3):
        each = dice(told[i].numpy(), mask[i].numpy(), range(1, 5))
        assert found[i].item() == pytest.approx(np.nanmean(list(each.values())), abs=1e-6)
    nothing = torch.zeros_like(mask)
    assert foreground_dice(nothing, nothing, num_classes=4).tolist() == [1, 1, 1]
    assert foreground_dice(told, nothing, num_classes=4).tolist() == [0, 0, 0]


def test_a_model_that_knows_has_dice_one(knows):
    found = objective().eval().validate(batch())
    assert found["dice"].item() == 1
    assert found["loss"].item() < 0.1


AUGMENTS = {
    "flip": {"flip": [1, 1, 1], "laterality_safe": False},
    "shift": {"shift": 2.0},
    "rotation": {"rotation": 90.0},
}


@pytest.mark.parametrize("augment", AUGMENTS.values(), ids=AUGMENTS)
def test_a_mask_goes_where_its_volume_goes(knows, augment):
    found = objective(augment=augment, cross_entropy=0).train()
    volumes, mask = found._seen(batch())
    assert mask.dtype == torch.uint8
    assert not torch.equal(mask, batch()["mask"])
    told = bright_logits(found.model, volumes).argmax(1, keepdim=True)
    score = foreground_dice(told, mask, num_classes=2)
    assert score.min() == 1 if "flip" in augment else score.min() > 0.85
    left_behind = foreground_dice(told, batch()["mask"], num_classes=2)
    assert (left_behind < score).all()
    still = found.eval()._seen(batch())
    assert torch.equal(still[1], batch()["mask"])


def test_a_frozen_encoder_stays_what_it_is(tmp_path):
    found = objective(frozen=True, init_from="models/mae")
    before = {k: v.clone() for k, v in found.model.encoder.state_dict().items()}
    spec = TrainSpec(steps=2, batch_size=2, micro_batch_size=2, device="cpu")
    found.train()
    assert not found.model.encoder.training
    assert found.model.stem.training
    optimised = {id(p) for _, group in found.layers("model") for p in group}
    assert not optimised & {id(p) for p in found.model.encoder.parameters()}
    head = {n: p.clone() for n, p in found.model.named_parameters() if p.requires_grad}
    run(found, spec, tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in found.model.encoder.state_dict().items())
    after = dict(found.model.named_parameters())
    assert not [n for n, p in head.items() if torch.equal(p, after[n])]


def run(found: SegmentObjective, spec: TrainSpec, folder: Path) -> TrainSummary:
    return train(found, Cubes(24), spec, run_dir=folder, validation=Cubes(6, first=100))


def test_layers_learn_slower_the_deeper_they_lie():
    found = objective(layer_decay=0.5)
    rates = [rate for rate, _ in found.layers("model")]
    # Embedding, four blocks, the norm, the decoder.
    assert rates == [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 1]
    grouped = [p for _, group in found.layers("model") for p in group]
    assert {id(p) for p in grouped} == {id(p) for p in found.model.parameters()}
    assert len(grouped) == len({id(p) for p in grouped})


def test_pictures_show_the_slice_with_most_of_a_mask(knows):
    given = batch()
    (picture,) = objective().eval().pictures(given).values()
    hu, inside = given["values"][0, 0], given["mask"][0, 0]
    fullest = int(inside.sum((1, 2)).argmax())
    volume, truth, told = picture[0].split(24, dim=1)
    torch.testing.assert_close(volume, ((hu[fullest].float() + 1000) / 2000).clamp(0, 1))
    torch.testing.assert_close(truth, inside[fullest].float())
    torch.testing.assert_close(told, truth)


def test_it_learns_a_bright_cube_wherever_it_is(tmp_path):
    found = objective()
    spec = TrainSpec(
        steps=60,
        batch_size=4,
        micro_batch_size=4,
        learning_rate=3e-3,
        validate_every=60,
        device="cpu",
        monitor="val/dice",
        monitor_mode="max",
    )
    summary = run(found, spec, tmp_path)
    assert summary.best_value > 0.9
