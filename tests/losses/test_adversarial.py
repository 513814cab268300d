import math
from typing import get_args

import pytest
import torch
from monai.losses.adversarial_loss import PatchAdversarialLoss
from torch import Tensor, nn

from ct3dlib.losses.adversarial import (
    Kind,
    LeCam,
    adaptive_weight,
    discriminator_loss,
    feature_matching,
    generator_loss,
    r1_penalty,
)

each_kind = pytest.mark.parametrize("kind", get_args(Kind))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("non_saturating", (math.log(2) + math.log(1 + math.e)) / 2),
        ("hinge", 0.5),
        ("least_squares", (1 + 4) / 2),
    ],
)
def test_the_generator_pays_by_hand(kind: Kind, expected: float):
    logits = torch.tensor([0.0, -1.0])
    assert generator_loss(logits, kind).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("non_saturating", math.log(1 + math.exp(-2)) + math.log(1 + math.exp(0.5))),
        ("hinge", 0 + 1.5),
        ("least_squares", (1 + 0.25) / 2),
    ],
)
def test_the_discriminator_pays_by_hand(kind: Kind, expected: float):
    loss = discriminator_loss(torch.full((2, 3), 2.0), torch.full((4,), 0.5), kind)
    assert loss.item() == pytest.approx(expected)


def test_hinge_equals_that_of_monai():
    real, fake = torch.randn(2, 2, 1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    oracle = PatchAdversarialLoss(criterion="hinge")  # it squashes the logits first
    sides = oracle(real, True, True) + oracle(fake, False, True)
    torch.testing.assert_close(discriminator_loss(real.tanh(), fake.tanh(), "hinge"), sides)
    shifted = generator_loss(fake.tanh(), "hinge") + 1  # below 1 its hinge is 1 - logit
    torch.testing.assert_close(shifted, oracle(fake, True, False))


def test_least_squares_equal_those_of_monai():
    real, fake = torch.randn(2, 2, 1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    oracle = PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True)
    sides = oracle(real, True, True) + oracle(fake, False, True)
    torch.testing.assert_close(discriminator_loss(real, fake, "least_squares"), sides / 2)
    torch.testing.assert_close(generator_loss(fake, "least_squares"), oracle(fake, True, False))


@each_kind
def test_both_sides_pull_the_logits_their_way(kind: Kind):
    real = torch.zeros(3, requires_grad=True)
    discriminator_loss(real, torch.zeros(3), kind).backward()
    assert real.grad is not None
    assert (real.grad < 0).all()
    fooling = torch.zeros(3, requires_grad=True)
    generator_loss(fooling, kind).backward()
    assert fooling.grad is not None
    assert (fooling.grad < 0).all()
    confident = torch.full((3,), 0.5, requires_grad=True)
    discriminator_loss(real.detach(), confident, kind).backward()
    assert confident.grad is not None
    assert (confident.grad > 0).all()


@each_kind
def test_large_logits_stay_finite(kind: Kind):
    logits = torch.tensor([1e4, -1e4]).bfloat16()
    assert torch.isfinite(generator_loss(logits, kind))
    assert torch.isfinite(discriminator_loss(logits, logits, kind))
    assert generator_loss(logits, kind).dtype == torch.float32


def test_features_match_by_the_mean_over_layers_and_real_ones_are_left_alone():
    real = [torch.zeros(1, 2, 3, requires_grad=True), torch.ones(4, requires_grad=True)]
    fake = [torch.full((1, 2, 3), 2.0, requires_grad=True), torch.zeros(4, requires_grad=True)]
    loss = feature_matching(real, fake)
    loss.backward()
    assert loss.item() == pytest.approx((2 + 1) / 2)
    assert all(feature.grad is None for feature in real)
    torch.testing.assert_close(fake[0].grad, torch.full((1, 2, 3), 1 / 12))
    torch.testing.assert_close(fake[1].grad, torch.full((4,), -1 / 8))


def test_features_of_different_layers_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        feature_matching([torch.zeros(1)], [torch.zeros(1), torch.zeros(1)])


def test_lecam_compares_each_side_with_the_average_of_the_other():
    penalty = LeCam()
    penalty.real.fill_(1.0)
    penalty.fake.fill_(-2.0)
    real, fake = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0, 1.0])
    expected = (4 + 16) / 2 + (0 + 4 + 0) / 3
    assert penalty(real, fake).item() == pytest.approx(expected)


