import math
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from ct3dlib.errors import TrainingError
from ct3dlib.training.engine import TorchEngine
from ct3dlib.training.metric_log import gpu_metrics
from ct3dlib.training.objective import Batch, Metrics, Objective, masked_mean
from tests.contracts.objective_cases import Adversarial, Regression, spec_of

CPU = torch.device("cpu")


class Blocks(Objective):
    """Two blocks with dropout, the first layer of which counts its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.3)) for _ in range(2)
        )
        self.runs = 0
        self.model[0][0].register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.runs += 1

    def blocks(self) -> list[nn.Module]:
        return list(self.model)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        x = batch["x"]
        for block in self.model:
            x = block(x)
        return (x - batch["x"]).square().mean(), {}


class Scaled(Objective):
    """A loss of any size: factor x weight^2."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.model = nn.Linear(1, 1, bias=False)
        self.factor = factor

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        return self.factor * self.model.weight.square().sum(), {"half": torch.tensor(0.5)}


class Rooted(Scaled):
    """A finite loss whose gradient is not."""

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        return (self.model.weight * 0).abs().sqrt().sum(), {}


def _batch(n: int = 8) -> dict[str, Tensor]:
    x = torch.linspace(-1, 1, 6 * n).reshape(n, 6)
    return {"x": x, "item_seed": torch.arange(n), "step": torch.tensor(0)}


def test_a_step_is_that_of_adamw_on_the_clipped_gradient():
    spec = spec_of(max_grad_norm=0.1, weight_decay=0.3, betas=(0.8, 0.95), warmup_steps=4)
    torch.manual_seed(0)
    objective, reference = Regression(), Regression()
    reference.load_state_dict(objective.state_dict())
    engine = TorchEngine(objective, spec, CPU)
    matrices = [p for p in reference.parameters() if p.ndim == 2]
    vectors = [p for p in reference.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.95))
    for step in range(3):
        metrics = engine.update([_batch()], "model", step)
        loss, _ = reference.loss(_batch(), "model")
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in reference.parameters()))
        for parameter in reference.parameters():
            parameter.grad *= min(1.0, 0.1 / (norm + 1e-6))
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (step + 1) / 4
        optimizer.step()
        assert metrics["loss"] == pytest.approx(loss.item())
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert metrics["lr"] == pytest.approx(1e-2 * (step + 1) / 4)
    for found, wanted in zip(objective.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_a_turn_moves_its_own_parameters_alone():
    torch.manual_seed(0)
    objective = Adversarial()
    engine = TorchEngine(objective, spec_of(weight_decay=0.1), CPU)
    for turn, other in (objective.turns, objective.turns[::-1]):
        before = {k: v.clone() for k, v in objective.named_parameters()}
        engine.update([_batch()], turn, 0)
        for name, parameter in objective.named_parameters():
            assert torch.equal(parameter, before[name]) == name.startswith(other)
            assert parameter.requires_grad
            assert parameter.grad is None


def test_what_the_objective_does_not_name_does_not_decay():
    class Kept(Regression):
        def decayed(self, turn: str) -> list[nn.Parameter]:
            return [self.model[2].weight]

    found = {}
    for kind in (Regression, Kept):
        objective = kind()
        names = {id(p): name for name, p in objective.named_parameters()}
        (optimizer,) = TorchEngine(objective, spec_of(weight_decay=0.3), CPU)._optimizers.values()
        found[kind] = {
            group["weight_decay"]: {names[id(p)] for p in group["params"]}
            for group in optimizer.param_groups
        }
    biases = {"model.0.bias", "model.2.bias"}
    assert found[Regression] == {0.3: {"model.0.weight", "model.2.weight"}, 0.0: biases}
    assert found[Kept] == {0.3: {"model.2.weight"}, 0.0: {"model.0.weight", *biases}}


def test_the_logged_norm_is_of_the_turns_own_gradient():
    torch.manual_seed(0)
    objective = Adversarial()
    engine = TorchEngine(objective, spec_of(max_grad_norm=1e-3), CPU)
    for turn in objective.turns:
        loss, _ = objective.loss(_batch(), turn)
        own = list(objective.get_submodule(turn).parameters())
        wanted = nn.utils.get_total_norm(torch.autograd.grad(loss, own))
        assert engine.update([_batch()], turn, 0)["grad_norm"] == pytest.approx(wanted.item())


def test_metrics_are_means_over_the_terms_of_all_micro_batches():
    objective = Scaled(1.0)
    engine = TorchEngine(objective, spec_of(), CPU)
    metrics = engine.update([_batch(2), _batch(6)], "model", 0)
    assert metrics["half"] == 0.5
    assert Regression().weight(_batch(6), "model") == 6


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops(factor):
    engine = TorchEngine(Scaled(factor), spec_of(), CPU)
    with pytest.raises(TrainingError, match=rf"step 7: loss of model is {factor}; lower"):
        engine.update([_batch()], "model", 7)


def test_a_gradient_that_is_not_finite_stops_before_the_step():
    objective = Rooted(1.0)
    before = objective.model.weight.clone()
    engine = TorchEngine(objective, spec_of(), CPU)
    with pytest.raises(TrainingError, match="step 7: the gradient of model is not finite"):
        engine.update([_batch()], "model", 7)
    assert torch.equal(objective.model.weight, before)


def test_fp16_skips_steps_that_overflow_until_the_scale_fits():
    objective = Scaled(100.0)
    torch.nn.init.ones_(objective.model.weight)
    engine = TorchEngine(objective, spec_of(precision="fp16"), CPU)
    # Twice 100 times 2^122 is beyond float32.
    engine._scalers["model"].load_state_dict(
        {**engine._scalers["model"].state_dict(), "scale": 2.0**122}
    )
    for step in range(20):
        metrics = engine.update([_batch()], "model", step)
        if objective.model.weight.item() != 1:
            break
        assert math.isinf(metrics["grad_norm"])
    assert 0 < step < 19
    assert metrics["grad_norm"] == pytest.approx(200)


def _update_often(engine: TorchEngine) -> None:
    for step in range(40):
        engine.update([_batch()], "model", step)


def test_fp16_stops_where_no_scale_fits():
    engine = TorchEngine(Rooted(1.0), spec_of(precision="fp16"), CPU)
    with pytest.raises(TrainingError, match="overflows fp16 at any scale; set precision: bf16"):
        _update_often(engine)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_is_near_full_precision(precision):
    results = {}
    for name in ("fp32", precision):
        torch.manual_seed(0)
        objective = Regression()
        engine = TorchEngine(objective, spec_of(precision=name), CPU)
        results[name] = engine.update([_batch()], "model", 0)
        assert all(p.dtype == torch.float32 for p in objective.parameters())
    low, full = results[precision]["loss"], results["fp32"]["loss"]
    assert low == pytest.approx(full, rel=0.02)
    assert low != full


def test_activation_checkpointing_recomputes_and_changes_nothing():
    found = {}
    for recompute in (False, True):
        torch.manual_seed(0)
        objective = Blocks()
        engine = TorchEngine(objective, spec_of(activation_checkpointing=recompute), CPU)
        torch.manual_seed(1)
        engine.update([_batch()], "model", 0)
        found[recompute] = objective
    torch.testing.assert_close(found[True].state_dict(), found[False].state_dict(), rtol=0, atol=0)
    assert (found[False].runs, found[True].runs) == (1, 2)


COMPILED = """
import sys
import torch
from ct3dlib.training.engine import TorchEngine
from tests.contracts.objective_cases import Regression, spec_of
from tests.training.test_engine import CPU, _batch

for compiled in (False, True):
    torch.manual_seed(0)
    engine = TorchEngine(Regression(), spec_of(compile=compiled), CPU)
    losses = [engine.update([_batch()], "model", step)["loss"] for step in range(3)]
    sys.stdout.write(" ".join(map(repr, losses)) + "\\n")
"""


@pytest.mark.slow
def test_compiling_changes_rounding_alone(repository):
    # In a process of its own: the compiler cannot see through the tests' type checks.
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], cwd=repository, capture_output=True, text=True, check=True
    )
    plain, compiled = ([float(x) for x in line.split()] for line in done.stdout.splitlines())
    assert compiled == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        (Regression(), {"activation_checkpointing": True}, "Regression names no blocks; set it"),
        (Regression(), {"fully_shard": True}, "fully_shard needs several ranks; raise devices"),
        (Regression().requires_grad_(False), {}, "turn 'model' of Regression has nothing to"),
    ],
)
def test_what_does_not_go_together_is_refused(objective, changes, message):
    with pytest.raises(ValueError, match=message):
        TorchEngine(objective, spec_of(**changes), CPU)


