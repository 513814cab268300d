import logging
from pathlib import Path

import pytest
import torch

from ct3dlib.errors import TrainingError
from ct3dlib.training.checkpoint import Checkpoints, identity_of, only_writer
from tests.contracts.objective_cases import Masked, Regression, Vectors, spec_of

IDENTITY = {"spec.steps": "6", "items": "some"}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, IDENTITY, keep=2)


def _save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(step, {"x": torch.full((1000,), float(step))})


def _files(run_dir: Path) -> list[str]:
    return sorted(str(p.relative_to(run_dir)) for p in run_dir.rglob("*") if p.is_file())


def test_the_newest_state_is_loaded_and_the_last_are_kept(checkpoints, tmp_path):
    _save(checkpoints, 5, 10, 15)
    state = checkpoints.load()
    assert state is not None
    assert state["step"] == 15
    assert torch.equal(state["x"], torch.full((1000,), 15.0))
    assert _files(tmp_path) == ["checkpoints/step-000000010.pt", "checkpoints/step-000000015.pt"]


def test_an_empty_folder_starts_anew(checkpoints):
    assert checkpoints.load() is None


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_state_falls_back_to_the_one_before(checkpoints, tmp_path, caplog, damage):
    _save(checkpoints, 5, 10)
    path = tmp_path / "checkpoints/step-000000010.pt"
    content = bytearray(path.read_bytes())
    at = content.index(torch.full((1000,), 10.0).numpy().tobytes()) + 17
    content[at] ^= 1
    path.write_bytes({"cut": content[:2000], "flip": content, "empty": b""}[damage])
    state = checkpoints.load()
    assert state is not None
    assert state["step"] == 5
    assert "step-000000010.pt: damaged" in caplog.text


def test_a_half_written_state_is_not_seen(checkpoints, tmp_path):
    _save(checkpoints, 5)
    (tmp_path / "checkpoints/step-000000010.pt.partial").write_bytes(b"half")
    state = checkpoints.load()
    assert state is not None
    assert state["step"] == 5


def test_another_run_is_moved_aside(checkpoints, tmp_path, caplog):
    _save(checkpoints, 5)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    for number in (1, 2):
        other = Checkpoints(tmp_path, {"spec.steps": str(number), "items": "some"}, keep=2)
        assert other.load() is None
        assert f"holds another run (other spec.steps); moved to stale-{number}" in caplog.text
        _save(other, 7)
    assert _files(tmp_path) == [
        "checkpoints/step-000000007.pt",
        "stale-1/checkpoints/step-000000005.pt",
        "stale-1/metrics.jsonl",
        "stale-2/checkpoints/step-000000007.pt",
    ]


def test_a_removed_stale_folder_does_not_stop_the_next_one(checkpoints, tmp_path):
    _save(checkpoints, 5)
    (tmp_path / "stale-2").mkdir()
    Checkpoints(tmp_path, {"spec.steps": "other", "items": "some"}, keep=2).load()
    assert (tmp_path / "stale-1/checkpoints/step-000000005.pt").exists()


def test_the_identity_leaves_out_what_does_not_change_the_weights():
    def identity(objective=None, code="", **changes) -> dict[str, str]:
        objective = objective or Regression()
        items = {"items": Vectors(), "validation": None}
        return identity_of(spec_of(**changes), objective, **items, code=code)

    same = identity()
    assert identity(stop_at=3, save_every=7, keep_last=9, log_every=3, num_workers=2) == same
    assert identity(wandb_project="x", devices=2, device="auto") == same
    assert identity(learning_rate=1.0)["spec.learning_rate"] != same["spec.learning_rate"]
    assert identity(Masked())["parameters"] != same["parameters"]
    assert identity(code="new") != same
    assert (same["items"], same["validation"]) == ("Vectors 13", "")


def test_best_weights_come_back_or_say_what_is_wrong(checkpoints, tmp_path):
    checkpoints.save_best({"x": torch.arange(3)})
    assert torch.equal(checkpoints.load_best()["x"], torch.arange(3))
    (tmp_path / "best.pt").unlink()
    with pytest.raises(TrainingError, match=r"best\.pt: the best weights are missing or damaged"):
        checkpoints.load_best()


def test_one_process_trains_in_a_folder(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with (
        only_writer(tmp_path),
        pytest.raises(TrainingError, match="another process trains here"),
        only_writer(tmp_path, wait_s=0.0),
    ):
        pass
    with only_writer(tmp_path):
        pass
