import math
from functools import partial

import pytest
import torch

from ct3dlib.config import (
    MaskGITNetworkSpec,
    MaskGITSpec,
    SamplesSpec,
    SlabSpec,
    TextSpec,
    TransformerSpec,
)
from ct3dlib.inference.sampler import Prompt, sample_indices, sample_seeds
from ct3dlib.losses.masked import masked_cross_entropy
from ct3dlib.models.maskgit import Conditions, Digits
from ct3dlib.objectives.maskgit import MaskGITObjective, draw_masked

MODEL = MaskGITSpec(hidden_size=48, num_layers=2, num_heads=2, dropout=0.0, bits_per_group=3)
NETWORK = MaskGITNetworkSpec(
    **MODEL.model_dump(exclude={"bits_per_group"}), radices=(8, 8), num_labels=2
)
DIGITS = Digits((8, 8))
GRID = (2, 3, 4)

spec_of = partial(TransformerSpec, steps=100, batch_size=4, micro_batch_size=4, model=MODEL)


def _objective(**changes) -> MaskGITObjective:
    torch.manual_seed(0)
    objective = MaskGITObjective(spec_of(**changes), NETWORK)
    for block in objective.model.blocks:
        torch.nn.init.normal_(block.modulation.weight, std=0.2)
    return objective


def _batch(num_items: int = 4, first_seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "indices": torch.randint(0, 64, (num_items, *GRID)),
        "labels": torch.rand(num_items, 2).round(),
        "label_present": torch.ones(num_items, dtype=torch.bool),
        "item_seed": torch.arange(first_seed, first_seed + num_items),
        "step": torch.tensor(0),
    }


def _drawn(item_seed: torch.Tensor, grid: tuple[int, int, int], schedule: str) -> torch.Tensor:
    """Return where items are masked that may be anywhere."""
    return draw_masked(item_seed, torch.ones(len(item_seed), *grid, dtype=torch.bool), schedule)


@pytest.mark.parametrize(
    ("schedule", "mean"),
    [("linear", 1 / 2), ("cosine", 2 / math.pi), ("arccos", 2 / math.pi), ("sqrt", 2 / 3)],
)
def test_the_masked_share_follows_its_law(schedule, mean):
    masked = _drawn(torch.arange(4000), (4, 5, 10), schedule)
    shares = masked.flatten(1).float().mean(1)
    assert shares.mean().item() == pytest.approx(mean, abs=0.01 + 0.5 / 200)
    assert shares.std() > 0.1  # items differ


def test_all_positions_are_masked_equally_often():
    often = _drawn(torch.arange(4000), (2, 2, 5), "linear").float().mean(0)
    assert (often - often.mean()).abs().max() < 0.03


def test_at_least_one_position_is_masked():
    assert _drawn(torch.arange(2000), (1, 1, 3), "sqrt").flatten(1).any(1).all()


def test_masks_belong_to_items_and_not_to_batches():
    together = _drawn(torch.tensor([5, 6, 7]), GRID, "arccos")
    assert torch.equal(_drawn(torch.tensor([7]), GRID, "arccos")[0], together[2])
    assert not torch.equal(together[0], together[1])


def test_the_loss_is_the_mean_over_masked_positions():
    objective, batch = _objective(label_smoothing=0.2).eval(), _batch()
    loss, metrics = objective.loss(batch, "model")
    masked = _drawn(batch["item_seed"], GRID, "arccos")
    logits = objective.model(
        batch["indices"], masked, Conditions(batch["labels"], batch["label_present"])
    )
    classes = DIGITS.split(batch["indices"])
    smooth = masked_cross_entropy(logits, classes, masked, label_smoothing=0.2)[masked].mean()
    plain = masked_cross_entropy(logits, classes, masked)[masked].mean()
    torch.testing.assert_close(loss, smooth)
    torch.testing.assert_close(metrics["bits_per_index"], (plain / math.log(2)).detach())
    for group in range(2):
        right = (logits.argmax(-1) == classes)[..., group][masked].float().mean()
        torch.testing.assert_close(metrics[f"accuracy_digit_{group}"], right)
    assert not any(value.requires_grad for value in metrics.values())


