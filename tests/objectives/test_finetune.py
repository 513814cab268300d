"""The loss of fine-tuning: labels, weights of classes, what is frozen, how fast layers learn."""

import math

import pytest
import torch
import torch.nn.functional as F

from ct3dlib.config import MaeFinetuneSpec, PredictorNetworkSpec
from ct3dlib.errors import ConfigError
from ct3dlib.models.predictor import Predictor
from ct3dlib.objectives.finetune import FinetuneObjective, class_weights
from ct3dlib.training.engine import TorchEngine

ENCODER = {
    "encoder": {"hidden_size": 24, "num_layers": 3, "num_heads": 2},
    "patch_size": [2, 4, 4],
}
NAN = math.nan


def spec_of(**changes) -> MaeFinetuneSpec:
    values = {
        "steps": 4,
        "batch_size": 2,
        "micro_batch_size": 2,
        "recipe": "chest",
        "init_from": None,
        "model": ENCODER,
        "augment": {"shift": 0, "intensity_shift": 0, "noise": 0},
        "device": "cpu",
    }
    if changes.get("task") == "regression":
        values["labels"] = {"csv": "a.csv", "columns": ["x", "y", "z"]}
    return MaeFinetuneSpec.model_validate({**values, **changes})


def objective_of(targets: torch.Tensor, **changes) -> FinetuneObjective:
    torch.manual_seed(0)
    network = PredictorNetworkSpec.model_validate(
        {
            "encoder": {**ENCODER, "shape": [4, 8, 12], "range": [-1, 1]},
            "head": {"init_std": 0.5},
            "num_outputs": targets.shape[1],
        }
    )
    return FinetuneObjective(spec_of(**changes), network, targets=targets)


