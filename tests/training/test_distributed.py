import pytest
import torch

from ct3dlib.errors import TrainingError
from ct3dlib.training.distributed import (
    any_rank,
    choose_device,
    mean_over_ranks,
    process_group,
    rank,
    world_size,
)


def test_one_process_is_a_group_of_its_own(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group("cpu") as device:
        assert (device.type, rank(), world_size()) == ("cpu", 0, 1)
        assert any_rank(True, device)
        assert not any_rank(False, device)
        value = torch.tensor([2.0], requires_grad=True)
        assert mean_over_ranks(value).tolist() == [2.0]
        assert not mean_over_ranks(value).requires_grad


def test_the_rank_is_known_before_the_group(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert rank() == 3


def test_auto_takes_what_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_missing_device_is_named(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(TrainingError, match=f"device: {name} was asked for and this machine has"):
        choose_device(name)


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(TrainingError, match="local rank 1 has no GPU, this machine has 1; lower"):
        choose_device("cuda")
