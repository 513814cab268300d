"""How good a tokenizer's reconstructions and a transformer's samples are on held-out volumes."""

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
from ct3dlib.errors import StoreError
from ct3dlib.inference.contract import check_volumes
from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.inference.reconstruct import padding, reconstruct
from ct3dlib.metrics.codebook import CodeUsage
from ct3dlib.metrics.distribution import kernel_distance, ms_ssim_diversity
from ct3dlib.metrics.reconstruction import hu_mae, mean_volume, psnr_db, seam_ratio, ssim
from ct3dlib.progress import progress
from ct3dlib.scan.geometry import canonical
from ct3dlib.scan.intensity import apply_window
from ct3dlib.scan.nifti import read_nifti
from ct3dlib.scan.volume import Volume


def evaluate_tokenizer(
    tokenizer: Tokenizer,
    train: Sequence[StoredVolume],
    valid: Sequence[StoredVolume],
    *,
    windows_per_batch: int,
) -> dict[str, Any]:
    """Return the reconstruction metrics of held-out volumes, each the mean over volumes.

    `mean_volume_psnr_db` is what the voxelwise mean of the training volumes reaches: the
    reconstruction of a model that has learnt nothing of the single volume; None where volumes
    differ in shape, and for MR.

    Raises:
        StoreError: No held-out volume is stored.
        CheckpointError: The volumes are of another recipe than the tokenizer's.
    """
    if not valid:
        raise StoreError("no volume of the valid split is stored; see its status tables")
    recipe = tokenizer.recipe
    check_volumes(recipe, (*train, *valid), model=tokenizer.name)
    model = tokenizer.model
    usage = CodeUsage(model.quantizer.codebook_size)
    one_shape = len({v.shape for v in (*train, *valid)}) == 1 and bool(train)
    shared = one_shape and recipe.domain != "mr"  # whose volumes have no scale in common
    mean = mean_volume((v.read() for v in train), window=recipe.window) if shared else None
    volumes: list[dict[str, Any]] = []
    for stored in progress(valid, name="reconstruction", unit="volume"):
        original = stored.read()
        window = stored.own_window or recipe.window
        out = reconstruct(
            model,
            original,
            window=window,
            value_range=recipe.range,
            windows_per_batch=windows_per_batch,
        )
        usage.add(out.indices.cpu().numpy())
        volumes.append(
            {
                "volume": stored.volume,
                "psnr_db": psnr_db(original, out.hu, window=window),
                "ssim": ssim(original, out.hu, window=window),
                "hu_mae": hu_mae(original, out.hu, window=window),
                "seam_ratio": seam_ratio(out.hu, stride=model.spec.downsampling[0]),
                "mean_volume_psnr_db": None
                if mean is None
                else psnr_db(original, mean, window=window),
            }
        )
    tissues = volumes[0]["hu_mae"]
    return {
        "psnr_db": _mean(v["psnr_db"] for v in volumes),
        "ssim": _mean(v["ssim"] for v in volumes),
        "hu_mae": _mean(v["hu_mae"]["all"] for v in volumes),
        "hu_mae_by_tissue": {t: _mean(v["hu_mae"][t] for v in volumes) for t in tissues},
        "seam_ratio": _mean(v["seam_ratio"] for v in volumes),
        "mean_volume_psnr_db": _mean(v["mean_volume_psnr_db"] for v in volumes),
        "code_usage": usage.usage,
        "code_perplexity": usage.perplexity,
        "n": len(volumes),
        "volumes": volumes,
    }


def evaluate_samples(
    tokenizer: Tokenizer, samples: Sequence[NDArray[np.generic]], valid: Sequence[StoredVolume]
) -> dict[str, Any]:
    """Return how far samples are from held-out volumes, and from each other.

    `kid` is the kernel distance on the tokenizer's own encoder features: mean and deviation of
    each latent channel over the volume; None where there is only one volume of a kind.

    Args:
        tokenizer: The tokenizer that decoded the samples.
        samples: HU, D H W.
        valid: Held-out volumes of the same recipe.

    Raises:
        StoreError: No held-out volume is stored.
        CheckpointError: The volumes are of another recipe than the tokenizer's.
    """
    if not valid:
        raise StoreError("no volume of the valid split is stored; see its status tables")
    recipe = tokenizer.recipe
    check_volumes(recipe, valid, model=tokenizer.name)
    real = torch.stack([latent_features(tokenizer, v.read()) for v in valid])
    drawn = torch.stack([latent_features(tokenizer, s) for s in samples])
    smaller = min(len(real), len(drawn))
    distance = None
    if smaller > 1:
        generator = torch.Generator().manual_seed(0)
        distance = kernel_distance(real, drawn, generator=generator, subset_size=min(1000, smaller))
    stack = torch.from_numpy(np.stack(samples).astype(np.float32)).clamp(*recipe.window)
    width = recipe.window[1] - recipe.window[0]
    return {
        "kid": None if distance is None else distance.mean,
        "kid_std": None if distance is None else distance.std,
        "ms_ssim_diversity": float(ms_ssim_diversity(stack - recipe.window[0], data_range=width))
        if len(samples) > 1
        else None,
        "label_balanced_accuracy": {},
        "n": len(samples),
        "n_real": len(valid),
    }


@torch.inference_mode()
def latent_features(tokenizer: Tokenizer, hu: NDArray[np.generic]) -> Float[Tensor, " F"]:
    """Return mean and deviation of each latent channel of a volume."""
    recipe = tokenizer.recipe
    model = tokenizer.model
    pad = padding(hu.shape, model.spec.downsampling)
    filled = np.pad(hu, [(0, n) for n in pad], constant_values=recipe.window[0])
    values = torch.from_numpy(apply_window(filled, recipe.window, onto=recipe.range))
    device = next(model.parameters()).device
    latents = model.encode_windowed(values[None, None].to(device))[0].flatten(1)  # C N
    return torch.cat([latents.mean(1), latents.std(1)]).cpu()


def read_samples(table: Path, files: Sequence[str]) -> list[Volume]:
    """Return the sampled volumes beside a table of samples, HU, canonical axes."""
    return [canonical(read_nifti(table.parent / name).volume) for name in files]


def _mean(values: Any) -> float | None:
    """Return the mean of the values that are there."""
    known = [float(v) for v in values if v is not None]
    return statistics.fmean(known) if known else None
