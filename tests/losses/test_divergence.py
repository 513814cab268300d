import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.distributions import kl_divergence as divergence

from ct3dlib.losses.divergence import kl_divergence, latent_energy


def _posterior() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(2, 4, 3, 5, 6, generator=generator)
    return mean, torch.rand(2, 4, 3, 5, 6, generator=generator) * 2 + 1e-3


def _nats(mean: Tensor, std: Tensor) -> Tensor:
    return divergence(Normal(mean, std), Normal(torch.zeros_like(mean), torch.ones_like(mean)))


def test_kl_equals_that_of_torch_distributions():
    mean, std = _posterior()
    torch.testing.assert_close(kl_divergence(mean, std), _nats(mean, std).mean())


def test_kl_by_hand():
    mean, std = torch.full((1, 1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1, 1), 0.5)
    assert kl_divergence(mean, std).item() == pytest.approx((4 + 0.25 - 1) / 2 + 0.6931472)


def test_kl_is_zero_and_flat_at_the_prior():
    mean = torch.zeros(1, 2, 3, 4, 5, requires_grad=True)
    std = torch.ones(1, 2, 3, 4, 5, requires_grad=True)
    loss = kl_divergence(mean, std)
    loss.backward()
    assert loss.item() == 0
    assert mean.grad is not None
    assert std.grad is not None
    assert not mean.grad.any()
    assert not std.grad.any()


def test_free_bits_cost_nothing_and_push_nothing():
    mean = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1, 1).requires_grad_()  # 0.5 and 4.5 nats
    loss = kl_divergence(mean, torch.ones(1, 2, 1, 1, 1), free_bits=1.5)
    loss.backward()
    assert loss.item() == pytest.approx((0 + 3) / 2)
    assert mean.grad.flatten().tolist() == pytest.approx([0, 1.5])


def test_kl_is_float32_for_half_precision_posteriors():
    mean, std = (value.bfloat16() for value in _posterior())
    expected = _nats(mean.float(), std.float()).mean()
    found = kl_divergence(mean, std)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_energy_is_the_mean_square_and_twice_the_share_of_the_mean():
    mean, _ = _posterior()
    ones = torch.ones_like(mean)
    assert latent_energy(torch.tensor([3.0, -1]).view(1, 2, 1, 1, 1)).item() == 5
    torch.testing.assert_close(latent_energy(mean), 2 * kl_divergence(mean, ones))
