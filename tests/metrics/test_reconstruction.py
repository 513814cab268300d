import math

import numpy as np
import pytest
import torch
from monai.metrics import SSIMMetric

from ct3dlib.metrics.reconstruction import has_ssim, hu_mae, mean_volume, psnr_db, seam_ratio, ssim

WINDOW = (-1000.0, 1000.0)


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    original = rng.normal(-300, 600, (9, 11, 13)).cumsum(axis=0) / 3
    return original, original + rng.normal(0, 150, original.shape)


def test_psnr_matches_hand_computation():
    original = np.zeros((2, 2, 2))
    assert psnr_db(original, original + 200, window=WINDOW) == pytest.approx(20)
    assert psnr_db(original, original + 20, window=(0.0, 200.0)) == pytest.approx(20)
    assert psnr_db(original, original, window=WINDOW) == math.inf


@pytest.mark.parametrize("sigma", [5.0, 50.0])
def test_psnr_of_noise_is_that_of_its_deviation(sigma: float):
    original = np.random.default_rng(0).uniform(-500, 500, (20, 30, 40))
    noise = np.random.default_rng(1).normal(0, sigma, original.shape)
    in_hu = psnr_db(original, original + noise, window=WINDOW)
    assert in_hu == pytest.approx(20 * math.log10(2000 / sigma), abs=0.1)
    in_range = psnr_db(original / 1000, (original + noise) / 1000, window=(-1.0, 1.0))
    assert in_range == pytest.approx(in_hu)


def test_errors_beyond_the_window_do_not_count():
    original = np.full((2, 2, 2), 2000, np.int16)
    assert psnr_db(original, original + 500, window=WINDOW) == math.inf
    assert hu_mae(original, original - 1100, window=WINDOW)["all"] == pytest.approx(100)


def test_ssim_equals_monai(pair: tuple[np.ndarray, np.ndarray]):
    metric = SSIMMetric(3, data_range=2000, kernel_type="uniform", win_size=7)
    first, second = (
        torch.from_numpy(np.clip(v, *WINDOW))[None, None].to(torch.float32) for v in pair
    )
    expected = float(metric(first, second))
    assert ssim(*pair, window=WINDOW) == pytest.approx(expected, abs=1e-4)
    assert 0.05 < expected < 0.95


def test_ssim_of_a_single_slice_equals_monai_in_2d(pair: tuple[np.ndarray, np.ndarray]):
    metric = SSIMMetric(2, data_range=2000, kernel_type="uniform", win_size=7)
    slices = [volume[3:4] for volume in pair]
    first, second = (torch.from_numpy(np.clip(v, *WINDOW))[None].to(torch.float32) for v in slices)
    found = ssim(slices[0], slices[1], window=WINDOW)
    assert found == pytest.approx(float(metric(first, second)), abs=1e-4)
    assert has_ssim((1, 7, 7))
    assert not has_ssim((1, 6, 7))
    assert not has_ssim((2, 7, 7))


def test_ssim_matches_its_formula_in_one_window():
    rng = np.random.default_rng(1)
    a, b = rng.uniform(-900, 900, (2, 7, 7, 7))
    c1, c2 = 20.0**2, 60.0**2
    covariance = np.mean((a - a.mean()) * (b - b.mean()))
    expected = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
    expected *= (2 * covariance + c2) / (a.var() + b.var() + c2)
    assert ssim(a, b, window=WINDOW) == pytest.approx(expected, rel=1e-9)
    assert ssim(a, a, window=WINDOW) == pytest.approx(1)


def test_ssim_needs_a_whole_window():
    with pytest.raises(ValueError, match=r"at least 7 voxels on each axis: \(7, 6, 7\)"):
        ssim(np.zeros((7, 6, 7)), np.zeros((7, 6, 7)), window=WINDOW)


def test_mae_is_split_by_tissue_of_the_original():
    original = np.array([-1000, -951, -950, -501, -500, 249]).reshape(1, 2, 3)
    reconstructed = original + np.array([0, 10, 20, 40, 100, 300]).reshape(1, 2, 3)
    expected = {"all": 470 / 6, "air": 5.0, "lung": 30.0, "soft": 200.0, "bone": None}
    assert hu_mae(original, reconstructed, window=WINDOW) == pytest.approx(expected)


def test_seam_ratio_compares_borders_of_tokens_with_the_rest():
    # Slices 0 | 1 2 | 3 4 | 5 6 for stride 2: steps of 6 across borders, 2 inside tokens.
    levels = np.array([0, 6, 8, 14, 16, 22, 24], np.int16)
    volume = np.broadcast_to(levels[:, None, None], (7, 3, 4))
    for axis in range(3):
        turned = np.moveaxis(volume, 0, axis)
        assert seam_ratio(turned, axis=axis, borders=range(1, 7, 2)) == pytest.approx(3)
        assert seam_ratio(turned, axis=axis, borders=[5, 3, 1, 7, 0]) == pytest.approx(3)
    assert seam_ratio(volume, axis=0, borders=[2, 4, 6]) == pytest.approx(1 / 3)
    ramp = np.broadcast_to(np.arange(17.0)[:, None, None], (17, 3, 4))
    assert seam_ratio(ramp, axis=0, borders=range(1, 17, 8)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("volume", "borders"),
    [
        (np.zeros((9, 2, 2)), [1]),
        (np.arange(8.0).reshape(2, 2, 2), [1]),
        (np.arange(36.0).reshape(9, 2, 2), []),
        (np.arange(36.0).reshape(9, 2, 2), [9]),
        (np.zeros((1, 2, 2)), [1]),
    ],
    ids=["all equal", "border alone", "no border", "border outside", "one slice"],
)
def test_seam_ratio_is_none_where_there_is_nothing_to_compare(
    volume: np.ndarray, borders: list[int]
):
    assert seam_ratio(volume, axis=0, borders=borders) is None


def test_mean_volume_is_the_mean_of_clipped_volumes():
    volumes = [np.full((2, 3, 4), hu, np.int16) for hu in (-1024, 0, 3000)]
    np.testing.assert_array_equal(mean_volume(volumes, window=WINDOW), np.zeros((2, 3, 4)))


def test_mean_volume_needs_volumes_of_one_shape():
    with pytest.raises(
        ValueError, match=r"one shape: \(2, 2, 2\) and \(2, 2, 3\); give the recipe"
    ):
        mean_volume([np.zeros((2, 2, 2)), np.zeros((2, 2, 3))], window=WINDOW)
    with pytest.raises(ValueError, match="at least one volume"):
        mean_volume([], window=WINDOW)


@pytest.mark.parametrize("metric", [psnr_db, ssim, hu_mae])
def test_volumes_of_two_shapes_are_not_compared(metric):
    with pytest.raises(ValueError, match=r"one shape: \(8, 8, 8\) and \(8, 8, 9\)"):
        metric(np.zeros((8, 8, 8)), np.zeros((8, 8, 9)), window=WINDOW)
