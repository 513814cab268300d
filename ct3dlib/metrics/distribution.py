"""How close a set of generated volumes is to a set of real ones, and how varied it is.

Letters: N, M volumes of two sets, F features of a volume.
"""

from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_MS_SSIM_KERNEL = 11


@dataclass(frozen=True)
class KernelDistance:
    """A kernel inception distance over subsets.

    Args:
        mean: 0 for sets of one distribution, slightly negative by chance.
        std: Spread over the subsets.
    """

    mean: float
    std: float


def kernel_distance(
    real: Float[Tensor, "N F"],
    generated: Float[Tensor, "M F"],
    *,
    generator: torch.Generator,
    num_subsets: int = 100,
    subset_size: int = 1000,
) -> KernelDistance:
    """Return the kernel inception distance (KID), unbiased at any number of volumes.

    Binkowski et al. (arXiv:1801.01401, section 4).

    Args:
        real: One row of features per volume.
        generated: Likewise, of the same features.
        generator: Draws the subsets.
        num_subsets: How many subsets are averaged.
        subset_size: Volumes of each set in a subset, without replacement.

    Raises:
        ValueError: A set is smaller than a subset, or a subset smaller than 2.
    """
    smallest = min(len(real), len(generated))
    if not 2 <= subset_size <= smallest:
        raise ValueError(
            f"subset_size ({subset_size}) must lie between 2 and the size of the smaller set, "
            f"{smallest}"
        )
    distances = torch.stack(
        [
            polynomial_mmd(_subset(real, subset_size, generator), subset)
            for subset in (_subset(generated, subset_size, generator) for _ in range(num_subsets))
        ]
    )
    return KernelDistance(distances.mean().item(), distances.std(correction=0).item())


def half_subset(smallest: int) -> int:
    """Return the size of `kernel_distance`'s subsets whose spread is a standard error.

    Half of the smaller set: without replacement, halves scatter about the whole as the whole does
    about the truth (the delete-half jackknife; Shao and Wu, Ann. Statist. 17, 1989), and up to
    the root of 3 wider where the sets are of one distribution. At least 2, at most the 1000 of
    published values.
    """
    return min(1000, max(2, smallest // 2))


def polynomial_mmd(first: Float[Tensor, "N F"], second: Float[Tensor, "M F"]) -> Float[Tensor, ""]:
    """Return the unbiased squared maximum mean discrepancy for the kernel (x.y / F + 1)^3.

    Gretton et al. (JMLR 13, 2012, equation 3); float64. Negative values are chance: their
    expectation is 0 or above.

    Raises:
        ValueError: A set has fewer than 2 rows.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(
            f"a discrepancy needs at least 2 volumes in each set, not {len(first)} and "
            f"{len(second)}"
        )
    within = [_off_diagonal_mean(_kernel(x, x)) for x in (first.double(), second.double())]
    return within[0] + within[1] - 2 * _kernel(first.double(), second.double()).mean()


def frechet_distance(
    real: Float[Tensor, "N F"], generated: Float[Tensor, "M F"], *, allow_singular: bool = False
) -> Float[Tensor, ""]:
    """Return the squared Fréchet distance of the two sets as Gaussians (FID on these features).

    Heusel et al. (arXiv:1706.08500, equation 6). The trace of the square root of the product of
    the covariances is taken as the nuclear norm of X Y^T, with X and Y the centred sets over the
    root of their sizes: no matrix is squared or rooted, so nothing is lost where one is singular.

    Args:
        real: One row of features per volume.
        generated: Likewise, of the same features.
        allow_singular: Accept sets that are too small for their features; the distance is then
            far from that of large sets.

    Raises:
        ValueError: A set has no more rows than features, and `allow_singular` is not set.
    """
    smallest, num_features = min(len(real), len(generated)), real.shape[1]
    if smallest < 2 or (smallest <= num_features and not allow_singular):
        raise ValueError(
            f"{smallest} volumes cannot fix a covariance of {num_features} features; pass more "
            f"than {max(num_features, 2)} volumes, or use kernel_distance, which has no bias"
        )
    mean_gap = real.double().mean(0) - generated.double().mean(0)
    x, y = _covariance_root(real), _covariance_root(generated)
    overlap = torch.linalg.matrix_norm(x @ y.mT, ord="nuc")
    return mean_gap.square().sum() + x.square().sum() + y.square().sum() - 2 * overlap


def ms_ssim_diversity(volumes: Float[Tensor, "N D H W"], *, data_range: float) -> Float[Tensor, ""]:
    """Return the mean multi-scale SSIM of all pairs: 1 where all volumes are the same.

    Wang et al. (Asilomar 2003), in 3D, and in 2D for single slices. As many of its five scales are
    used as the shortest side holds windows of 11 voxels, with their weights scaled to a sum of 1:
    values compare only at one shape.

    Args:
        volumes: One grid for all.
        data_range: Difference of the largest and the smallest possible value.

    Raises:
        ValueError: There are fewer than 2 volumes, or a side has fewer than 11 voxels.
    """
    if len(volumes) < 2:
        raise ValueError(
            f"diversity compares pairs: it needs at least 2 volumes, not {len(volumes)}"
        )
    # MONAI takes seconds to import, and a report reads this module too.
    from monai.metrics.regression import compute_ms_ssim

    flat = volumes.shape[1] == 1
    images = volumes[:, 0] if flat else volumes
    weights = _scale_weights(min(images.shape[1:]))
    pairs = [
        compute_ms_ssim(
            images[None, None, i],
            images[None, None, j],
            spatial_dims=2 if flat else 3,
            data_range=data_range,
            kernel_size=_MS_SSIM_KERNEL,
            weights=weights,
        )
        for i, j in combinations(range(len(volumes)), 2)
    ]
    return torch.cat(pairs).mean()


def _subset(
    features: Float[Tensor, "N F"], size: int, generator: torch.Generator
) -> Float[Tensor, "size F"]:
    return features[torch.randperm(len(features), generator=generator)[:size]]


def _kernel(first: Float[Tensor, "N F"], second: Float[Tensor, "M F"]) -> Float[Tensor, "N M"]:
    return (first @ second.mT / first.shape[1] + 1) ** 3


def _off_diagonal_mean(kernel: Float[Tensor, "N N"]) -> Float[Tensor, ""]:
    n = len(kernel)
    return (kernel.sum() - kernel.trace()) / (n * (n - 1))


def _covariance_root(features: Float[Tensor, "N F"]) -> Float[Tensor, "R F"]:
    """Return a matrix R whose R^T R is the unbiased covariance, with at most F rows."""
    centred = features.double() - features.double().mean(0)
    _, root = torch.linalg.qr(centred / (len(features) - 1) ** 0.5, mode="r")
    return root


def _scale_weights(shortest_side: int) -> tuple[float, ...]:
    """Return the weights of the scales that fit; MONAI asks for (scales - 1)^2 windows a side."""
    fitting = [
        n
        for n in range(1, len(_MS_SSIM_WEIGHTS) + 1)
        if shortest_side // max(2 ** (n - 1), (n - 1) ** 2) >= _MS_SSIM_KERNEL
    ]
    if not fitting:
        raise ValueError(
            f"multi-scale SSIM needs at least {_MS_SSIM_KERNEL} voxels along each axis, "
            f"not {shortest_side}"
        )
    weights = _MS_SSIM_WEIGHTS[: fitting[-1]]
    return tuple(weight / sum(weights) for weight in weights)
