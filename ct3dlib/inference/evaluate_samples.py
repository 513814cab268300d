"""How far a transformer's samples are from held-out volumes, each other and the training."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
from ct3dlib.inference.slice_distances import (
    PlaneFeatures,
    join_planes,
    plane_features,
    slice_distances,
)
from ct3dlib.metrics.distribution import (
    frechet_distance,
    half_subset,
    kernel_distance,
    ms_ssim_diversity,
)
from ct3dlib.metrics.memorisation import copies, nearest_psnr_db
from ct3dlib.metrics.reconstruction import Interval
from ct3dlib.models.slice_network import SliceNetwork
from ct3dlib.scan.geometry import canonical
from ct3dlib.scan.nifti import read_nifti
from ct3dlib.scan.volume import Volume

_HELD_OUT = 200  # volumes that say how near to the training any volume comes
_WINDOWS_PER_BATCH = 8

Seen = tuple[NDArray[np.generic], Interval]  # HU, D H W, and the window that models see


@dataclass(frozen=True, eq=False)
class _Features:
    """Features of a set of volumes: of the tokenizer's encoder, and of slices of each plane."""

    latents: Float[Tensor, "N F"]
    planes: PlaneFeatures | None


def evaluate_samples(
    tokenizer: Tokenizer,
    samples: Sequence[NDArray[np.generic]],
    *,
    train: Sequence[StoredVolume],
    valid: Sequence[StoredVolume],
    network: SliceNetwork | None = None,
) -> dict[str, Any]:
    """Return how far samples are from held-out volumes, from each other and from the training.

    `kid` and `frechet` are distances on the model's own encoder features: mean and deviation of
    each latent channel over the volume; None where there are too few volumes. `slice_fid` and
    `slice_kid` are those on slices of each plane seen by another network. Keys that end in `_real`
    have as many training volumes, at even distances, in the place of the samples: what samples
    that are as good as real ones score. `copies` are samples that are nearer to a training volume
    than any held-out volume is.

    Args:
        tokenizer: The tokenizer that decoded the samples.
        samples: HU, D H W.
        train: Volumes that the transformer was trained on, of the same recipe.
        valid: Held-out volumes of it.
        network: Of others, for the distances of slices; None: these are None.

    Raises:
        StoreError: No held-out or no training volume is stored.
        CheckpointError: The volumes are of another recipe than the tokenizer's, or the network
            refuses their slices.
    """
    for split, volumes in (("valid", valid), ("train", train)):
        if not volumes:
            raise StoreError(f"no volume of the {split} split is stored; see its status tables")
    recipe = tokenizer.recipe
    check_volumes(recipe, (*valid, *train), model=tokenizer.name)
    real = _features(tokenizer, network, _seen(valid, recipe))
    drawn = _features(tokenizer, network, ((sample, recipe.window) for sample in samples))
    base = _features(tokenizer, network, _seen(_spread(train, len(samples)), recipe))
    of_base = _distances(real, base)
    stack = torch.stack([unit_range(sample, recipe.window) for sample in samples])
    return {
        **_distances(real, drawn),
        **{f"{name}_real": value for name, value in of_base.items()},
        "ms_ssim_diversity": float(ms_ssim_diversity(stack, data_range=1.0))
        if len(samples) > 1
        else None,
        **_memorisation(list(stack), train, valid, recipe=recipe),
        "label_balanced_accuracy": {},
        "n": len(samples),
        "n_real": len(valid),
    }


def _seen(volumes: Iterable[StoredVolume], recipe: RecipeSpec) -> Iterable[Seen]:
    """Read volumes one by one."""
    return ((volume.read(), _window(volume, recipe)) for volume in volumes)


def _spread(volumes: Sequence[StoredVolume], count: int) -> list[StoredVolume]:
    """Return some of the volumes, at even distances: neighbours are often of one patient."""
    count = min(count, len(volumes))
    return [volumes[i * len(volumes) // count] for i in range(count)]


def _features(
    tokenizer: Tokenizer, network: SliceNetwork | None, volumes: Iterable[Seen]
) -> _Features:
    """Return what the tokenizer and the network, if there is one, make of volumes."""
    latents: list[Tensor] = []
    planes: list[PlaneFeatures] = []
    for hu, window in volumes:
        latents.append(latent_features(tokenizer, hu, window=window))
        if network is not None:
            planes.append(plane_features(network, unit_range(hu, window)))
    return _Features(torch.stack(latents), join_planes(planes) if planes else None)


def _distances(real: _Features, other: _Features) -> dict[str, Any]:
    """Return the distances of one set of volumes from another."""
    smaller, num_features = min(len(real.latents), len(other.latents)), real.latents.shape[1]
    kernel = frechet = None
    if smaller > 1:
        kernel = kernel_distance(
            real.latents,
            other.latents,
            generator=torch.Generator().manual_seed(0),
            subset_size=half_subset(smaller),
        )
    if smaller > num_features:
        frechet = frechet_distance(real.latents, other.latents).item()
    by_slices: dict[str, Any] = {"slice_fid": None, "slice_kid": None}
    if real.planes is not None and other.planes is not None:
        by_slices = slice_distances(real.planes, other.planes)
    return {
        "kid": None if kernel is None else kernel.mean,
        # Of two volumes there is one subset, which has no spread and is no less uncertain.
        "kid_std": None if kernel is None or smaller == 2 else kernel.std,
        "frechet": frechet,
        **by_slices,
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
