from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ct3dlib.config import TokenizerLossSpec
from ct3dlib.losses.reconstruction import absolute_error, squared_error
from ct3dlib.losses.structural import (
    eagle_loss,
    focal_frequency_loss,
    gradient_loss,
    ssim_loss,
)
from ct3dlib.objectives.voxel_terms import voxel_terms

ALONE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": absolute_error,
    "l2": squared_error,
    "ssim": lambda a, b: ssim_loss(a, b, data_range=2.0),
    "gradient": gradient_loss,
    "eagle": eagle_loss,
    "focal_frequency": focal_frequency_loss,
}
WEIGHTS = dict(zip(ALONE, (0.7, 1.1, 1.3, 0.9, 0.01, 1.7), strict=True))


def _pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = (2 * torch.rand(2, 1, 5, 12, 13, generator=generator) - 1 for _ in range(2))
    return first, second


def _gradient(make: Callable[[Tensor], Tensor], reconstructed: Tensor) -> Tensor:
    leaf = reconstructed.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(make(leaf), leaf)
    return gradient


def _total(weights: dict[str, float], volumes: Tensor) -> Callable[[Tensor], Tensor]:
    spec = TokenizerLossSpec(**{"l1": 0.0, **weights})
    return lambda reconstructed: voxel_terms(reconstructed, volumes, spec, data_range=2.0)[0]


@pytest.mark.parametrize("name", ALONE)
def test_the_weight_of_a_term_scales_its_gradient(name: str):
    reconstructed, volumes = _pair()
    alone = _gradient(lambda leaf: ALONE[name](leaf, volumes), reconstructed)
    without = _gradient(_total({"l1": 0.5, "l2": 0.5}, volumes), reconstructed)
    weights = {"l1": 0.5, "l2": 0.5}
    weights[name] = weights.get(name, 0.0) + WEIGHTS[name]
    found = _gradient(_total(weights, volumes), reconstructed)
    assert alone.abs().max() > 0
    torch.testing.assert_close(found - without, WEIGHTS[name] * alone, rtol=1e-3, atol=1e-7)


def test_equal_volumes_cost_nothing():
    volumes, _ = _pair()
    total, terms = voxel_terms(
        volumes, volumes.clone(), TokenizerLossSpec(**WEIGHTS), data_range=2.0
    )
    assert {name: term.item() for name, term in terms.items()} == dict.fromkeys(ALONE, 0.0)
    assert total.item() == 0
