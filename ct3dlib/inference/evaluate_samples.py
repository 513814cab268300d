"""How far a transformer's samples are from held-out volumes, each other and the training."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ct3dlib.cohort.store import StoredVolume
from ct3dlib.config import RecipeSpec
from ct3dlib.errors import StoreError
from ct3dlib.inference.contract import check_volumes
from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.inference.reconstruct import encode_to_latents
from ct3dlib.metrics.distribution import (
    frechet_distance,
    kernel_distance,
    ms_ssim_diversity,
)
from ct3dlib.metrics.memorisation import copies, nearest_psnr_db
from ct3dlib.metrics.reconstruction import Interval
from ct3dlib.scan.geometry import canonical
from ct3dlib.scan.nifti import read_nifti
from ct3dlib.scan.volume import Volume

_HELD_OUT = 200  # volumes that say how near to the training any volume comes
_WINDOWS_PER_BATCH = 8


def evaluate_samples(
    tokenizer: Tokenizer,
    samples: Sequence[NDArray[np.generic]],
    *,
    train: Sequence[StoredVolume],
    valid: Sequence[StoredVolume],
) -> dict[str, Any]:
    """Return how far samples are from held-out volumes, from each other and from the training.

    `kid` and `frechet` are distances on the model's own encoder features: mean and deviation of
    each latent channel over the volume; None where there are too few volumes. `copies` are
    samples that are nearer to a training volume than any held-out volume is.

    Args:
        tokenizer: The tokenizer that decoded the samples.
        samples: HU, D H W.
        train: Volumes that the transformer was trained on, of the same recipe.
        valid: Held-out volumes of it.

    Raises:
        StoreError: No held-out or no training volume is stored.
        CheckpointError: The volumes are of another recipe than the tokenizer's.
    """
    for split, volumes in (("valid", valid), ("train", train)):
        if not volumes:
            raise StoreError(f"no volume of the {split} split is stored; see its status tables")
    recipe = tokenizer.recipe
    check_volumes(recipe, (*valid, *train), model=tokenizer.name)
    real = torch.stack(
        [latent_features(tokenizer, v.read(), window=_window(v, recipe)) for v in valid]
    )
    drawn = torch.stack([latent_features(tokenizer, s, window=recipe.window) for s in samples])
    smaller = min(len(real), len(drawn))
    distance = None
    if smaller > 1:
        generator = torch.Generator().manual_seed(0)
        distance = kernel_distance(real, drawn, generator=generator, subset_size=min(1000, smaller))
    stack = torch.stack([unit_range(sample, recipe.window) for sample in samples])
    return {
        "kid": None if distance is None else distance.mean,
        "kid_std": None if distance is None else distance.std,
        "frechet": float(frechet_distance(real, drawn)) if smaller > real.shape[1] else None,
        "ms_ssim_diversity": float(ms_ssim_diversity(stack, data_range=1.0))
        if len(samples) > 1
        else None,
        **_memorisation(list(stack), train, valid, recipe=recipe),
        "label_balanced_accuracy": {},
        "n": len(samples),
        "n_real": len(valid),
    }


def _memorisation(
    samples: Sequence[Float[Tensor, "D H W"]],
    train: Sequence[StoredVolume],
    valid: Sequence[StoredVolume],
    *,
    recipe: RecipeSpec,
) -> dict[str, Any]:
    """Return how near samples and held-out volumes come to the training, and the copies.

    None where the volumes have several shapes.
    """
    names = ("nearest_train_psnr_db", "held_out_nearest_train_psnr_db", "copies")
    if len({v.shape for v in (*train, *valid)} | {tuple(s.shape) for s in samples}) > 1:
        return dict.fromkeys(names)
    held_out = [unit_range(v.read(), _window(v, recipe)) for v in valid[:_HELD_OUT]]
    volumes = (unit_range(v.read(), _window(v, recipe)) for v in train)
    found = nearest_psnr_db([*samples, *held_out], volumes, data_range=1.0)
    of_samples, usual = found[: len(samples)], found[len(samples) :]
    means = statistics.fmean(of_samples), statistics.fmean(usual)
    return dict(zip(names, (*means, copies(of_samples, usual)), strict=True))


def _window(volume: StoredVolume, recipe: RecipeSpec) -> Interval:
    """Return what models see of a volume."""
    return volume.own_window or recipe.window


def unit_range(hu: NDArray[np.generic], window: Interval) -> Float[Tensor, "D H W"]:
    """Return a volume clipped to its window, which becomes [0, 1]."""
    low, high = window
    return (torch.from_numpy(hu.astype(np.float32)).clamp(low, high) - low) / (high - low)


def latent_features(
    tokenizer: Tokenizer, hu: NDArray[np.generic], *, window: Interval
) -> Float[Tensor, " F"]:
    """Return mean and deviation of each latent channel of a volume."""
    latents = encode_to_latents(
        tokenizer, hu, window=window, windows_per_batch=_WINDOWS_PER_BATCH
    ).flatten(1)  # C N
    return torch.cat([latents.mean(1), latents.std(1)]).cpu()


def read_samples(table: Path, files: Sequence[str]) -> list[Volume]:
    """Return the sampled volumes beside a table of samples, HU, canonical axes."""
    return [canonical(read_nifti(table.parent / name).volume) for name in files]