def test_weighted_parts_make_the_whole():
    objective, batch = _objective(), _batch(6)
    whole, metrics = objective.loss(batch, "model")
    parts = [{k: v[s] if v.ndim else v for k, v in batch.items()} for s in (slice(2), slice(2, 6))]
    weights = torch.stack([objective.weight(part, "model") for part in parts])
    assert weights.sum() == _drawn(batch["item_seed"], GRID, "arccos").sum()
    results = [objective.loss(part, "model") for part in parts]
    mean = sum(w * loss for w, (loss, _) in zip(weights, results, strict=True)) / weights.sum()
    torch.testing.assert_close(mean, whole)
    for name, value in metrics.items():
        part_values = torch.stack([part[name] for _, part in results])
        torch.testing.assert_close((part_values * weights).sum() / weights.sum(), value)


def test_labels_are_dropped_at_their_rate_in_training_only():
    objective = _objective(label_dropout=0.1)
    seeds, present = torch.arange(4000), torch.ones(4000, dtype=torch.bool)
    present[:1000] = False
    kept = objective._kept(seeds, present, dropout=0.1, stream=2)
    assert not kept[:1000].any()
    assert kept[1000:].float().mean().item() == pytest.approx(0.9, abs=0.02)
    assert torch.equal(objective.eval()._kept(seeds, present, dropout=0.1, stream=2), present)


def test_validation_repeats():
    objective, batch = _objective().eval(), _batch()
    with torch.no_grad():
        first, second = objective.validate(batch), objective.validate(batch)
    assert {k: v.item() for k, v in first.items()} == {k: v.item() for k, v in second.items()}
    assert set(first) == {"loss", "bits_per_index", "accuracy_digit_0", "accuracy_digit_1"}


def test_the_blocks_are_the_layers():
    objective = _objective()
    assert objective.blocks() == list(objective.model.blocks)


def test_a_trained_transformer_draws_the_grids_it_saw():
    torch.manual_seed(0)
    objective = MaskGITObjective(spec_of(label_smoothing=0.0, label_dropout=0.0), NETWORK)
    grids = torch.randint(0, 64, (4, *GRID))
    labels = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    present = torch.ones(4, dtype=torch.bool)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for step in range(120):
        seeds = torch.arange(16) + 16 * step
        batch = {
            "indices": grids.repeat(4, 1, 1, 1),
            "labels": labels.repeat(4, 1),
            "label_present": present.repeat(4),
            "item_seed": seeds,
            "step": torch.tensor(step),
        }
        loss, metrics = objective.loss(batch, "model")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics["bits_per_index"] < 0.2 * 6
    drawn = sample_indices(
        objective.model.eval(),
        Prompt(sample_seeds(0, 4), Conditions(labels, present)),
        grid=GRID,
        spec=SamplesSpec(steps=8),
    )
    # The labels tell the grids apart, so each sample must be the grid of its labels.
    assert (drawn == grids).float().mean() > 0.9