def batch_of(targets: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(-1000, 1000, (len(targets), 1, 4, 8, 12), generator=generator)
    return {
        "values": values.to(torch.int16),
        "window": torch.tensor([[-1000.0, 1000.0]] * len(targets)),
        "targets": targets,
        "item_seed": torch.arange(len(targets)),
        "step": torch.tensor(0),
    }


def outputs_of(objective: FinetuneObjective, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return objective.model(batch["values"].float() / 1000).detach()


def test_findings_that_are_not_known_cost_nothing_and_teach_nothing():
    targets = torch.tensor([[1.0, NAN, 0.0], [0.0, 1.0, NAN]])
    objective, batch = objective_of(targets, class_weights=None), batch_of(targets)
    logits = outputs_of(objective, batch)
    terms = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(), reduction="none")
    known = torch.tensor([[True, False, True], [True, True, False]])
    loss, metrics = objective.loss(batch, "model")
    torch.testing.assert_close(loss.detach(), terms[known].mean())
    assert objective.weight(batch, "model") == 4
    right = ((logits > 0) == (targets > 0.5))[known].float().mean()
    torch.testing.assert_close(metrics["accuracy"], right)
    objective.model.zero_grad()
    batch["targets"] = torch.tensor([[NAN, NAN, 0.0], [NAN, NAN, 1.0]])
    objective.loss(batch, "model")[0].backward()
    assert not objective.model.head[-1].bias.grad[:2].any()


def test_present_findings_weigh_as_much_as_absent_ones():
    targets = torch.tensor([[1.0, 0, 1, NAN], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert class_weights(spec_of(), targets).tolist() == [3, 1, 1, 2]
    many = torch.zeros(100, 1)
    many[0] = 1
    assert class_weights(spec_of(), many).tolist() == [20]
    assert class_weights(spec_of(class_weights=None), targets).tolist() == [1] * 4
    assert class_weights(spec_of(class_weights=(1, 2, 3, 4)), targets).tolist() == [1, 2, 3, 4]
    with pytest.raises(ConfigError, match="class_weights: 2 numbers for 4 outputs; give one each"):
        class_weights(spec_of(class_weights=(1, 2)), targets)


def test_balanced_accuracy_is_half_for_whoever_says_the_same_of_all():
    targets = torch.tensor([[1.0, NAN], [0, 1], [0, 0], [0, 0]])
    objective = objective_of(targets, class_weights="balanced")
    known, no = ~targets.isnan(), -torch.ones(4, 2)
    told = objective._metrics(no, targets.nan_to_num(), known=known)
    assert told["balanced_accuracy"] == pytest.approx(0.5)
    assert told["accuracy"] == pytest.approx(5 / 7)
    classes = F.one_hot(torch.tensor([0, 0, 0, 1])).float()
    objective = objective_of(classes, task="multiclass", class_weights="balanced")
    first = torch.tensor([[1.0, 0]]).expand(4, -1)
    told = objective._metrics(first, classes, known=torch.ones(4, 2, dtype=torch.bool))
    assert told["balanced_accuracy"] == pytest.approx(0.5)
    assert told["accuracy"] == pytest.approx(0.75)


def test_classes_are_learnt_by_their_cross_entropy():
    targets = torch.tensor([[1.0, 0, 0], [0, 0, 1]])
    objective, batch = (
        objective_of(targets, task="multiclass", class_weights=None),
        batch_of(targets),
    )
    logits = outputs_of(objective, batch)
    loss, _ = objective.loss(batch, "model")
    torch.testing.assert_close(loss.detach(), F.cross_entropy(logits, torch.tensor([0, 2])))
    smooth = objective_of(targets, task="multiclass", class_weights=None, label_smoothing=0.3)
    loss, _ = smooth.train().loss(batch, "model")
    wanted = F.cross_entropy(logits, torch.tensor([0, 2]), label_smoothing=0.3)
    torch.testing.assert_close(loss.detach(), wanted)
    # Nobody smooths what is validated.
    loss, _ = smooth.eval().loss(batch, "model")
    torch.testing.assert_close(loss.detach(), F.cross_entropy(logits, torch.tensor([0, 2])))


def test_balanced_classes_have_the_same_sum_of_weights():
    targets = F.one_hot(torch.tensor([0, 0, 0, 1, 1, 2])).float()
    weights = class_weights(spec_of(task="multiclass"), targets)
    torch.testing.assert_close(weights * targets.sum(0), torch.full((3,), 2.0))


def test_numbers_are_learnt_in_deviations_of_the_training():
    targets = torch.tensor([[10.0, 1, 5], [30, NAN, 5], [50, 3, 5]])
    objective = objective_of(targets, task="regression")
    assert objective.mean.tolist() == [30, 2, 5]
    torch.testing.assert_close(objective.std, torch.tensor([math.sqrt(800 / 3), 1, 1]))
    batch = batch_of(targets)
    outputs = outputs_of(objective, batch)
    errors = (outputs - (targets - objective.mean) / objective.std).square()
    loss, metrics = objective.loss(batch, "model")
    torch.testing.assert_close(loss.detach(), errors.nanmean())
    torch.testing.assert_close(metrics["rmse"], errors.nanmean().sqrt())


def test_a_frozen_encoder_learns_nothing():
    targets = torch.tensor([[1.0], [0.0]])
    objective = objective_of(targets, task="binary", frozen=True, init_from="x", model=None)
    encoder = objective.model.encoder
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    engine = TorchEngine(objective, objective.spec, torch.device("cpu"))
    head = objective.model.head[-1].weight.detach().clone()
    engine.update([batch_of(targets)], "model", 0)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert not torch.equal(head, objective.model.head[-1].weight)


def test_each_layer_learns_slower_than_the_next():
    """The rate of block i of L is base x decay^(L - i), of the embedding base x decay^(L + 1)."""
    targets = torch.tensor([[1.0], [0.0]])
    objective = objective_of(targets, layer_decay=0.5, learning_rate=0.1)
    engine = TorchEngine(objective, objective.spec, torch.device("cpu"))
    engine.update([batch_of(targets)], "model", 0)
    names = {id(p): name for name, p in objective.named_parameters()}
    rates = {
        names[id(p)]: group["lr"]
        for group in engine._optimizers["model"].param_groups
        for p in group["params"]
    }
    assert set(rates) == set(names.values())
    base = 0.1
    for name, wanted in {
        "model.encoder.cls_token": base / 16,
        "model.encoder.patch_embed.weight": base / 16,
        "model.encoder.blocks.0.qkv.weight": base / 8,
        "model.encoder.blocks.2.qkv.bias": base / 2,
        "model.encoder.norm.weight": base,
        "model.head.0.weight": base,
        "model.head.1.weight": base,
    }.items():
        assert rates[name] == pytest.approx(wanted), name
    decays = {
        names[id(p)]: group["weight_decay"]
        for group in engine._optimizers["model"].param_groups
        for p in group["params"]
    }
    assert decays["model.encoder.blocks.0.qkv.weight"] == 0.05
    assert decays["model.encoder.blocks.0.qkv.bias"] == decays["model.head.0.weight"] == 0


def test_weights_of_findings_and_classes_enter_the_loss():
    targets = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    objective, batch = objective_of(targets, class_weights=(3.0, 0.5)), batch_of(targets)
    logits = outputs_of(objective, batch)
    wanted = F.binary_cross_entropy_with_logits(
        logits, targets, pos_weight=torch.tensor([3.0, 0.5])
    )
    torch.testing.assert_close(objective.loss(batch, "model")[0].detach(), wanted)
    classes = F.one_hot(torch.tensor([0, 1, 1])).float()
    objective = objective_of(classes, task="multiclass", class_weights=(3.0, 0.5))
    batch = batch_of(classes)
    entropies = F.cross_entropy(outputs_of(objective, batch), classes.argmax(1), reduction="none")
    wanted = (torch.tensor([3.0, 0.5, 0.5]) * entropies).mean()
    torch.testing.assert_close(objective.loss(batch, "model")[0].detach(), wanted)


def test_labels_are_smoothed_in_training_alone():
    targets = torch.tensor([[1.0], [0.0]])
    objective = objective_of(targets, task="binary", class_weights=None, label_smoothing=0.2)
    batch = batch_of(targets)
    logits = outputs_of(objective, batch)
    soft = F.binary_cross_entropy_with_logits(logits, targets * 0.8 + 0.1)
    torch.testing.assert_close(objective.train().loss(batch, "model")[0].detach(), soft)
    hard = F.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(objective.eval().loss(batch, "model")[0].detach(), hard)


def test_gradients_stop_at_a_frozen_encoder():
    targets = torch.tensor([[1.0], [0.0]])
    objective = objective_of(targets, task="binary", frozen=True, init_from="x", model=None)
    objective.loss(batch_of(targets), "model")[0].backward()
    assert all(parameter.grad is None for parameter in objective.model.encoder.parameters())
    assert objective.model.head[-1].weight.grad.abs().sum() > 0


def test_the_weight_of_a_mixed_batch_is_what_is_known_of_it():
    targets = torch.tensor([[1.0, NAN], [0, 1], [1, 0]])
    objective = objective_of(targets, mixup=1.0, cutmix=1.0).train()
    batch = batch_of(targets)
    _, mixed = objective._seen(batch)
    assert objective.weight(batch, "model") == (~mixed.isnan()).sum() == 4
    assert objective.eval().weight(batch, "model") == 5


def test_one_label_is_mixed_too_in_odd_batches():
    targets = torch.tensor([[1.0], [0.0], [1.0]])
    objective = objective_of(targets, task="binary", mixup=0.8, cutmix=1.0).train()
    batch = batch_of(targets)
    _, mixed = objective._seen(batch)
    assert ((mixed >= 0) & (mixed <= 1)).all()
    assert objective.loss(batch, "model")[0].isfinite()


def test_branches_are_dropped_the_oftener_the_deeper():
    network = PredictorNetworkSpec.model_validate(
        {
            "encoder": {**ENCODER, "shape": [4, 8, 12], "drop_path": 0.3},
            "head": {},
            "num_outputs": 1,
        }
    )
    blocks = Predictor(network).encoder.blocks
    assert [block.drop_path for block in blocks] == pytest.approx([0, 0.15, 0.3])


@pytest.mark.parametrize("std", [2e-5, 0.02])
def test_the_head_starts_with_the_deviation_that_is_asked_for(std):
    network = PredictorNetworkSpec.model_validate(
        {
            "encoder": {
                "encoder": {"hidden_size": 516, "num_layers": 1, "num_heads": 2},
                "patch_size": [2, 4, 4],
                "shape": [4, 8, 12],
            },
            "head": {"init_std": std},
            "num_outputs": 18,
        }
    )
    head = Predictor(network).head
    assert head[0].normalized_shape == (1032,)
    assert head[-1].weight.std().item() == pytest.approx(std, rel=0.1)


def test_volumes_and_targets_are_mixed_in_training_alone():
    targets = torch.tensor([[1.0, 0], [0, 1]])
    objective, batch = objective_of(targets, mixup=1.0), batch_of(targets)
    volumes, mixed = objective.train()._seen(batch)
    assert 0 < mixed.min() < 0.5 < mixed.max() < 1
    plain, kept = objective.eval()._seen(batch)
    torch.testing.assert_close(kept, targets)
    share = mixed[0, 0]
    torch.testing.assert_close(volumes[0], share * plain[0] + (1 - share) * plain[1])


@pytest.mark.parametrize("pooling", ["cls", "pooled", "both", "attentive"])
@pytest.mark.parametrize("hidden", [None, 16])
def test_heads_see_what_their_name_says(pooling, hidden):
    network = PredictorNetworkSpec.model_validate(
        {
            "encoder": {**ENCODER, "shape": [4, 8, 12]},
            "head": {"pooling": pooling, "hidden_size": hidden},
            "num_outputs": 5,
        }
    )
    torch.manual_seed(0)
    model = Predictor(network).eval()
    volumes = torch.rand(2, 1, 4, 8, 12)
    tokens = model.encoder(volumes)
    match pooling:
        case "cls":
            wanted = model.head(tokens[:, 0])
        case "pooled":
            wanted = model.head(tokens[:, 1:].mean(1))
        case "both":
            wanted = model.head(torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), 1))
        case _:
            torch.nn.init.normal_(model.head.places)
            wanted = attentive_by_hand(model.head, tokens)
    torch.testing.assert_close(model(volumes), wanted)
    last = model.head.last if pooling == "attentive" else model.head[-1]
    assert last.weight.abs().max() < 1e-4  # the head starts at almost nothing
    assert model(volumes).shape == (2, 5)


def attentive_by_hand(head: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return each output from what its own query gathers, one by one."""
    outputs = []
    values = F.gelu(head.value[0](tokens))
    for k in range(head.places.shape[1]):
        liked = tokens @ head.query.weight[k] + head.places[:, k]
        gathered = (liked.softmax(1)[..., None] * values).sum(1)
        outputs.append(gathered @ head.last.weight[k] + head.last.bias[k])
    return torch.stack(outputs, dim=1)
