"""Stored values as models see them, on their device.

Letters: B volumes, D H W voxels.
"""

from jaxtyping import Float, Shaped
from torch import Tensor


def windowed(
    values: Shaped[Tensor, "B 1 D H W"],
    window: Float[Tensor, "B 2"],
    *,
    onto: tuple[float, float],
) -> Float[Tensor, "B 1 D H W"]:
    """Return volumes clipped to their windows, which become a range.

    A volume travels to its device in two bytes a voxel and becomes float32 there.

    Args:
        values: As stored: HU, or those of another domain.
        window: Values that map to the ends of `onto`, for each volume.
        onto: What models see.
    """
    low, high = window.float().view(-1, 2, 1, 1, 1, 1).unbind(1)
    unit = ((values.float() - low) / (high - low)).clamp(0, 1)
    return onto[0] + unit * (onto[1] - onto[0])