def test_lecam_averages_follow_the_logits_in_training_alone():
    penalty = LeCam()
    real, fake = torch.tensor([2.0, 4.0], requires_grad=True), torch.tensor([-1.0])
    for _ in range(1000):
        penalty(real, fake)
    assert penalty.real.item() == pytest.approx(3 * (1 - 0.999**1000), rel=1e-4)
    assert penalty.fake.item() == pytest.approx(-(1 - 0.999**1000), rel=1e-4)
    before = {name: value.clone() for name, value in penalty.state_dict().items()}
    penalty.eval()(real, fake)
    torch.testing.assert_close(penalty.state_dict(), before, rtol=0, atol=0)
    assert sorted(before) == ["fake", "real"]


def test_lecam_pulls_logits_together_and_has_no_gradient_in_its_averages():
    penalty = LeCam()
    real = torch.tensor([3.0], requires_grad=True)
    fake = torch.tensor([-3.0], requires_grad=True)
    first = penalty(real, fake)
    second = penalty(real, fake)
    (first + second).backward()
    assert real.grad.item() == pytest.approx(2 * 3 + 2 * (3 + 0.003), rel=1e-5)
    assert fake.grad.item() == pytest.approx(-real.grad.item())
    assert not penalty.real.requires_grad


def test_r1_of_a_linear_discriminator_is_its_squared_weight():
    weight = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    volumes = torch.zeros(5, 1, 2, 3, 4)
    found = r1_penalty(lambda v: (v * weight).sum(dim=(1, 2, 3, 4)), volumes)
    assert found.item() == pytest.approx(weight.square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("size", [4, 8])
def test_r1_of_patches_does_not_grow_with_the_crop(size: int):
    conv = nn.Conv3d(1, 1, 2, stride=2)
    found = r1_penalty(conv, torch.randn(3, 1, size, size, size))
    assert found.item() == pytest.approx(conv.weight.square().sum().item(), rel=1e-5)


def test_r1_reaches_the_discriminator_and_not_the_volumes():
    scale = nn.Parameter(torch.tensor(3.0))
    volumes = torch.tensor([0.5, 1.0]).view(2, 1, 1, 1, 1).requires_grad_()
    # D(x) = a x^2: |2 a x|^2 = 9 and 36, and its derivative by a is 8 a x^2.
    penalty = r1_penalty(lambda v: scale * v.square(), volumes)
    penalty.backward()
    assert penalty.item() == pytest.approx((9 + 36) / 2)
    assert scale.grad.item() == pytest.approx((8 * 3 * 0.25 + 8 * 3 * 1) / 2)
    assert volumes.grad is None


def _terms(last_layer: nn.Parameter) -> tuple[Tensor, Tensor]:
    """Return losses with the gradients (3, 4) and (0, 2)."""
    return 3 * last_layer[0] + 4 * last_layer[1], 2 * last_layer[1]


def test_the_adaptive_weight_is_the_ratio_of_gradient_norms():
    last_layer = nn.Parameter(torch.ones(2))
    weight = adaptive_weight(*_terms(last_layer), last_layer=last_layer, limit=100.0)
    assert weight.item() == pytest.approx(5 / (2 + 1e-4))
    assert not weight.requires_grad
    assert last_layer.grad is None


def test_the_adaptive_weight_is_limited():
    last_layer = nn.Parameter(torch.ones(2))
    loss, adversarial = _terms(last_layer)
    weight = adaptive_weight(loss, 1e-9 * adversarial, last_layer=last_layer, limit=10.0)
    assert weight.item() == 10


def test_the_adaptive_weight_keeps_the_graph_for_the_step():
    last_layer = nn.Parameter(torch.ones(2))
    hidden = last_layer.square()  # saved for the second pass
    loss, adversarial = hidden.sum(), hidden[0]
    weight = adaptive_weight(loss, adversarial, last_layer=last_layer, limit=100.0)
    (loss + weight * adversarial).backward()
    torch.testing.assert_close(last_layer.grad, torch.tensor([2 + 2 * weight.item(), 2.0]))
