"""Volumes cut into patches, one for each token, and put together again.

Letters: B volumes, C channels, D H W voxels, N patches in D H W order, P voxels of a patch.
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ct3dlib.config import Shape


def patchify(volumes: Float[Tensor, "B C D H W"], patch: Shape) -> Float[Tensor, "B N P"]:
    """Return the patches of volumes; within one, channels run fastest, then W, H and D.

    Raises:
        ValueError: A side is no multiple of the patch's.
    """
    grid_of(tuple(volumes.shape[2:]), patch)
    pd, ph, pw = patch
    return rearrange(
        volumes, "b c (d pd) (h ph) (w pw) -> b (d h w) (pd ph pw c)", pd=pd, ph=ph, pw=pw
    )


def unpatchify(
    patches: Float[Tensor, "B N P"], patch: Shape, *, grid: Shape
) -> Float[Tensor, "B C D H W"]:
    """Return the volumes that `patchify` cut, on any grid of patches."""
    (pd, ph, pw), (d, h, w) = patch, grid
    return rearrange(
        patches,
        "b (d h w) (pd ph pw c) -> b c (d pd) (h ph) (w pw)",
        pd=pd, ph=ph, pw=pw, d=d, h=h, w=w,
    )  # fmt: skip


def grid_of(shape: tuple[int, ...], patch: Shape) -> Shape:
    """Return how many patches a volume has along (D, H, W).

    Raises:
        ValueError: A side is no multiple of the patch's.
    """
    if any(n % p for n, p in zip(shape, patch, strict=True)):
        raise ValueError(f"a volume of {shape} voxels is no whole number of patches of {patch}")
    d, h, w = (n // p for n, p in zip(shape, patch, strict=True))
    return d, h, w
