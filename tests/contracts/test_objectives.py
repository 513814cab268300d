"""What every objective promises the training loop."""

import json
import math
from pathlib import Path

import pytest
import torch

from ct3dlib.training.loop import train
from tests.contracts.objective_cases import CASES, Case, spec_of
from tests.ranks import run_ranks

TIMINGS = {"train/samples_per_s", "train/data_wait"}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def case(name: str) -> Case:
    return CASES[name]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks("tests.contracts.objective_cases", [str(folder)])
    return folder


def _lines(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def _trained(case: Case, run_dir: Path, **changes: object) -> dict[str, torch.Tensor]:
    objective = case.objective()
    train(objective, case.items, spec_of(**changes), run_dir=run_dir)
    return {k: v.clone() for k, v in objective.state_dict().items()}


def test_metrics_are_finite_and_gradients_reach_every_parameter(case, tmp_path):
    before = {k: v.clone() for k, v in case.objective().named_parameters()}
    after = _trained(case, tmp_path, steps=3)
    assert all(math.isfinite(v) for line in _lines(tmp_path) for v in line.values())
    assert [k for k, v in before.items() if torch.equal(v, after[k])] == list(case.idle)


def test_a_step_in_bfloat16_is_finite_and_near_that_in_float32(case, tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        run_dir = tmp_path / precision
        weights = _trained(case, run_dir, steps=1, precision=precision)
        assert all(value.isfinite().all() for value in weights.values())
        (line,) = _lines(run_dir)
        assert all(math.isfinite(value) for value in line.values())
        losses[precision] = [value for key, value in line.items() if key.endswith("loss")]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1, abs=0.02)


def test_the_loss_falls(case, tmp_path):
    spec = spec_of(steps=case.steps, validate_every=case.steps)
    objective = case.objective()
    summary = train(objective, case.items, spec, run_dir=tmp_path, validation=case.items)
    first, *_, last = (line["val/loss"] for line in _lines(tmp_path) if "val/loss" in line)
    assert last < case.falls_to * first
    assert summary.best_value == last


def test_three_and_three_resumed_steps_are_six(case, tmp_path):
    _trained(case, tmp_path / "parts", stop_at=3, ema=0.9)
    parts = _trained(case, tmp_path / "parts", ema=0.9)
    whole = _trained(case, tmp_path / "whole", ema=0.9)
    assert [k for k in whole if not torch.equal(parts[k], whole[k])] == []
    assert _lines(tmp_path / "parts") == _lines(tmp_path / "whole")


def test_accumulation_is_the_large_batch(case, tmp_path):
    parts = _trained(case, tmp_path / "parts", micro_batch_size=2)
    whole = _trained(case, tmp_path / "whole", micro_batch_size=8)
    _assert_close(parts, whole, case)


def test_two_ranks_are_one(name, case, tmp_path, two_ranks):
    one = _trained(case, tmp_path, micro_batch_size=2)
    for rank in range(2):
        found = torch.load(two_ranks / f"{name}-{rank}.pt", weights_only=True)
        _assert_close(found, one, case)


def _assert_close(found, wanted, case):
    """Compare weights; a bias of keys changes no attention, and AdamW blows its rounding up."""
    for key, value in wanted.items():
        pair = (found[key], value)
        if key.endswith("qkv.bias"):
            pair = tuple(torch.cat(v.chunk(3)[::2]) for v in pair)
        elif key.endswith("key_value.bias"):
            pair = tuple(v.chunk(2)[1] for v in pair)
        elif key.endswith("key.bias"):
            continue
        torch.testing.assert_close(*pair, rtol=0, atol=case.tolerance)
