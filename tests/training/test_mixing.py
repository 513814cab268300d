"""Mixup and CutMix against the distributions they are drawn from and slow references."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from ct3dlib.training.draws import seed_of
from ct3dlib.training.mixing import draw_boxes, draw_lambdas, mix

SHAPE = (5, 8, 11)


def _seeds(count: int, start: int = 0) -> torch.Tensor:
    return torch.tensor([seed_of("mixing", start + i) for i in range(count)])


def _batch(size: int, shape: tuple[int, int, int] = SHAPE) -> tuple[torch.Tensor, torch.Tensor]:
    """Return volumes whose every voxel says whose it is, and one-hot targets of the same."""
    owners = torch.arange(size, dtype=torch.float32)
    return owners[:, None, None, None, None].expand(size, 1, *shape).clone(), torch.eye(size)


def _kept(targets: torch.Tensor) -> np.ndarray:
    """Return what each item of `_batch` kept of itself."""
    return targets.diagonal().double().numpy()


@pytest.mark.parametrize(("size", "alphas"), [(3, (0.0, 0.0)), (1, (0.4, 1.0))])
def test_nothing_to_do_returns_the_tensors_given(size: int, alphas: tuple[float, float]):
    volumes, targets = _batch(size)
    found = mix(volumes, targets, _seeds(size), mixup=alphas[0], cutmix=alphas[1])
    assert found[0] is volumes
    assert found[1] is targets


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_what_mixup_keeps_is_beta_distributed(alpha: float):
    volumes, targets = _batch(1000, (1, 1, 1))
    _, mixed = mix(volumes, targets, _seeds(1000), mixup=alpha, cutmix=0.0)
    assert stats.kstest(_kept(mixed), stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_lambdas_are_quantiles():
    # Beta(1, 1) is uniform; the CDF of Beta(2, 2) is 3 x^2 - 2 x^3, of Beta(1/2, 1/2) an arcsine.
    numbers = torch.linspace(0, 1 - 2**-24, 9).double()
    ones = torch.ones(9).double()
    torch.testing.assert_close(draw_lambdas(numbers, ones), numbers)
    x = draw_lambdas(numbers, 2 * ones)
    torch.testing.assert_close(3 * x**2 - 2 * x**3, numbers)
    torch.testing.assert_close(
        draw_lambdas(numbers, ones / 2), (math.pi / 2 * numbers).sin() ** 2, atol=1e-12, rtol=1e-9
    )


def test_lambdas_of_a_tiny_alpha_are_finite_and_near_an_end():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = draw_lambdas(torch.rand(500).double(), torch.full((500,), 1e-3).double())
    assert torch.isfinite(found).all()
    assert (torch.minimum(found, 1 - found) < 0.01).double().mean() > 0.97


def test_mixup_is_the_convex_combination_with_the_item_before():
    generator = torch.Generator().manual_seed(0)
    volumes = torch.rand((3, 1, *SHAPE), generator=generator) * 2 - 1
    targets = torch.tensor([[0.0, 1.0, 37.5], [1.0, 1.0, -4.0], [0.0, 0.0, 60.0]])
    mixed, learnt = mix(volumes, targets, _seeds(3), mixup=0.8, cutmix=0.0)
    kept = _kept(mix(*_batch(3), _seeds(3), mixup=0.8, cutmix=0.0)[1])
    for i, own in enumerate(kept.tolist()):
        assert 0.01 < own < 0.99
        wanted = own * volumes[i] + (1 - own) * volumes[i - 1]
        torch.testing.assert_close(mixed[i], wanted, atol=1e-6, rtol=0)
        wanted = own * targets[i] + (1 - own) * targets[i - 1]
        torch.testing.assert_close(learnt[i], wanted, atol=1e-5, rtol=0)
    assert mixed.abs().max() <= 1


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_targets_are_mixed_as_the_voxels_are(mixup: float, cutmix: float):
    # Voxels hold their owner's number, so their mean tells the shares that the targets must have.
    size = 33
    volumes, targets = _batch(size)
    mixed, learnt = mix(volumes, targets, _seeds(size), mixup=mixup, cutmix=cutmix)
    torch.testing.assert_close(learnt @ volumes[:, 0, 0, 0, 0], mixed.mean((1, 2, 3, 4)))
    torch.testing.assert_close(learnt.sum(1), torch.ones(size))
    others = (torch.eye(size) + torch.eye(size).roll(-1, 1)) == 0
    assert (learnt[others] == 0).all()


def test_cutmix_pastes_one_whole_box_and_counts_its_voxels():
    size = 40
    volumes, targets = _batch(size)
    mixed, learnt = mix(volumes, targets, _seeds(size), mixup=0.0, cutmix=1.0)
    sizes = set()
    for i in range(size):
        partner = (i - 1) % size
        foreign = mixed[i, 0] == partner
        assert torch.equal(foreign, mixed[i, 0] != i)
        places = torch.nonzero(foreign)
        count = len(places)
        if count:
            sides = places.amax(0) - places.amin(0) + 1
            assert count == sides.prod()
            sizes.add(tuple(sides.tolist()))
        assert learnt[i, partner].item() == pytest.approx(count / math.prod(SHAPE), abs=1e-7)
    assert len(sizes) > 10


def test_voxels_of_a_box_are_copied_bit_for_bit():
    volumes = torch.rand((6, 1, *SHAPE), generator=torch.Generator().manual_seed(1)) * 3000 - 1000
    mixed, _ = mix(volumes, torch.eye(6), _seeds(6), mixup=0.0, cutmix=1.0)
    assert ((mixed == volumes) | (mixed == volumes.roll(1, 0))).all()
    assert (mixed != volumes).any()


def test_a_box_has_the_share_asked_for_and_the_volumes_proportions():
    shape = (40, 80, 120)
    shares = torch.tensor([0.0, 1 / 64, 1 / 8, 27 / 64, 1.0]).double()
    starts, stops = draw_boxes(shares, torch.zeros(5, 3).double(), shape=shape)
    assert (stops - starts).tolist() == [
        [0, 0, 0],
        [10, 20, 30],
        [20, 40, 60],
        [30, 60, 90],
        [40, 80, 120],
    ]


def test_a_box_is_within_the_volume_and_anywhere_with_equal_chance():
    # Numbers spread evenly over [0, 1) must fill every place equally often.
    count = 6 * 9 * 10
    numbers = ((torch.arange(count) + 0.5) / count).double()[:, None].expand(count, 3)
    starts, stops = draw_boxes(torch.full((count,), 0.2).double(), numbers, shape=SHAPE)
    assert (stops - starts).unique(dim=0).tolist() == [[3, 5, 6]]  # 0.585 x (5, 8, 11)
    for axis, places in enumerate((3, 4, 6)):
        assert starts[:, axis].bincount().tolist() == [count // places] * places
        assert stops[:, axis].max() == SHAPE[axis]


def test_where_a_box_is_depends_on_neither_its_size_nor_the_other_axes():
    size, side = 600, 24
    mixed, _ = mix(*_batch(size, (side, side, side)), _seeds(size), mixup=0.0, cutmix=1.0)
    foreign = mixed[:, 0] != torch.arange(size)[:, None, None, None]
    spans = [foreign.flatten(1).sum(1).double() ** (1 / 3)]
    for axis in (1, 2, 3):
        along = foreign.amax([a for a in (1, 2, 3) if a != axis]).long()  # B side
        spans.append(along.argmax(1) / (side - along.sum(1)))
    movable = (spans[0] > 0.5) & (spans[0] < side - 1.5)
    ranks = stats.rankdata(torch.stack(spans, dim=1)[movable].numpy(), axis=0)
    found = np.corrcoef(ranks, rowvar=False)
    assert np.abs(found - np.eye(4)).max() < 4 / math.sqrt(movable.sum())
    for relative in spans[1:]:
        assert relative[movable].mean().item() == pytest.approx(0.5, abs=0.06)


def test_the_last_place_is_reached_and_never_passed():
    last = torch.full((1, 3), 1 - 2**-24).double()
    for share in (0.0, 1e-3, 0.5, 1.0):
        _, stops = draw_boxes(torch.tensor([share]).double(), last, shape=(512, 511, 7))
        assert stops.tolist() == [[512, 511, 7]]


def test_with_both_on_half_of_the_items_take_each():
    size = 600
    volumes, targets = _batch(size, (6, 6, 6))
    mixed, _ = mix(volumes, targets, _seeds(size), mixup=1.0, cutmix=1.0)
    # A mixed-up volume holds one value, none of the whole numbers that name an owner.
    blended = ((mixed != volumes) & (mixed != volumes.roll(1, 0))).flatten(1).any(1)
    boxed = mixed.flatten(1).amax(1) != mixed.flatten(1).amin(1)
    assert not (blended & boxed).any()
    assert blended.sum().item() == pytest.approx(size / 2, abs=4 * math.sqrt(size) / 2)
    for alone in ({"mixup": 1.0, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}):
        one, _ = mix(volumes, targets, _seeds(size), **alone)
        same = (blended if alone["mixup"] else boxed).nonzero().flatten()
        assert torch.equal(one[same], mixed[same])


def test_an_items_own_draws_do_not_depend_on_its_batch():
    seeds = _seeds(8)
    for alphas in ({"mixup": 0.3, "cutmix": 0.0}, {"mixup": 0.3, "cutmix": 1.0}):
        together = _kept(mix(*_batch(8), seeds, **alphas)[1])
        apart = [_kept(mix(*_batch(4), part, **alphas)[1]) for part in seeds.split(4)]
        np.testing.assert_array_equal(np.concatenate(apart), together)
        again = mix(*_batch(8), seeds, **alphas)
        assert torch.equal(again[0], mix(*_batch(8), seeds, **alphas)[0])


def test_an_unknown_target_makes_its_mixture_unknown():
    targets = torch.tensor([[0.0, 1.0], [1.0, math.nan], [1.0, 1.0]])
    _, learnt = mix(_batch(3)[0], targets, _seeds(3), mixup=1.0, cutmix=0.0)
    assert learnt.isnan().tolist() == [[False, False], [False, True], [False, True]]


def test_bfloat16_volumes_and_float32_targets_keep_their_types():
    volumes, targets = _batch(4)
    mixed, learnt = mix(volumes.bfloat16(), targets, _seeds(4), mixup=0.4, cutmix=1.0)
    assert (mixed.dtype, learnt.dtype) == (torch.bfloat16, torch.float32)


def test_a_negative_alpha_is_refused():
    with pytest.raises(ValueError, match=r"alphas .* 0 or more, not -0\.1 and 0\.0"):
        mix(*_batch(2), _seeds(2), mixup=-0.1, cutmix=0.0)
