"""Where the class token of a volume encoder looks, on the scan's own grid.

Letters: D H W voxels, d h w patches, N tokens: the class token and all patches.
"""

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ct3dlib.errors import ConfigError
from ct3dlib.inference.embed import Encoder
from ct3dlib.inference.scans import Given, to_seen
from ct3dlib.inference.single import Scan
from ct3dlib.models.volume_encoder import VolumeEncoder
from ct3dlib.nn.vit import ViTBlock
from ct3dlib.scan.axes import from_model
from ct3dlib.scan.normalize import restore
from ct3dlib.scan.volume import Volume


@torch.inference_mode()
def patch_attention(
    model: VolumeEncoder,
    volume: Float[Tensor, "1 1 D H W"],
    *,
    layer: int | None = None,
    rollout: bool = False,
) -> Float[Tensor, "d h w"]:
    """Return how much the class token takes from each patch; all patches add up to 1.

    The mean over the heads of one block's attention; what the class token takes from itself is
    left out and the patches share it. With `rollout` attention is followed from the block down
    through all blocks under it, half of each token staying where it is: the product of
    (A + 1) / 2 (Abnar and Zuidema, arXiv:2005.00928, section 3 and appendix A.1).

    Args:
        model: In eval mode.
        volume: In the spec's range.
        layer: Number of the block, from 1; None: the last one.
        rollout: Follow attention down to the patches.

    Raises:
        ConfigError: There is no such block.
    """
    blocks = cast(list[ViTBlock], list(model.blocks))
    last = len(blocks) if layer is None else layer
    if not 1 <= last <= len(blocks):
        raise ConfigError(f"layer {last}: the model's blocks are 1 to {len(blocks)}")
    tokens = model.embed(volume)
    below = []
    for block in blocks[: last - 1]:
        if rollout:
            below.append(block.attention(tokens)[0].mean(0))
        tokens = block(tokens)
    looks = blocks[last - 1].attention(tokens)[0, :, 0].mean(0)  # N
    # The class token's row alone: a product of whole matrices costs N times as much.
    if rollout:
        looks = torch.cat((looks[:1] + 1, looks[1:])) / 2
    for attention in reversed(below):
        looks = (looks @ attention + looks) / 2
    return (looks[1:] / looks[1:].sum()).unflatten(0, model.spec.grid)


def attention_volume(
    encoder: Encoder, scan: Scan, *, layer: int | None = None, rollout: bool = False
) -> Volume:
    """Return how much the class token takes from where, on the scan's own grid.

    The share of each patch stands at its centre, between them it is interpolated.

    Args:
        encoder: Whose class token it is.
        scan: On the grid of its recipe.
        layer: As `patch_attention`.
        rollout: As `patch_attention`.

    Returns:
        float32, 0 where the encoder saw nothing of the scan.

    Raises:
        ConfigError: There is no such block.
        VolumeError: `WRONG_SHAPE`.
    """
    given = Given("the scan", scan.volume.array, scan.window)
    seen = to_seen(given, encoder.recipe, shape=encoder.shape)
    volume = encoder.see(seen.values[None], seen.window[None])
    looks = patch_attention(encoder.model, volume, layer=layer, rollout=rollout)
    return restore(_on_voxels(encoder, looks, scan.volume), scan.record, fill=0)


def _on_voxels(encoder: Encoder, looks: Float[Tensor, "d h w"], like: Volume) -> Volume:
    """Return the shares of patches interpolated trilinearly onto the recipe's grid."""
    spec = encoder.model.spec
    padded = [g * p for g, p in zip(spec.grid, spec.patch_size, strict=True)]
    fine = F.interpolate(looks[None, None], padded, mode="trilinear", align_corners=False)
    depth, height, width = spec.shape
    voxels = from_model(fine[0, 0, :depth, :height, :width].cpu().numpy(), encoder.recipe.axes)
    return Volume(np.ascontiguousarray(voxels), like.affine, like.domain)
