"""The contrastive training with its own encoders, small ones."""

import pytest
import torch
from torch import nn

from ct3dlib.objectives.contrastive import ContrastiveObjective
from ct3dlib.training.engine import TorchEngine
from tests.objectives.contrastive_doubles import (
    MODEL,
    batch_of,
    cached,
    error,
    graph_of_all,
    network_of,
    parts_of,
    spec_of,
)

CPU = torch.device("cpu")


def _real(**changes: object) -> ContrastiveObjective:
    torch.manual_seed(0)
    spec = spec_of(**changes)
    return ContrastiveObjective(spec, network_of(spec))


def _named(objective: ContrastiveObjective, parameters: list[nn.Parameter]) -> set[str]:
    names = {id(p): name for name, p in objective.model.named_parameters()}
    return {names[id(p)] for p in parameters}


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_the_encoders_draw_the_same_dropout_twice(recompute):
    objective = _real(activation_checkpointing=recompute)
    found, wanted = cached(objective, 8), graph_of_all(_real(), 8)
    assert found["loss"].item() == pytest.approx(wanted["loss"].item(), rel=1e-5)
    learnt = {name: v for name, v in wanted.items() if v.norm() > 1e-5}
    assert "model.log_scale" in learnt
    assert len(learnt) > 40
    assert error(found, learnt) < 1e-5


def test_matrices_of_layers_decay_and_nothing_else():
    objective = _real()
    decayed = _named(objective, objective.decayed("model"))
    others = _named(objective, objective.parameters_of("model")) - decayed
    assert {"scan_projection.weight", "vision.patch_embed.weight", "text.key.weight"} <= decayed
    for name in (
        "log_scale",
        "vision.position_z",
        "vision.position_plane",
        "vision.region_embedding",
        "vision.pool.queries",
        "text.query",
        "text.order.weight",
        "text.bert.embeddings.position_embeddings.weight",
    ):
        assert name in others
    assert not [name for name in decayed if "norm" in name.lower() or name.endswith("bias")]


def test_bert_has_its_own_rate_and_may_be_frozen():
    slow, rest = _real(model={**MODEL, "text": {**MODEL["text"], "rate": 0.1}}).layers("model")
    assert (slow[0], rest[0]) == (0.1, 1.0)
    frozen = _real(model={**MODEL, "text": {**MODEL["text"], "rate": 0}})
    engine = TorchEngine(frozen, frozen.spec, CPU)
    before = {name: p.clone() for name, p in frozen.named_parameters()}
    engine.update(parts_of(batch_of(), 8), "model", 0)
    still = [name for name, p in frozen.named_parameters() if torch.equal(p, before[name])]
    assert all("bert" in name or name.endswith("pool.absent") for name in still)
    assert any("bert" in name for name in still)


def test_training_changes_what_the_model_sees_and_moves_regions_along():
    objective, batch = _real(augment={"flip": [0, 0, 1], "laterality_safe": False}), batch_of(4)
    batch["valid"] = batch["regions"] > 3
    changed = objective._augmented(batch)
    for name in ("values", "regions", "valid"):
        torch.testing.assert_close(
            changed[name].float(), batch[name].flip(4).float(), rtol=0, atol=1e-3
        )
    eight = {**batch, "values": (batch["regions"] * 10), "window": torch.tensor([[0.0, 255.0]] * 4)}
    found = objective._augmented(eight)["values"]
    assert found.dtype == torch.uint8
    assert torch.equal(found, eight["values"].flip(4))


def test_hu_beyond_the_recipes_window_reach_a_wider_model():
    vision = {**MODEL["vision"], "windows": ["lung", "bone"]}
    objective = _real(
        model={**MODEL, "vision": vision}, augment={"noise": 0.1, "noise_probability": 0.0}
    )
    batch = batch_of(4)
    batch["values"][:, :, 0] = 1250
    found = objective._augmented(batch)["values"]
    torch.testing.assert_close(found, batch["values"].float(), rtol=0, atol=1e-3)
