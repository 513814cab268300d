import pytest
import torch

from ct3dlib.training.random_state import random_state, set_random_state


def test_a_state_draws_the_same_again():
    device = torch.device("cpu")
    state = random_state(device)
    drawn = torch.rand(5)
    assert not torch.equal(torch.rand(5), drawn)
    set_random_state(state, device)
    assert torch.equal(torch.rand(5), drawn)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_generator_is_set_too():
    device = torch.device("cuda", 0)
    state = random_state(device)
    drawn = torch.rand(5, device=device), torch.rand(5)
    set_random_state(state, device)
    assert torch.equal(torch.rand(5, device=device), drawn[0])
    assert torch.equal(torch.rand(5), drawn[1])
