"""How much of a CT volume a reconstruction keeps. All functions take HU volumes, D H W.

Errors are measured inside the intensity window that the model was given: both volumes are clipped
to it, and its width is the data range (2000 HU for -1000 to 1000).
"""

import math
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

Interval = tuple[float, float]

SSIM_WINDOW = 7
_SSIM_K1, _SSIM_K2 = 0.01, 0.03

# HU classes of the original: low included, high not. Soft holds fat, water, muscle and blood.
TISSUES: dict[str, Interval] = {
    "air": (-math.inf, -950.0),
    "lung": (-950.0, -500.0),
    "soft": (-500.0, 250.0),
    "bone": (250.0, math.inf),
}


def psnr_db(
    original: NDArray[np.generic], reconstructed: NDArray[np.generic], *, window: Interval
) -> float:
    """Return the peak signal-to-noise ratio, dB; infinite for equal volumes.

    Raises:
        ValueError: The shapes differ.
    """
    first, second = _clipped(original, reconstructed, window)
    error = float(np.mean(np.square(first - second)))
    return math.inf if error == 0 else 10 * math.log10((window[1] - window[0]) ** 2 / error)


def ssim(
    original: NDArray[np.generic], reconstructed: NDArray[np.generic], *, window: Interval
) -> float:
    """Return the structural similarity with a uniform 7 x 7 x 7 window, inner positions only.

    Of a single slice the window is 7 x 7.

    Wang et al., doi:10.1109/TIP.2003.819861, eq. 13, k1 = 0.01, k2 = 0.03, biased variances; equal
    to `monai.metrics.SSIMMetric(3, kernel_type="uniform", win_size=7)`.

    Raises:
        ValueError: The shapes differ, or an axis is shorter than 7.
    """
    first, second = _clipped(original, reconstructed, window)
    if not has_ssim(first.shape):
        raise ValueError(f"SSIM needs at least {SSIM_WINDOW} voxels on each axis: {first.shape}")
    mean_1, mean_2 = _local_mean(first), _local_mean(second)
    variance_1 = _local_mean(first * first) - mean_1**2
    variance_2 = _local_mean(second * second) - mean_2**2
    covariance = _local_mean(first * second) - mean_1 * mean_2
    c1, c2 = ((k * (window[1] - window[0])) ** 2 for k in (_SSIM_K1, _SSIM_K2))
    luminance = (2 * mean_1 * mean_2 + c1) / (mean_1**2 + mean_2**2 + c1)
    contrast = (2 * covariance + c2) / (variance_1 + variance_2 + c2)
    return float(np.mean(luminance * contrast))


def has_ssim(shape: Sequence[int]) -> bool:
    """Return whether a volume, D H W, holds a window of `ssim`."""
    return min(shape[shape[0] == 1 :]) >= SSIM_WINDOW


def hu_mae(
    original: NDArray[np.generic], reconstructed: NDArray[np.generic], *, window: Interval
) -> dict[str, float | None]:
    """Return the mean absolute error, HU: `all`, and by tissue class of the original.

    The classes are those of `TISSUES`; one without a voxel has None.

    Raises:
        ValueError: The shapes differ.
    """
    first, second = _clipped(original, reconstructed, window)
    error = np.abs(first - second)
    tissue_hu = original.astype(np.float64)
    result: dict[str, float | None] = {"all": float(error.mean())}
    for tissue, (low, high) in TISSUES.items():
        inside = error[(tissue_hu >= low) & (tissue_hu < high)]
        result[tissue] = float(inside.mean()) if inside.size else None
    return result


def seam_ratio(
    reconstructed: NDArray[np.generic], *, axis: int, borders: Collection[int]
) -> float | None:
    """Return how much more planes differ across borders of windows than elsewhere.

    The mean absolute difference of the planes on both sides of a border over that of all other
    neighbours: about 1 where no seam is seen. None where there are no borders or nothing else, or
    all others are equal.

    Args:
        reconstructed: HU, D H W.
        axis: Along which windows follow each other.
        borders: The first plane behind each border; those outside the volume do not count.
    """
    planes = np.moveaxis(reconstructed.astype(np.float64), axis, 0)
    steps = np.abs(np.diff(planes, axis=0)).mean(axis=(1, 2))
    at_border = np.isin(np.arange(1, len(planes)), list(borders))
    if at_border.all() or not at_border.any():
        return None
    elsewhere = float(steps[~at_border].mean())
    return float(steps[at_border].mean()) / elsewhere if elsewhere else None


def mean_volume(volumes: Iterable[NDArray[np.generic]], *, window: Interval) -> NDArray[np.float64]:
    """Return the voxelwise mean of volumes clipped to the window: the reconstruction of no model.

    Raises:
        ValueError: There is no volume, or their shapes differ.
    """
    total, count = np.zeros(()), 0
    for volume in volumes:
        if count and volume.shape != total.shape:
            raise ValueError(
                f"a mean needs volumes of one shape: {total.shape} and {volume.shape}; "
                f"give the recipe a shape"
            )
        total, count = total + np.clip(volume.astype(np.float64), *window), count + 1
    if not count:
        raise ValueError("a mean needs at least one volume")
    return total / count


def _clipped(
    original: NDArray[np.generic], reconstructed: NDArray[np.generic], window: Interval
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both volumes as float64, clipped to the window."""
    if original.shape != reconstructed.shape:
        raise ValueError(
            f"volumes to compare need one shape: {original.shape} and {reconstructed.shape}"
        )
    return (
        np.clip(original.astype(np.float64), *window),
        np.clip(reconstructed.astype(np.float64), *window),
    )


def _local_mean(volume: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each whole window inside the volume."""
    margin = slice(SSIM_WINDOW // 2, -(SSIM_WINDOW // 2))
    if len(volume) == 1:
        return uniform_filter(volume[0], SSIM_WINDOW)[margin, margin]
    return uniform_filter(volume, SSIM_WINDOW)[margin, margin, margin]
