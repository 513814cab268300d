import importlib.util
import json
import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ct3dlib.errors import TrainingError
from ct3dlib.training import metric_log
from ct3dlib.training.metric_log import MetricLog, gpu_metrics


def _lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _log(folder, steps, *, first_step=0):
    with MetricLog(folder, first_step=first_step) as log:
        for step in steps:
            log.scalars(step, {"train/loss": 1.0 / step})


def test_each_step_is_a_line_and_infinite_values_are_null(tmp_path):
    with MetricLog(tmp_path) as log:
        log.scalars(1, {"train/loss": 0.5, "train/grad_norm": math.inf})
        log.scalars(2, {"val/psnr_db": 30.0})
    assert _lines(tmp_path) == [
        {"step": 1, "train/loss": 0.5, "train/grad_norm": None},
        {"step": 2, "val/psnr_db": 30.0},
    ]


def test_a_resume_takes_out_what_will_be_logged_again(tmp_path):
    _log(tmp_path, [1, 2, 3, 4])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "train/lo')  # killed in the middle of a line
    _log(tmp_path, [3, 4], first_step=2)
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2, 3, 4]
    _log(tmp_path, [5], first_step=4)
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2, 3, 4, 5]
    _log(tmp_path, [1])
    assert [line["step"] for line in _lines(tmp_path)] == [1]


def test_tensorboard_holds_the_same_scalars_and_the_pictures(tmp_path):
    _log(tmp_path, [1, 2, 4])
    with MetricLog(tmp_path, first_step=2) as log:
        log.scalars(3, {"train/loss": 7.0})
        log.pictures(3, {"val/slice": torch.rand(1, 5, 8) * 3 - 1})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(1, 1.0), (2, 0.5), (3, 7.0)]
    (image,) = events.Images("val/slice")
    assert (image.step, image.height, image.width) == (3, 5, 8)


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(metric_log, "rank", lambda: 1)
    with MetricLog(tmp_path / "run") as log:
        log.scalars(1, {"train/loss": 1.0})
        log.pictures(1, {"val/slice": torch.zeros(1, 2, 2)})
    assert not (tmp_path / "run").exists()


def test_weights_and_biases_logs_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for first_step in (0, 1):
        with MetricLog(tmp_path, "project", first_step=first_step) as log:
            log.scalars(first_step + 1, {"train/loss": 0.25})
            log.pictures(first_step + 1, {"val/slice": torch.rand(3, 4, 4)})
            assert wandb.run.id == (tmp_path / "wandb_id").read_text()
            assert dict(wandb.run.summary)["train/loss"] == 0.25
        assert wandb.run is None
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2


def test_a_missing_weights_and_biases_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"pip install 'ct3dlib\[wandb\]'"):
        MetricLog(tmp_path, "project")


def test_a_cpu_has_no_gpu_metrics():
    assert gpu_metrics(torch.device("cpu")) == {}
