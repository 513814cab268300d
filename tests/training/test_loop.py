import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ct3dlib.errors import TrainingError
from ct3dlib.training.loop import train
from ct3dlib.training.objective import Batch, Metrics
from ct3dlib.training.schedule import ema_decay, learning_rate
from tests.contracts.objective_cases import CASES, Adversarial, Regression, Vectors, spec_of
from tests.ranks import run_ranks
from tests.training.rank_runs import SHARDED


class Scripted(Regression):
    """Its validation gives the values it was told, one per validation."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = values

    def validate(self, batch: Batch) -> Metrics:
        return {"loss": torch.tensor(self.values[int(batch["step"])])}


def _make(kind=Regression, *arguments):
    torch.manual_seed(0)
    return kind(*arguments)


def _lines(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def _weights_after(steps: int, run_dir: Path, **changes: object) -> dict[str, Tensor]:
    objective = _make()
    train(objective, Vectors(), spec_of(steps=9, stop_at=steps, **changes), run_dir=run_dir)
    return objective.state_dict()


def test_the_log_names_what_it_measured(tmp_path):
    spec = spec_of(steps=4, log_every=2, validate_every=4)
    train(_make(), Vectors(), spec, run_dir=tmp_path, validation=Vectors())
    timed = {"train/samples_per_s", "train/data_wait"}
    trained = {"step", "train/loss", "train/rmse", "train/grad_norm", "train/lr"} | timed
    validated = {"step", "val/loss", "val/rmse"}
    lines = _lines(tmp_path)
    assert [(line["step"], set(line)) for line in lines] == [
        (0, validated),
        (2, trained),
        (4, trained),
        (4, validated),
    ]
    assert all(line["train/samples_per_s"] > 0 for line in lines if "train/loss" in line)
    assert all(0 <= line["train/data_wait"] <= 1 for line in lines if "train/loss" in line)


def test_turns_name_their_metrics(tmp_path):
    train(_make(Adversarial), Vectors(), spec_of(steps=1), run_dir=tmp_path)
    (line,) = _lines(tmp_path)
    assert {"train/generator/l1", "train/discriminator/margin", "train/discriminator/lr"} < set(
        line
    )


def test_turns_share_the_step_and_its_rate_and_log_their_own_gradients(tmp_path):
    spec = spec_of(steps=4, warmup_steps=2)
    train(_make(Adversarial), Vectors(), spec, run_dir=tmp_path)
    lines = _lines(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for step, line in enumerate(lines):
        rates = [line[f"train/{turn}/lr"] for turn in Adversarial.turns]
        assert rates == pytest.approx([learning_rate(spec, step)] * 2)
        norms = {line[f"train/{turn}/grad_norm"] for turn in Adversarial.turns}
        assert len(norms) == 2


def test_the_best_weights_come_back(tmp_path):
    values = [0.0, 5.0, 3.0, 1.0, 4.0, 2.0]  # the untrained weights do not count
    objective = _make(Scripted, values)
    spec = spec_of(steps=5, validate_every=1)
    summary = train(objective, Vectors(), spec, run_dir=tmp_path / "a", validation=Vectors())
    assert (summary.step, summary.best_step, summary.best_value) == (5, 3, 1.0)
    assert not summary.stopped_early
    assert not objective.training
    expected = _make(Scripted, values)
    spec = spec_of(steps=5, stop_at=3)
    train(expected, Vectors(), spec, run_dir=tmp_path / "b")
    torch.testing.assert_close(objective.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_a_run_past_stop_at_is_not_exported_as_if_it_had_stopped(tmp_path):
    _weights_after(6, tmp_path)
    with pytest.raises(TrainingError, match="has taken 6 steps, stop_at wants 4; raise stop_at"):
        _weights_after(4, tmp_path)


def test_a_finished_run_is_not_run_again(tmp_path):
    first, again = _make(), _make()
    spec = spec_of(steps=4, validate_every=2)
    done = train(first, Vectors(), spec, run_dir=tmp_path, validation=Vectors())
    log = (tmp_path / "metrics.jsonl").read_bytes()
    assert train(again, Vectors(), spec, run_dir=tmp_path, validation=Vectors()) == done
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == log


def test_a_warm_up_that_never_ends_is_told(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    _weights_after(4, tmp_path / "all", warmup_steps=4)
    assert "steps 0 to 4 on cpu, 8 items a step, learning rate 0.01" in caplog.text
    assert "(4) are all of 4 steps: the learning rate never reaches 0.01" in caplog.text
    assert [r.levelname for r in caplog.records if "never reaches" in r.message] == ["WARNING"]
    caplog.clear()
    _weights_after(4, tmp_path / "some", warmup_steps=3)
    assert "never reaches" not in caplog.text


def test_another_spec_or_code_starts_anew(tmp_path, caplog):
    for changes in ({}, {"learning_rate": 2e-2}):
        train(_make(), Vectors(), spec_of(steps=2, **changes), run_dir=tmp_path)
    train(_make(), Vectors(), spec_of(steps=2), run_dir=tmp_path, code="new")
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2]
    assert "other spec.learning_rate" in caplog.messages[0]
    assert "other code or starting weights, spec.learning_rate" in caplog.messages[1]
    assert (tmp_path / "stale-2/metrics.jsonl").exists()


def test_a_damaged_state_costs_its_steps_and_nothing_else(tmp_path):
    whole = _weights_after(6, tmp_path / "whole")
    _weights_after(4, tmp_path / "cut", save_every=2)
    newest = tmp_path / "cut/checkpoints/step-000000004.pt"
    newest.write_bytes(newest.read_bytes()[:500])
    found = _weights_after(6, tmp_path / "cut", save_every=2)
    torch.testing.assert_close(found, whole, rtol=0, atol=0)
    steps = [line["step"] for line in _lines(tmp_path / "cut")]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_without_validation_the_average_is_kept(tmp_path):
    found = _weights_after(3, tmp_path / "ema", ema=0.2)
    average = {k: v.clone() for k, v in _make().state_dict().items()}
    for step in range(3):
        live = _weights_after(step + 1, tmp_path / str(step))
        decay = ema_decay(0.2, step)
        average = {k: decay * average[k] + (1 - decay) * live[k] for k in live}
    torch.testing.assert_close(found, average, rtol=0, atol=1e-6)


def test_validation_sees_the_average(tmp_path):
    values = {}
    for ema in (None, 0.9):
        run_dir = tmp_path / str(ema)
        spec = spec_of(steps=3, ema=ema, validate_every=3)
        objective = _make()
        summary = train(objective, Vectors(), spec, run_dir=run_dir, validation=Vectors())
        values[ema] = summary.best_value
        again = train(_make(), Vectors(), spec, run_dir=run_dir, validation=Vectors())
        assert again.best_value == summary.best_value
    live = [line["train/loss"] for line in _lines(tmp_path / "None") if "train/loss" in line]
    averaged = [line["train/loss"] for line in _lines(tmp_path / "0.9") if "train/loss" in line]
    assert live == averaged  # the average does not touch the training
    assert values[None] != values[0.9]


def test_early_stop_waits_for_its_patience(tmp_path):
    stop = {"monitor": "val/loss", "mode": "min", "patience": 2}
    spec = spec_of(steps=8, validate_every=1, early_stop=stop)
    values = [9.0, 5.0, 4.0, 6.0, 4.0, 1.0, 0.0, 0.0, 0.0]
    for _ in range(2):  # the second call finds a run that has stopped
        summary = train(
            _make(Scripted, values), Vectors(), spec, run_dir=tmp_path, validation=Vectors()
        )
        assert (summary.step, summary.best_step, summary.stopped_early) == (4, 2, True)


@pytest.mark.parametrize("key", ["monitor", "early_stop.monitor"])
def test_an_unknown_monitor_fails_before_the_first_step(tmp_path, key):
    early = {"monitor": "val/psnr"}
    changes = {"monitor": "val/psnr"} if key == "monitor" else {"early_stop": early}
    with pytest.raises(TrainingError, match=f"{key}: no metric 'val/psnr'; .* val/loss, val/rmse"):
        train(_make(), Vectors(), spec_of(**changes), run_dir=tmp_path, validation=Vectors())
    assert [line["step"] for line in _lines(tmp_path)] == [0]


def test_early_stop_without_validation_is_refused(tmp_path):
    spec = spec_of(early_stop={"monitor": "val/loss"})
    with pytest.raises(ValueError, match="early_stop needs validation items; there are none"):
        train(_make(), Vectors(), spec, run_dir=tmp_path)


def test_a_loss_that_is_not_finite_leaves_the_last_good_state(tmp_path):
    class Bursting(Regression):
        def loss(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
            loss, metrics = super().loss(batch, turn)
            return loss * (torch.nan if batch["step"] == 3 else 1.0), metrics

    with pytest.raises(TrainingError, match="step 3: loss of model is nan"):
        train(_make(Bursting), Vectors(), spec_of(save_every=2), run_dir=tmp_path)
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert names == ["step-000000002.pt"]


def test_workers_and_low_precision_train(tmp_path):
    plain = _weights_after(3, tmp_path / "plain")
    torch.testing.assert_close(
        _weights_after(3, tmp_path / "workers", num_workers=1), plain, rtol=0, atol=0
    )
    bf16 = _weights_after(3, tmp_path / "bf16", precision="bf16")
    assert all(torch.isfinite(value).all() for value in bf16.values())


def test_dropout_goes_on_where_it_was(tmp_path):
    class Dropping(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.model.insert(1, torch.nn.Dropout(0.5))

    found = {}
    for name, stops in {"parts": (2, 5), "whole": (5,)}.items():
        for stop_at in stops:
            objective = _make(Dropping)
            train(objective, Vectors(), spec_of(stop_at=stop_at), run_dir=tmp_path / name)
        found[name] = objective.state_dict()
    torch.testing.assert_close(found["parts"], found["whole"], rtol=0, atol=0)


SLOW_RUN = """
import sys, time
from pathlib import Path
import torch
from ct3dlib.training.loop import train
from tests.contracts.objective_cases import Regression, Vectors, spec_of

