import pytest
import torch
from torch import Tensor

from ct3dlib.losses.perceptual import perceptual_loss


def _levels(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, 3, 4, 5), (2, 7, 2, 3), (2, 4, 2, 1, 3)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def _slow(features: list[Tensor], targets: list[Tensor]) -> float:
    means = []
    for found, wanted in zip(features, targets, strict=True):
        pairs = zip(found.flatten(2).unbind(2), wanted.flatten(2).unbind(2), strict=True)
        distances = []
        for a, b in pairs:  # N C
            for x, y in zip(a, b, strict=True):
                distances.append(((x / x.norm() - y / y.norm()) ** 2).sum())
        means.append(torch.stack(distances).mean())
    return float(torch.stack(means).mean())


def test_two_levels_by_hand():
    # (3, 4) and (4, 3) point 0.6, 0.8 and 0.8, 0.6: 2 x 0.2^2; opposite directions are 4 apart.
    features = [torch.tensor([3.0, 4.0]).view(1, 2, 1, 1), torch.tensor([2.0, 0.0]).view(1, 2, 1)]
    targets = [torch.tensor([4.0, 3.0]).view(1, 2, 1, 1), torch.tensor([-5.0, 0.0]).view(1, 2, 1)]
    assert perceptual_loss(features, targets).item() == pytest.approx((0.08 + 4) / 2, abs=1e-6)


def test_it_is_the_mean_over_positions_then_levels():
    one, other = _levels(0), _levels(1)
    assert perceptual_loss(one, other).item() == pytest.approx(_slow(one, other), rel=1e-5)


def test_it_is_a_distance_of_directions():
    one, other = _levels(0), _levels(1)
    assert perceptual_loss(one, one).item() == 0
    assert perceptual_loss(one, other).item() == perceptual_loss(other, one).item() > 0
    louder = [7 * level for level in one]
    assert perceptual_loss(louder, one).item() == pytest.approx(0, abs=1e-9)


def test_the_gradient_reaches_the_reconstruction_alone():
    one, other = _levels(0), _levels(1)
    for level in (*one, *other):
        level.requires_grad_()
    perceptual_loss(one, other).backward()
    assert all(level.grad is not None and level.grad.abs().sum() > 0 for level in one)
    assert [level.grad for level in other] == [None] * 3


def test_features_that_vanish_have_a_finite_gradient():
    features = [torch.zeros(1, 3, 2, 2, requires_grad=True)]
    loss = perceptual_loss(features, [torch.ones(1, 3, 2, 2)])
    loss.backward()
    assert loss.item() == pytest.approx(1)
    assert features[0].grad is not None
    assert features[0].grad.isfinite().all()


def test_half_precision_is_compared_in_float32():
    one, other = _levels(0, torch.bfloat16), _levels(1, torch.bfloat16)
    loss = perceptual_loss(one, other)
    assert loss.dtype == torch.float32
    wanted = _slow([x.float() for x in one], [x.float() for x in other])
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_numbers_of_levels_that_differ_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        perceptual_loss(_levels(0), _levels(1)[:2])
