"""Where in a scan a sentence is: the similarity of each patch to it, on the scan's own grid.

Letters: D H W voxels, d h w patches, N of them, Q sentences, E the shared width.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from ct3dlib.inference.embed_studies import held_voxels
from ct3dlib.inference.scans import Given, to_seen
from ct3dlib.inference.single import Scan
from ct3dlib.inference.vlm import TrainedVlm
from ct3dlib.scan.axes import from_model, to_model
from ct3dlib.scan.normalize import restore
from ct3dlib.scan.volume import Volume

NOT_SEEN = -1.0  # the least that a cosine can be


def similarity_volumes(
    model: TrainedVlm,
    scan: Scan,
    sentences: Sequence[str],
    *,
    regions: UInt8[np.ndarray, "D H W"] | None = None,
) -> list[Volume]:
    """Return how alike each place of a scan and each sentence are, on the scan's own grid.

    The cosine of a patch's vector and the sentence's stands at the patch's centre; between centres
    it is interpolated linearly. The scan is encoded once.

    Args:
        model: Whose vectors they are.
        scan: On the grid of its recipe.
        sentences: As "Pleural effusion is present.".
        regions: Of the scan, on the grid of the recipe; None: not known.

    Returns:
        float32, one for each sentence, in [-1, 1]; -1 where the model saw nothing of the scan.

    Raises:
        ValueError: There is no sentence, or the regions have another shape than the scan.
        VolumeError: `WRONG_SHAPE`.
    """
    if regions is not None and regions.shape != scan.volume.shape:
        raise ValueError(
            f"the regions have shape {regions.shape}, the scan {scan.volume.shape}; bring them "
            f"onto the grid of the recipe"
        )
    texts = torch.from_numpy(model.embed_sentences(sentences))
    local = _local(model, scan, regions)
    alike = (texts @ local.T).clamp(-1, 1)  # Q N
    return [
        restore(_on_voxels(model, one, scan.volume), scan.record, fill=NOT_SEEN) for one in alike
    ]


def _local(
    model: TrainedVlm, scan: Scan, regions: UInt8[np.ndarray, "D H W"] | None
) -> Float[Tensor, "N E"]:
    """Return the vectors of a scan's patches."""
    axes = model.recipe.axes
    seen = to_seen(
        Given("the scan", scan.volume.array, scan.window), model.recipe, shape=model.shape
    )
    masks = [held_voxels(scan.record), *([] if regions is None else [regions])]
    valid, *known = (
        torch.from_numpy(np.ascontiguousarray(to_model(mask, axes)))[None, None] for mask in masks
    )
    found = model.embed_volumes(
        seen.values[None],
        seen.window[None],
        regions=known[0] if known else None,
        valid=valid,
        want_local=True,
    )
    if found.local is None:
        raise ValueError(f"{model.name} gave no vectors of patches")
    return found.local[0]


def _on_voxels(model: TrainedVlm, alike: Float[Tensor, " N"], like: Volume) -> Volume:
    """Return the similarities of patches interpolated trilinearly onto the recipe's grid."""
    patch = model.model.spec.vision.patch_size
    depth, height, width = model.shape
    grid = [-(-n // p) for n, p in zip(model.shape, patch, strict=True)]
    padded = [g * p for g, p in zip(grid, patch, strict=True)]
    cells = alike.unflatten(0, grid)[None, None]
    fine = F.interpolate(cells, padded, mode="trilinear", align_corners=False)
    voxels = from_model(fine[0, 0, :depth, :height, :width].numpy(), model.recipe.axes)
    return Volume(np.ascontiguousarray(voxels), like.affine, like.domain)
