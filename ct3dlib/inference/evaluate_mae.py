"""How well a masked autoencoder fills in what it does not see of held-out volumes.

Letters: D H W voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ct3dlib.cohort.store import StoredVolume
from ct3dlib.config import RecipeSpec
from ct3dlib.errors import StoreError
from ct3dlib.inference.contract import check_volumes
from ct3dlib.losses.patches import normalised
from ct3dlib.models.mae import MaskedAutoencoder, Masks
from ct3dlib.nn.intensity import windowed
from ct3dlib.scan.axes import from_model, to_model

_SEED = 0  # of the masks


@dataclass(frozen=True, eq=False)
class Filled:
    """One volume with its masked patches filled in, in the model's range, axes as stored.

    Args:
        original: D H W.
        seen: What the encoder saw; masked patches at the middle of the range.
        filled: Masked patches as predicted.
    """

    original: Float[np.ndarray, "D H W"]
    seen: Float[np.ndarray, "D H W"]
    filled: Float[np.ndarray, "D H W"]


def evaluate_mae(
    model: MaskedAutoencoder, recipe: RecipeSpec, volumes: Sequence[StoredVolume]
) -> dict[str, Any]:
    """Return how far masked patches are from what they are, mean over volumes.

    `masked_mse` is the squared error of the prediction in the `unit` of the loss: shares of the
    range's width, or with `norm_pix` deviations of each patch. `mean_mse` is that of one who knows
    the mean of the visible patches (of normalised ones: 0) alone. `other_patient_mse` is a control
    that must fail: the patches seen are those of another volume. `explained` is the share of
    `mean_mse` that the prediction does away with; None where there is nothing to tell.

    Args:
        model: In eval mode, on its device.
        recipe: Of its contract.
        volumes: Held out.

    Raises:
        StoreError: There is no volume.
        CheckpointError: They are of another recipe.
    """
    if not volumes:
        raise StoreError("no volume of the valid split is stored; see its status tables")
    check_volumes(recipe, volumes, model="the masked autoencoder")
    sums = np.zeros(3)
    for index, volume in enumerate(volumes):
        other = volumes[(index + 1) % len(volumes)]
        sums += _errors(model, _read(model, recipe, volume), _read(model, recipe, other), index)
    masked, mean, control = (sums / len(volumes)).tolist()
    explained = 1 - masked / mean if mean else None
    found = {"masked_mse": masked, "mean_mse": mean, "explained": explained}
    if len(volumes) > 1:
        found["other_patient_mse"] = control
    unit = "deviation of a patch" if model.spec.norm_pix else "width of the range"
    return {**found, "unit": unit, "n": len(volumes)}


@torch.no_grad()
def fill(
    model: MaskedAutoencoder, recipe: RecipeSpec, volume: StoredVolume, *, index: int = 0
) -> Filled:
    """Return a stored volume as it is, as it was seen and as it was filled in.

    Args:
        model: On its device.
        recipe: Of its contract.
        volume: Of it.
        index: Of the masks.
    """
    given = _read(model, recipe, volume)
    masks = _masks(model, index)
    shown = (given, model.hidden(given, masks), model.filled(given, masks))
    return Filled(*(from_model(x[0, 0].float().cpu().numpy(), recipe.axes) for x in shown))


@torch.no_grad()
def _errors(
    model: MaskedAutoencoder,
    volume: Float[Tensor, "1 1 D H W"],
    other: Float[Tensor, "1 1 D H W"],
    index: int,
) -> np.ndarray:
    """Return the three errors of a volume."""
    masks = _masks(model, index)
    target = model.masked_patches(volume, masks)
    if model.spec.norm_pix:
        target, guess, unit = normalised(target), torch.zeros_like(target), 1.0
    else:
        low, high = model.spec.range
        visible = model.encoder.patches(volume).take_along_dim(masks.visible[..., None], dim=1)
        guess, unit = torch.full_like(target, float(visible.mean())), (high - low) ** 2
    found = (model(volume, masks), guess, model(other, masks))
    return np.array([float((x - target).square().mean()) / unit for x in found])


def _masks(model: MaskedAutoencoder, index: int) -> Masks:
    """Return the masks of the n-th volume, always the same."""
    generator = torch.Generator().manual_seed(_SEED + index)
    noise = torch.rand(1, model.spec.network.num_patches, generator=generator)
    return model.draw_masks(noise.to(next(model.parameters()).device))


def _read(
    model: MaskedAutoencoder, recipe: RecipeSpec, volume: StoredVolume
) -> Float[Tensor, "1 1 D H W"]:
    """Return a stored volume as the model sees it, on its device."""
    values = torch.from_numpy(np.ascontiguousarray(to_model(volume.read(), recipe.axes)))
    window = torch.tensor([volume.own_window or recipe.window])
    device = next(model.parameters()).device
    return windowed(values[None, None].to(device), window.to(device), onto=recipe.range)