def test_16_grids_are_learnt_and_drawn_from_nothing_in_every_order():
    num_grids, grid = 16, (4, 4, 4)
    model = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "dropout": 0.0}
    network = MaskGITNetworkSpec(**model, radices=(8, 8), num_labels=num_grids)
    torch.manual_seed(0)
    objective = MaskGITObjective(spec_of(label_smoothing=0.0, label_dropout=0.0), network)
    batch = {
        "indices": torch.randint(0, 64, (num_grids, *grid)),
        "labels": torch.eye(num_grids),
        "label_present": torch.ones(num_grids, dtype=torch.bool),
    }
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3)
    for step in range(150):
        seeds = torch.arange(num_grids) + num_grids * step
        loss, _ = objective.loss({**batch, "item_seed": seeds}, "model")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    objective.eval()
    with torch.no_grad():  # under maskings that no step has seen
        unseen = torch.arange(num_grids) + 10**6
        loss, _ = objective.loss({**batch, "item_seed": unseen}, "model")
    assert loss < 0.2 * math.log(64)
    prompt = Prompt(sample_seeds(0, 16), Conditions(batch["labels"], batch["label_present"]))
    for order in ("confidence", "random", "halton"):
        spec = SamplesSpec(order=order)
        drawn = sample_indices(objective.model, prompt, grid=grid, spec=spec)
        same = (drawn[:, None] == batch["indices"]).flatten(2).float().mean(2)  # drawn, learnt
        assert same.argmax(1).tolist() == list(range(num_grids))
        assert same.max(1).values.min() >= 0.9


def test_the_modality_that_is_wanted_counts_after_one_step_of_training():
    network = NETWORK.model_copy(update={"source": True})
    torch.manual_seed(0)
    objective = MaskGITObjective(spec_of(source="study", label_dropout=0.0), network)
    batch = _batch()
    source = {"source_indices": batch["indices"].flip(0), "source_labels": torch.eye(2)[[0] * 4]}
    batch |= {**source, "source_present": batch["label_present"], "labels": torch.eye(2)[[1] * 4]}
    other = {**batch, "labels": torch.eye(2)[[0] * 4]}
    assert torch.equal(_seen(objective, batch)[3], _seen(objective, other)[3])
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    objective.loss(batch, "model")[0].backward()
    optimizer.step()
    assert not torch.allclose(_seen(objective, batch)[3], _seen(objective, other)[3], atol=1e-3)


SLAB = SlabSpec(size=3, context=1, context_dropout=0.2)
TEXT = TextSpec(embeddings="texts.parquet", dropout=0.2)
RATES = {"label_dropout": 0.2, "source_dropout": 0.2, "source": "study", "text": TEXT}


def _slabs(num_items: int = 6, **changes) -> tuple[MaskGITObjective, dict[str, torch.Tensor]]:
    """Return an objective of slabs, sources and texts, and items of which one starts at 0."""
    network = NETWORK.model_copy(update={"slab": SLAB, "source": True, "text_size": 5})
    torch.manual_seed(0)
    objective = MaskGITObjective(spec_of(**{**RATES, "slab": SLAB, **changes}), network)
    for block in objective.model.blocks:
        torch.nn.init.normal_(block.modulation.weight, std=0.2)
    shape = (num_items, 3, 2, 2)
    present = torch.ones(num_items, dtype=torch.bool)
    batch = {
        **_batch(num_items),
        "indices": torch.randint(0, 64, shape),
        "start": torch.arange(num_items),
        "text": torch.randn(num_items, 5),
        "text_present": present,
        "source_indices": torch.randint(0, 64, shape),
        "source_labels": torch.ones(num_items, 2),
        "source_present": present,
    }
    return objective, batch


def _seen(objective: MaskGITObjective, batch: dict[str, torch.Tensor]) -> tuple:
    """Return loss, masked, conditions and logits of a call."""
    calls = []

    def remember(_module, args, output):
        calls.append((*args[1:], output))

    with objective.model.register_forward_hook(remember):
        loss, _ = objective.loss(batch, "model")
    return loss, *calls[0]


def test_the_share_is_one_of_the_positions_that_may_be_masked():
    maskable = torch.ones(3000, 5, 2, 4, dtype=torch.bool)
    maskable[:, :2] = False
    seeds = torch.arange(3000)
    masked = draw_masked(seeds, maskable, "cosine")
    assert not masked[:, :2].any()
    fewer = draw_masked(seeds, maskable[:, 2:], "cosine")
    assert torch.equal(masked.flatten(1).sum(1), fewer.flatten(1).sum(1))
    assert masked.flatten(1).any(1).all()
    often = masked[:, 2:].float().mean(0)
    assert (often - 2 / math.pi).abs().max() < 0.04