def test_sharding_with_fp16_is_refused(monkeypatch):
    monkeypatch.setattr("ct3dlib.training.engine.world_size", lambda: 2)
    with pytest.raises(ValueError, match="fully_shard does not go with precision: fp16"):
        TorchEngine(Regression(), spec_of(fully_shard=True, precision="fp16"), CPU)


def test_a_masked_mean_is_over_masked_values():
    values, masked = torch.tensor([[1.0, 2.0], [4.0, math.nan]]), torch.tensor([[1, 0], [1, 0]])
    assert masked_mean(values, masked.bool()) == 2.5
    assert masked_mean(values, torch.zeros(2, 2, dtype=torch.bool)) == 0


def test_an_objective_may_sum_its_gradient_itself():
    class Cached(Regression):
        def backward(self, micro_batches, turn, engine) -> Metrics:
            whole = {k: torch.cat([b[k] for b in micro_batches]) for k in ("x", "item_seed")}
            with engine.micro_batch(turn, last=True):
                loss, metrics = engine.forward({**whole, "step": micro_batches[0]["step"]}, turn)
                engine.backward(loss, turn)
            return {"loss": loss, **metrics}

    found = []
    for kind in (Regression, Cached):
        torch.manual_seed(0)
        objective = kind()
        engine = TorchEngine(objective, spec_of(), CPU)
        engine.update([_batch(4), {**_batch(4), "item_seed": torch.arange(4, 8)}], "model", 0)
        found.append(objective.state_dict())
    torch.testing.assert_close(found[0], found[1])
    assert isinstance(engine.autocast(), nullcontext)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_what_the_cpu_gives():
    found = {}
    for device in (CPU, torch.device("cuda", 0)):
        torch.manual_seed(0)
        engine = TorchEngine(Regression(), spec_of(), device)
        batch = {k: v.to(device) for k, v in _batch().items()}
        losses = [engine.update([batch], "model", step)["loss"] for step in range(3)]
        found[device.type] = losses, engine.weights()
    assert found["cuda"][0] == pytest.approx(found["cpu"][0], rel=1e-4)
    torch.testing.assert_close(found["cuda"][1], found["cpu"][1], rtol=0, atol=1e-4)
    assert gpu_metrics(torch.device("cuda", 0))["gpu_memory_gib"] > 0
