"""What lies in each patch of a volume: regions, and whether it is scan at all.

Letters: B volumes, D H W voxels, N patches (patch (z h + y) w + x of a grid d h w), P voxels of a
patch, R regions.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from ct3dlib.config.base import Shape

NUM_REGIONS = 20
NOT_KNOWN = 255
# Voxels counted at once: as 8-byte numbers they still lie in a processor's cache.
_AT_ONCE = 2**20


def padded(volumes: Shaped[Tensor, "B C D H W"], patch: Shape) -> Shaped[Tensor, "B C _ _ _"]:
    """Return volumes filled with zeros behind their far ends, to whole patches."""
    d, h, w = (-n % p for n, p in zip(volumes.shape[2:], patch, strict=True))
    return F.pad(volumes, (0, w, 0, h, 0, d)) if d or h or w else volumes


def occupancy(regions: UInt8[Tensor, "B 1 D H W"], patch: Shape) -> Float[Tensor, "B N R"]:
    """Return which share of each patch's voxels each region takes, in [0, 1].

    Voxels are counted in one pass, whatever the number of regions. Those of no region (0), not
    known (255) or behind the volume's end belong to a patch, but to no region.

    Args:
        regions: Ids 1-20, 0, or 255.
        patch: Voxels of a patch.

    Raises:
        ValueError: There are other ids; looked for on a CPU alone, a GPU would have to wait.
    """
    voxels = _patches(regions, patch)  # B N P
    size = voxels.shape[2]
    counts = torch.zeros(*voxels.shape[:2], 256, dtype=torch.int32, device=voxels.device)
    one, rows = counts.new_ones(()), max(1, _AT_ONCE // size)
    parts = zip(counts.flatten(0, 1).split(rows), voxels.flatten(0, 1).split(rows), strict=True)
    for found, part in parts:
        found.scatter_add_(1, part.long(), one.expand(part.shape))
    if counts.device.type == "cpu":
        _check(counts)
    return counts[..., 1 : NUM_REGIONS + 1] / size


def present(
    occupied: Float[Tensor, "B N R"], patch: Shape, *, least_voxels: int
) -> Bool[Tensor, "B R"]:
    """Return which regions have at least so many voxels in a volume.

    Args:
        occupied: As of `occupancy`.
        patch: Voxels of a patch, as there.
        least_voxels: At least 1.
    """
    return (occupied.sum(1) * math.prod(patch)).round() >= least_voxels


def valid_tokens(valid: Bool[Tensor, "B 1 D H W"], patch: Shape) -> Bool[Tensor, "B N"]:
    """Return which patches hold any voxel of the scan, not padding alone."""
    return _patches(valid, patch).any(2)


def _patches(volumes: Shaped[Tensor, "B 1 D H W"], patch: Shape) -> Shaped[Tensor, "B N P"]:
    """Return the voxels of each patch, volumes being padded to whole ones."""
    pd, ph, pw = patch
    return rearrange(
        padded(volumes, patch),
        "b 1 (d pd) (h ph) (w pw) -> b (d h w) (pd ph pw)",
        pd=pd, ph=ph, pw=pw,
    )  # fmt: skip


def _check(counts: Tensor) -> None:
    """Refuse ids of no region."""
    unknown = counts[..., NUM_REGIONS + 1 : NOT_KNOWN]
    if unknown.any():
        found = (unknown.sum((0, 1)).nonzero().flatten() + NUM_REGIONS + 1).tolist()
        raise ValueError(
            f"region ids {found}, wanted 1 to {NUM_REGIONS}, 0 for none or {NOT_KNOWN} for not "
            f"known; make the regions of this recipe again"
        )
