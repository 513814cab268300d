import math

import numpy as np
import pytest
import scipy.linalg
import torch
from monai.metrics.fid import FIDMetric
from monai.metrics.regression import MultiScaleSSIMMetric

from ct3dlib.metrics.distribution import (
    frechet_distance,
    half_subset,
    kernel_distance,
    ms_ssim_diversity,
    polynomial_mmd,
)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _features(n: int, num_features: int = 8, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, num_features, generator=torch.Generator().manual_seed(seed))


def _frechet_oracle(a: np.ndarray, b: np.ndarray) -> float:
    """Follow the textbook formula with a matrix square root."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))


def test_frechet_distance_of_a_set_to_itself_is_zero():
    assert abs(frechet_distance(_features(200), _features(200)).item()) < 1e-9


def test_frechet_distance_of_a_shift_is_its_squared_length():
    features = _features(200)
    shift = torch.arange(8.0)
    assert frechet_distance(features, features + shift).item() == pytest.approx(140, abs=1e-3)
    exact = frechet_distance(features.double(), features.double() + shift)
    assert exact.item() == pytest.approx(140, abs=1e-6)


@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated:DeprecationWarning")
def test_frechet_distance_equals_that_of_monai():
    mixing = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 8)))
    a, b = _features(50).double(), _features(70, seed=2).double() @ mixing + 1
    assert frechet_distance(a, b).item() == pytest.approx(FIDMetric()(a, b).item(), abs=1e-5)


def test_frechet_distance_of_a_scale_is_known():
    # Covariances C and 9 C: trace(C + 9 C - 2 x 3 C) = 4 trace C, and the means differ by 2 m.
    features = _features(200).double()
    expected = 4 * features.var(0).sum() + 4 * features.mean(0).square().sum()
    torch.testing.assert_close(frechet_distance(features, 3 * features), expected)


def test_frechet_distance_equals_the_matrix_square_root():
    mixing = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 8)))
    a, b = _features(50).double(), _features(70, seed=2).double() @ mixing + 1
    expected = _frechet_oracle(a.numpy(), b.numpy())
    assert frechet_distance(a, b).item() == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_few_volumes_is_refused_unless_allowed():
    few = _features(8)
    with pytest.raises(ValueError, match="8 volumes cannot fix a covariance of 8 features"):
        frechet_distance(few, _features(50))
    distance = frechet_distance(few, few + 1, allow_singular=True)
    assert distance.item() == pytest.approx(8, abs=1e-5)


def test_frechet_distance_of_gaussians_with_commuting_covariances():
    # Diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2, here on points with these moments.
    corners = torch.tensor([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)]).double()
    unit = corners * math.sqrt(3 / 4)  # the unbiased variance of four such points is 1
    first = unit * torch.tensor([2.0, 3.0]) + torch.tensor([1.0, 0.0])
    second = unit * torch.tensor([5.0, 1.0]) + torch.tensor([0.0, 2.0])
    assert frechet_distance(first, second).item() == pytest.approx(1 + 4 + 9 + 4, abs=1e-9)


def test_frechet_distance_is_symmetric_and_blind_to_a_rotation():
    a, b = _features(60).double(), 2 * _features(50, seed=2).double() + 1
    rotation = torch.linalg.qr(_features(8, seed=3).double()).Q
    expected = frechet_distance(a, b)
    torch.testing.assert_close(frechet_distance(b, a), expected)
    torch.testing.assert_close(frechet_distance(a @ rotation, b @ rotation), expected)


def test_polynomial_mmd_by_hand():
    # One feature: kernel (x y + 1)^3. Within {0, 1}: 1; within {2, 3}: 343; across: 1, 1, 27, 64.
    mmd = polynomial_mmd(torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]]))
    assert mmd.item() == pytest.approx(1 + 343 - 2 * 93 / 4)


def test_polynomial_mmd_is_unbiased():
    draws = torch.stack(
        [polynomial_mmd(_features(6, seed=2 * i), _features(9, seed=2 * i + 1)) for i in range(500)]
    )
    standard_error = draws.std() / math.sqrt(len(draws))
    assert abs(draws.mean()) < 3 * standard_error
    assert (draws < 0).any()


def test_polynomial_mmd_needs_pairs():
    with pytest.raises(ValueError, match="at least 2 volumes in each set, not 1 and 5"):
        polynomial_mmd(_features(1), _features(5))


def test_kernel_distance_is_about_zero_for_one_distribution_and_not_for_two():
    real, same, other = _features(400), _features(300, seed=2), _features(300, seed=3) + 1
    options = {"num_subsets": 20, "subset_size": 100}
    near = kernel_distance(real, same, generator=_generator(), **options)
    far = kernel_distance(real, other, generator=_generator(), **options)
    assert abs(near.mean) < 3 * near.std
    assert far.mean > 5 * far.std
    assert far.mean == pytest.approx(polynomial_mmd(real, other).item(), rel=0.1)


def test_kernel_distance_of_whole_sets_does_not_vary():
    real, generated = _features(20), _features(20, seed=2)
    distance = kernel_distance(
        real, generated, generator=_generator(), num_subsets=5, subset_size=20
    )
    assert distance.mean == pytest.approx(polynomial_mmd(real, generated).item())
    assert distance.std == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("smallest", "size"), [(2, 2), (3, 2), (4, 2), (9, 4), (2000, 1000), (9000, 1000)]
)
def test_half_subsets_are_neither_single_nor_larger_than_published(smallest, size):
    assert half_subset(smallest) == size


@pytest.mark.parametrize("shift", [0.0, 0.7], ids=["one distribution", "two"])
def test_spread_over_halves_is_about_the_standard_error(shift):
    found = []
    for seed in range(40):
        pair = _features(20, seed=2 * seed), _features(20, seed=2 * seed + 1) + shift
        options = {"num_subsets": 20, "subset_size": half_subset(20)}
        found.append(kernel_distance(*pair, generator=_generator(), **options))
    truth = np.std([distance.mean for distance in found])
    told = np.mean([distance.std for distance in found])
    assert 0.8 < told / truth < 2.2  # wider where the sets are alike


def test_kernel_distance_repeats_with_its_generator():
    first, second = (
        kernel_distance(
            _features(40), _features(40, seed=2), generator=_generator(), subset_size=10
        )
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("subset_size", [1, 21])
def test_kernel_distance_refuses_a_subset_it_cannot_draw(subset_size):
    with pytest.raises(ValueError, match=rf"subset_size \({subset_size}\) .* between 2 and .* 20"):
        kernel_distance(
            _features(20), _features(50), generator=_generator(), subset_size=subset_size
        )


def test_equal_volumes_have_no_diversity():
    volume = torch.rand(1, 12, 24, 23, generator=_generator())
    diversity = ms_ssim_diversity(volume.repeat(3, 1, 1, 1), data_range=1.0)
    assert diversity.item() == pytest.approx(1, abs=1e-5)


def test_noise_is_more_diverse_than_noisy_copies():
    noise = torch.rand(3, 24, 23, 25, generator=_generator())
    copies = noise[:1] + 0.1 * torch.randn(3, 24, 23, 25, generator=_generator())
    different, alike = (ms_ssim_diversity(v, data_range=1.0).item() for v in (noise, copies))
    assert different < 0.2
    assert 0.5 < alike < 1


def test_constant_volumes_leave_the_luminance_term():
    # One scale of SSIM without contrast: (2 a b + c) / (a^2 + b^2 + c), c = (0.01 x 2)^2.
    volumes = torch.tensor([0.2, 0.6, 1.0])[:, None, None, None].expand(3, 11, 12, 13)
    c = (0.01 * 2) ** 2
    pairs = [(0.2, 0.6), (0.2, 1.0), (0.6, 1.0)]
    expected = sum((2 * a * b + c) / (a * a + b * b + c) for a, b in pairs) / 3
    diversity = ms_ssim_diversity(volumes, data_range=2.0).item()
    assert diversity == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("side", [21, 22, 44])
def test_sides_at_the_limits_of_a_scale_are_handled(side):
    volumes = torch.rand(2, side, side, side, generator=_generator())
    assert 0 <= ms_ssim_diversity(volumes, data_range=1.0).item() <= 1


def test_single_slices_are_compared_in_2d():
    ramp = torch.linspace(0, 0.6, 64).expand(1, 48, 64)
    slices = ramp + 0.4 * torch.rand(3, 1, 48, 64, generator=_generator())
    found = ms_ssim_diversity(slices, data_range=1.0)
    # MONAI's five scales take windows of 11 pixels on sides of at least 176; here there are three.
    weights = torch.tensor([0.0448, 0.2856, 0.3001])
    metric = MultiScaleSSIMMetric(
        spatial_dims=2, kernel_size=11, weights=(weights / weights.sum()).tolist(), data_range=1.0
    )
    pairs = [(0, 1), (0, 2), (1, 2)]
    wanted = [metric(slices[i][None], slices[j][None]) for i, j in pairs]
    torch.testing.assert_close(found, torch.cat(wanted).mean())
    assert 0 < found < 1


def test_diversity_needs_pairs_and_room():
    with pytest.raises(ValueError, match="at least 2 volumes, not 1"):
        ms_ssim_diversity(torch.rand(1, 12, 12, 12), data_range=1.0)
    with pytest.raises(ValueError, match="at least 11 voxels along each axis, not 10"):
        ms_ssim_diversity(torch.rand(2, 12, 10, 12), data_range=1.0)
