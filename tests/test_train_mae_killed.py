"""Pretraining as its rule starts it, killed after its first state, and the same command again."""

import json
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ct3dlib.config import MaeSpec
from ct3dlib.models.exported import load_model
from tests.stores import write_shard
from tests.test_train_mae import MODEL, RECIPE, SHORT
from workflow_scripts import train_mae

STEPS, SAVE_EVERY = 160, 10
SPEC = MaeSpec.model_validate(
    {
        **SHORT,
        "steps": STEPS,
        "model": MODEL,
        "save_every": SAVE_EVERY,
        "validate_every": 40,
        "validation_items": 2,
        "log_every": 1,
        "ema": 0.9,
        "augment": {"intensity_shift": 0.02},
    }
)
TIMINGS = {"train/samples_per_s", "train/data_wait"}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the status tables of noise to train on and to validate with."""
    folder, rng = tmp_path_factory.mktemp("volumes"), np.random.default_rng(0)
    made = {}
    for split, count in {"train": 6, "tune": 2}.items():
        arrays = {
            f"{split}{i}": rng.integers(-1000, 1000, (4, 8, 12)).astype(np.int16)
            for i in range(count)
        }
        made[split] = write_shard(folder / split / "0000.parquet", "volumes", arrays, RECIPE)
    return made


def lines_of(run: Path) -> list[dict[str, float]]:
    """Return the log of a run without what a clock measured."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def start(tables: dict[str, Path], folder: Path) -> subprocess.Popen[bytes]:
    """Start the step as its rule does."""
    command = [sys.executable, "-m", "workflow_scripts.train_mae", "--code", "c"]
    command += ["--spec", SPEC.model_dump_json(), "--recipe", RECIPE.model_dump_json()]
    command += ["--train", str(tables["train"]), "--tune", str(tables["tune"])]
    command += ["--run", str(folder / "runs/mae"), "--model", str(folder / "models/mae")]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def kill_after_the_first_state(process: subprocess.Popen[bytes], run: Path) -> None:
    """Send SIGKILL once a whole state lies in a run's folder and the log is ahead of it."""
    log, end = run / "metrics.jsonl", time.monotonic() + 120
    ahead = 1 + SAVE_EVERY + 2  # lines: a validation, the steps that are saved, two more
    try:
        while not any(run.glob("checkpoints/step-*.pt")) or log.read_bytes().count(b"\n") < ahead:
            assert process.poll() is None, "the training ended before it wrote a state"
            assert time.monotonic() < end, "no state was ever written"
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL, "the training was over before it could be killed"


@pytest.mark.slow
def test_a_killed_pretraining_ends_with_the_weights_of_one_that_was_not(tables, tmp_path):
    run, model = tmp_path / "runs/mae", tmp_path / "models/mae"
    kill_after_the_first_state(start(tables, tmp_path), run)
    assert not model.exists()
    before = lines_of(run)[-1]["step"]
    assert SAVE_EVERY < before < STEPS
    assert start(tables, tmp_path).wait(120) == 0
    whole = Namespace(
        spec=SPEC,
        recipe=RECIPE,
        code="c",
        **{split: [table] for split, table in tables.items()},
        run=tmp_path / "whole",
        model=tmp_path / "models/whole",
    )
    train_mae.main(whole)
    weights = "model.safetensors"
    assert (model / weights).read_bytes() == (whole.model / weights).read_bytes()
    told, wanted = (load_model(folder).training for folder in (model, whole.model))
    assert {**told, "seconds": 0} == {**wanted, "seconds": 0}
    assert told["best_step"] > before  # steps after the kill made what is exported
    lines = lines_of(run)
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "val/loss" in line] == list(range(0, STEPS + 1, 40))
    assert lines == lines_of(whole.run)
    assert not list(run.glob("stale-*"))  # it went on, and did not start anew


def test_states_of_a_pretraining_hold_nothing_but_tensors_and_plain_values(tables, tmp_path):
    short = SPEC.model_copy(update={"steps": 30, "validate_every": 10})
    place = {"run": tmp_path / "run", "model": tmp_path / "model"}
    train, tune = [tables["train"]], [tables["tune"]]
    train_mae.main(Namespace(spec=short, recipe=RECIPE, code="c", train=train, tune=tune, **place))
    states = sorted(place["run"].rglob("*.pt"))
    assert [str(path.relative_to(place["run"])) for path in states] == [
        "best.pt",
        "checkpoints/step-000000020.pt",
        "checkpoints/step-000000030.pt",
    ]
    best, *saved = (torch.load(path, weights_only=True) for path in states)
    assert [state["step"] for state in saved] == [20, 30]
    exported = load_file(place["model"] / "model.safetensors")
    for name, value in exported.items():
        torch.testing.assert_close(best[f"model.{name}"], value, rtol=0, atol=0)