def test_a_slab_shows_its_neighbour_and_one_at_the_start_has_none():
    objective, batch = _slabs(400)
    batch["start"][:200] = 0
    _, masked, _, _ = _seen(objective.eval(), batch)
    assert masked[:200, 0].flatten(1).any(1).float().mean() > 0.6
    assert not masked[200:, 0].any()
    assert masked[200:].flatten(1).any(1).all()


def test_the_loss_ignores_the_neighbour_that_the_model_sees():
    objective, batch = _slabs()
    objective.eval()
    batch["start"] += 1
    changed = {**batch, "indices": batch["indices"].clone()}
    changed["indices"][:, 0] = 63 - changed["indices"][:, 0]
    loss, masked, _, logits = _seen(objective, batch)
    other, same, _, moved = _seen(objective, changed)
    assert torch.equal(masked, same)
    assert not torch.allclose(logits[:, 1:], moved[:, 1:], atol=1e-3)
    assert not torch.isclose(loss, other)
    with torch.no_grad():  # heads that say the same of all content
        objective.model.heads.weight.zero_()
    assert torch.equal(_seen(objective, batch)[0], _seen(objective, changed)[0])


def test_the_weight_of_slabs_is_the_number_of_masked_positions():
    objective, batch = _slabs(50)
    for mode in (True, False):
        masked = _seen(objective.train(mode), batch)[1]
        assert objective.weight(batch, "model") == masked.sum()


def test_four_conditions_are_dropped_each_at_its_rate_and_on_its_own():
    objective, batch = _slabs(4000)
    batch["start"][:] = 1
    maskable = objective._maskable(batch)
    asked = objective._conditions(batch)
    dropped = torch.stack(
        [
            ~asked.label_present,
            ~asked.source.present,
            ~asked.text.present,
            maskable[:, 0].flatten(1).all(1),
        ]
    ).float()
    torch.testing.assert_close(dropped.mean(1), torch.full((4,), 0.2), atol=0.02, rtol=0)
    together = torch.corrcoef(dropped) - torch.eye(4)
    assert together.abs().max() < 4 / math.sqrt(4000)
    objective.eval()
    assert not objective._maskable(batch)[:, 0].any()
    asked = objective._conditions(batch)
    assert asked.label_present.all() & asked.source.present.all() & asked.text.present.all()


def test_a_neighbour_that_is_dropped_is_like_any_slice():
    objective, batch = _slabs(400)
    batch["start"][:] = 1
    maskable = objective._maskable(batch)
    dropped = maskable[:, 0].flatten(1).all(1)
    assert 40 < dropped.sum() < 140
    _, masked, _, _ = _seen(objective, batch)
    shares = masked[dropped].float().mean((0, 2, 3))
    assert (shares - shares.mean()).abs().max() < 0.12
    assert shares.min() > 0.4


def test_a_text_counts_after_a_step_of_training():
    objective, batch = _slabs(label_dropout=0.0, text=TextSpec(embeddings="t", dropout=0.0))
    fresh = MaskGITObjective(objective.spec, objective.model.spec)
    other = {**batch, "text": -batch["text"]}
    assert torch.equal(_seen(fresh, batch)[3], _seen(fresh, other)[3])
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=1e-2)
    for _ in range(2):  # the heads' inputs are gated by 0 at first
        fresh.loss(batch, "model")[0].backward()
        optimizer.step()
    assert not torch.allclose(_seen(fresh, batch)[3], _seen(fresh, other)[3], atol=1e-4)
    absent = torch.zeros(6, dtype=torch.bool)
    one, two = ({**b, "text_present": absent} for b in (batch, other))
    assert torch.equal(_seen(fresh, one)[3], _seen(fresh, two)[3])
