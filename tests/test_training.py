"""What the steps of all trainings begin with."""

import torch

from ct3dlib.config import RecipeSpec, TrainSpec
from workflow_scripts.training import prepare


def test_fresh_weights_are_drawn_from_the_training_s_seed():
    threads = torch.get_num_threads()
    spec = TrainSpec(steps=1, batch_size=1, micro_batch_size=1, seed=7, threads=2)
    try:
        prepare(spec, [], recipe=RecipeSpec())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    wanted = torch.rand(3, generator=torch.Generator().manual_seed(7))
    assert torch.equal(torch.rand(3), wanted)
