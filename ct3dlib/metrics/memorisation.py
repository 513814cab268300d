"""Whether generated volumes are copies of those that a model was trained on.

Letters: N volumes, D H W voxels.
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d

_LONGEST_SIDE = 48


def nearest_psnr_db(
    volumes: Sequence[Float[Tensor, "D H W"]],
    references: Iterable[Float[Tensor, "D H W"]],
    *,
    data_range: float,
) -> list[float]:
    """Return the PSNR of each volume to the one of the references that is nearest to it, dB.

    All are compared as block means on at most 48 voxels along each axis: a copy with another noise
    or a softer decoder is near, and references are read one by one, once.

    Args:
        volumes: Of one shape.
        references: Of the same shape.
        data_range: Difference of the largest and the smallest possible value.

    Raises:
        ValueError: There is no volume or no reference.
    """
    if not volumes:
        raise ValueError("no volume to find the nearest reference of")
    small = torch.stack([_small(volume) for volume in volumes])  # N D H W
    least = torch.full((len(small),), torch.inf)
    for reference in references:
        error = (small - _small(reference)).square().mean((1, 2, 3))
        least = torch.minimum(least, error)
    if least.isinf().any():
        raise ValueError("no reference to compare volumes with")
    return (10 * torch.log10(data_range**2 / least.clamp_min(1e-10))).tolist()


def copies(found: Sequence[float], held_out: Sequence[float]) -> int:
    """Return how many volumes are nearer to their nearest reference than any held-out one is.

    Args:
        found: Of generated volumes, from `nearest_psnr_db` to those that were trained on.
        held_out: Likewise of volumes that were not trained on.

    Raises:
        ValueError: There is no held-out volume.
    """
    if not held_out:
        raise ValueError("copies are told by held-out volumes; there is none")
    return sum(value > max(held_out) for value in found)


def _small(volume: Float[Tensor, "D H W"]) -> Float[Tensor, "d h w"]:
    """Return the block means of a volume."""
    depth, height, width = (min(side, _LONGEST_SIDE) for side in volume.shape)
    return adaptive_avg_pool3d(volume[None], (depth, height, width))[0]
