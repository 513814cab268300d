"""Gradients of a batch that is in parts: over micro-batches, over ranks, over both."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ct3dlib.objectives.contrastive import _ranks, _region_accuracy
from ct3dlib.training.engine import TorchEngine
from ct3dlib.training.objective import Objective
from tests.objectives.contrastive_doubles import (
    batch_of,
    cached,
    error,
    gradients,
    graph_of_all,
    objective_of,
    part_of,
    parts_of,
)
from tests.ranks import run_ranks

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks("tests.objectives.contrastive_ranks", [str(folder)])
    return folder


def _whole_batch() -> tuple[Tensor, dict[str, Tensor]]:
    objective = objective_of()
    loss, _ = objective.loss(batch_of(), "model")
    loss.backward()
    return loss.detach(), gradients(objective)


@pytest.mark.parametrize("run", ["plain", "cached", "sharded", "sharded plain"])
def test_two_ranks_have_the_gradient_of_the_whole_batch(two_ranks, run):
    loss, wanted = _whole_batch()
    assert min(v.norm() for v in wanted.values()) > 1e-4
    for rank in range(2):
        found = torch.load(two_ranks / f"{rank}.pt", weights_only=True)[run]
        assert error(found, wanted) < 1e-9
        assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-6)


def test_what_is_gathered_sends_the_gradients_of_all_ranks_back(two_ranks):
    for rank in range(2):
        found = torch.load(two_ranks / f"{rank}.pt", weights_only=True)["gathered"]
        assert found["everyone"].tolist() == [[1, 2], [3, 4], [11, 12], [13, 14]]
        assert found["flags"].tolist() == [True, True, False, True]
        rows = torch.arange(8.0).reshape(4, 2)[2 * rank : 2 * rank + 2]
        assert torch.equal(found["gradient"], 3 * rows)


def test_four_micro_batches_of_eight_are_one_of_32_with_dropout():
    wanted = graph_of_all(objective_of(dropout=0.3), 8)
    assert error(cached(objective_of(dropout=0.3), 8), wanted) < 1e-9
    # The sanity of it: draws matter, and they were not those of no dropout.
    assert error(cached(objective_of(), 8), wanted) > 0.05


def test_micro_batches_of_any_size_are_the_whole_batch():
    loss, wanted = _whole_batch()
    for size in (32, 16, 8, 5):
        found = cached(objective_of(), size)
        assert error(found, wanted) < 1e-9
        assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-6)


def test_losses_summed_over_micro_batches_would_be_wrong():
    objective = objective_of()
    engine = TorchEngine(objective, objective.spec, CPU)
    Objective.backward(objective, parts_of(batch_of(), 8), "model", engine)
    _, wanted = _whole_batch()
    found = gradients(objective)
    errors = {name: error({name: found[name]}, {name: v}) for name, v in wanted.items()}
    assert min(errors.values()) > 0.02
    assert min(error for name, error in errors.items() if "weight" in name) > 0.4


def test_fp16_scales_the_gradient_once():
    objective = objective_of()
    spec = objective.spec.model_copy(update={"precision": "fp16"})
    engine = TorchEngine(objective, spec, CPU)
    engine.autocast = lambda: torch.autocast("cpu", enabled=False)  # doubles stay exact
    objective.backward(parts_of(batch_of(), 8), "model", engine)
    scale = engine._scalers["model"].get_scale()
    assert scale > 1
    _, wanted = _whole_batch()
    found = {name: gradient / scale for name, gradient in gradients(objective).items()}
    assert error(found, wanted) < 1e-9


def test_the_draws_after_a_step_are_those_of_one_forward_pass():
    found = []
    for run in (cached, graph_of_all):
        run(objective_of(dropout=0.3), 8)
        found.append(torch.rand(3))
    assert torch.equal(*found)


def test_the_loss_is_the_weighted_sum_of_its_terms():
    objective = objective_of(global_weight=2.0, region_weight=0.5, within_weight=0.25)
    loss, metrics = objective.loss(batch_of(), "model")
    whole, region, within = (metrics[f"loss_{n}"] for n in ("global", "region", "within"))
    torch.testing.assert_close(loss, 2 * whole + 0.5 * region + 0.25 * within)
    assert metrics["scale"].item() == pytest.approx(math.e)
    assert metrics["region_scale"].item() == pytest.approx(math.exp(1.5))


def test_regions_count_where_they_are_present_mentioned_and_not_cut_off():
    objective, batch = objective_of(), batch_of(4)
    batch["regions"][:] = 1
    batch["regions"][0, 0, 0] = 2
    batch["token_regions"][:] = 0b11
    batch["token_regions"][1] = 0b10
    batch["mention"][:] = 0
    batch["mention"][2] = -1
    valid = objective._embed(batch)["valid"]
    assert valid[:, :2].tolist() == [[True, True], [False, False], [False, False], [True, False]]
    assert not valid[:, 2:].any()


def test_a_batch_whose_texts_mention_nothing_has_a_region_loss_of_zero():
    objective, batch = objective_of(), batch_of(8)
    batch["mention"][:] = -1
    loss, metrics = objective.loss(batch, "model")
    loss.backward()
    assert metrics["loss_region"] == metrics["loss_within"] == 0
    found = gradients(objective)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert not found["model.scan_regions.weight"].any()
    assert not found["model.region_log_scale"].any()


def test_some_items_are_trained_as_if_nothing_knew_their_regions():
    objective, batch = objective_of(), batch_of()
    batch["regions"][3] = 255
    objective.eval()._embed(batch)
    objective.train()._embed(batch)
    objective._embed({**batch, **part_of(batch, 0, 32)})
    shown, dropped, again = objective.model.seen
    assert shown.tolist() == [i != 3 for i in range(32)]
    assert 2 <= (shown & ~dropped).sum() <= 12  # 20 % of 31
    assert not dropped[3]
    assert torch.equal(dropped, again)


def test_ranks_put_wrong_answers_of_the_same_score_first():
    similarity = torch.tensor([[0.9, 0.5, 0.1], [0.5, 0.5, 0.5], [0.3, 0.2, 0.1]])
    same = torch.eye(3).bool()
    assert _ranks(similarity, same).tolist() == [1, 3, 3]
    same[2, 0] = True
    assert _ranks(similarity, same).tolist() == [1, 3, 1]


def test_validation_is_of_the_batch_alone_and_changes_nothing():
    objective, batch = objective_of().eval(), batch_of(8)
    metrics = objective.validate(batch)
    assert metrics["loss"] == objective.loss(batch, "model")[0]
    assert 1 < metrics["effective_rank"] <= 7  # of eight scans without their mean
    embedded = objective._embed(batch)
    texts = objective.model.embed_texts(batch["input_ids"], batch["token_regions"])
    on_scans = texts._replace(global_=embedded["scan"], region=embedded["scan_region"])
    objective.model.embed_texts = lambda *_: on_scans
    metrics = objective.validate(batch)
    assert metrics["mean_recall"] == metrics["region_accuracy"] == 1
    objective.model.embed_texts = lambda *_: texts._replace(global_=texts.global_[:1].expand(8, -1))
    # Texts that are all the same find their pair among the first five and ten alone, by chance.
    assert objective.validate(batch)["mean_recall"] < 0.7


def test_the_region_accuracy_is_of_valid_texts_among_present_regions():
    eye = torch.eye(3)[None]
    embedded = {
        "text_region": eye[:, [0, 2, 1]],
        "scan_region": eye,
        "present": torch.tensor([[True, True, False]]),
        "valid": torch.tensor([[True, True, False]]),
        "region_scale": torch.ones(1),
    }
    # The second text lies on the third region, which is absent: the first of the others is taken.
    assert _region_accuracy(embedded) == 0.5
    embedded["valid"] = torch.zeros(1, 3, dtype=torch.bool)
    assert _region_accuracy(embedded) == 0