class Slow(Regression):
    def loss(self, batch, turn):
        time.sleep(0.1)
        return super().loss(batch, turn)

torch.manual_seed(0)
torch.set_num_threads(1)
train(Slow(), Vectors(), spec_of(steps=1000, num_workers=1), run_dir=Path(sys.argv[1]))
"""


def test_sigterm_saves_between_steps_and_exits_with_143(tmp_path, repository):
    command = [sys.executable, "-c", SLOW_RUN, str(tmp_path)]
    process = subprocess.Popen(command, cwd=repository, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "metrics.jsonl").exists() or not _lines(tmp_path):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)  # the loader's processes get it too
    assert process.wait(60) == 143
    last = _lines(tmp_path)[-1]["step"]
    assert 1 <= last < 1000
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [f"step-{last:09d}.pt"]
    handler = signal.getsignal(signal.SIGTERM)
    train(_make(), Vectors(), spec_of(steps=1000, stop_at=last + 1), run_dir=tmp_path)
    assert [line["step"] for line in _lines(tmp_path)] == list(range(1, last + 2))
    assert signal.getsignal(signal.SIGTERM) is handler


class Killed(Regression):
    """Its process is killed in the middle of a step."""

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        if batch["step"] == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(batch, turn)


@pytest.mark.filterwarnings("ignore:.*is multi-threaded.*fork:DeprecationWarning")
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path):
    spec = spec_of(steps=6, save_every=3, ema=0.9)
    process = multiprocessing.get_context("fork").Process(
        target=train, args=(_make(Killed), Vectors(), spec), kwargs={"run_dir": tmp_path / "killed"}
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [line["step"] for line in _lines(tmp_path / "killed")] == [1, 2, 3, 4]
    found = {}
    for name in ("killed", "whole"):
        objective = _make()
        train(objective, Vectors(), spec, run_dir=tmp_path / name)
        found[name] = objective.state_dict()
    torch.testing.assert_close(found["killed"], found["whole"], rtol=0, atol=0)
    timed = {"train/samples_per_s", "train/data_wait"}
    killed, whole = (
        [{k: v for k, v in line.items() if k not in timed} for line in _lines(tmp_path / name)]
        for name in ("killed", "whole")
    )
    assert killed == whole


def test_sharded_ranks_equal_one_process(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run_ranks("tests.training.rank_runs", [str(tmp_path)])
    case = CASES["maskgit"]
    objective = case.objective()
    spec = spec_of(**{**SHARDED, "fully_shard": False, "activation_checkpointing": False})
    summary = train(objective, case.items, spec, run_dir=tmp_path / "a", validation=case.items)
    adversarial = CASES["adversarial"].objective()
    train(adversarial, CASES["adversarial"].items, spec_of(), run_dir=tmp_path / "b")
    for rank in range(2):
        found = torch.load(tmp_path / f"sharded-{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["weights"], objective.state_dict(), rtol=0, atol=1e-5)
        assert found["summary"]["best_step"] == summary.best_step
        assert found["summary"]["best_value"] == pytest.approx(summary.best_value, rel=1e-4)
        found = torch.load(tmp_path / f"adversarial-{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, adversarial.state_dict(), rtol=0, atol=1e-5)
