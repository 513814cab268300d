"""How good a tokenizer's reconstructions of held-out volumes are."""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct3dlib.cohort.store import StoredVolume
from ct3dlib.config import Domain
from ct3dlib.errors import StoreError
from ct3dlib.inference.contract import check_volumes
from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.inference.reconstruct import reconstruct
from ct3dlib.inference.windows import pass_mode, window_borders
from ct3dlib.metrics.codebook import CodeUsage
from ct3dlib.metrics.reconstruction import (
    Interval,
    has_ssim,
    hu_mae,
    mean_volume,
    psnr_db,
    seam_ratio,
    ssim,
)
from ct3dlib.progress import progress
from ct3dlib.scan.axes import to_model


def evaluate_tokenizer(
    tokenizer: Tokenizer,
    train: Sequence[StoredVolume],
    valid: Sequence[StoredVolume],
    *,
    windows_per_batch: int,
) -> dict[str, Any]:
    """Return the reconstruction metrics of held-out volumes, each the mean over volumes.

    A volume's `mode` says how it went through the model: in the windows of a causal one, "full"
    where it fits one window, or "patch". `seam_ratio` compares the borders of windows with the
    rest, along the worst axis. `code_usage` and `code_perplexity` are None without codes.

    `mean_volume_psnr_db` is what the voxelwise mean of the training volumes reaches: the
    reconstruction of a model that has learnt nothing of the single volume; None where volumes
    differ in shape, and for MR.

    Raises:
        StoreError: No held-out volume is stored.
        CheckpointError: The volumes are of another recipe than the tokenizer's.
    """
    if not valid:
        raise StoreError("no volume of the valid split is stored; see its status tables")
    recipe, quantizer = tokenizer.recipe, tokenizer.model.quantizer
    check_volumes(recipe, (*train, *valid), model=tokenizer.name)
    usage = None if quantizer is None else CodeUsage(quantizer.codebook_size)
    one_shape = len({v.shape for v in (*train, *valid)}) == 1 and bool(train)
    shared = one_shape and recipe.domain != "mr"  # whose volumes have no scale in common
    mean = mean_volume((v.read() for v in train), window=recipe.window) if shared else None
    volumes: list[dict[str, Any]] = []
    for stored in progress(valid, name="reconstruction", unit="volume"):
        original, window = stored.read(), stored.own_window or recipe.window
        out = reconstruct(tokenizer, original, window=window, windows_per_batch=windows_per_batch)
        if usage is not None and out.indices is not None:
            usage.add(out.indices.cpu().numpy())
        baseline = None if mean is None else psnr_db(original, mean, window=window)
        volumes.append(
            {
                "volume": stored.volume,
                "psnr_db": psnr_db(original, out.hu, window=window),
                # Too thin for its window, a volume has no SSIM; the others still count.
                "ssim": ssim(original, out.hu, window=window) if has_ssim(original.shape) else None,
                "hu_mae": _error(original, out.hu, window=window, domain=recipe.domain),
                **_seams(tokenizer, out.hu),
                "mean_volume_psnr_db": baseline,
            }
        )
    return {
        **_means(volumes),
        "code_usage": None if usage is None else usage.usage,
        "code_perplexity": None if usage is None else usage.perplexity,
        "n": len(volumes),
        "volumes": volumes,
    }


def _seams(tokenizer: Tokenizer, hu: NDArray[np.float32]) -> dict[str, Any]:
    """Return how a reconstructed volume, D H W, went through the model, and how far it shows."""
    model, axes, sliding = tokenizer.model, tokenizer.recipe.axes, tokenizer.sliding
    seen = to_model(hu, axes)
    shape = [n + pad for n, pad in zip(seen.shape, model.padding(seen.shape), strict=True)]
    borders = window_borders(model, shape, sliding=sliding)
    ratios = {
        name: seam_ratio(seen, axis=axis, borders=borders[axis]) for axis, name in enumerate(axes)
    }
    return {
        "mode": pass_mode(model, shape, sliding=sliding),
        "seam_ratio": max((r for r in ratios.values() if r is not None), default=None),
        "seam_ratio_by_axis": {name: ratios[name] for name in "dhw"},
    }


def _error(
    original: NDArray[np.generic],
    reconstructed: NDArray[np.generic],
    *,
    window: Interval,
    domain: Domain,
) -> dict[str, float | None]:
    """Return the mean absolute error; by tissue only where values are HU."""
    found = hu_mae(original, reconstructed, window=window)
    return found if domain == "hu" else {**dict.fromkeys(found), "all": found["all"]}


def _means(volumes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the metrics of single volumes, averaged."""
    return {
        "psnr_db": _mean(v["psnr_db"] for v in volumes),
        "ssim": _mean(v["ssim"] for v in volumes),
        "hu_mae": _mean(v["hu_mae"]["all"] for v in volumes),
        "hu_mae_by_tissue": {
            t: _mean(v["hu_mae"][t] for v in volumes) for t in volumes[0]["hu_mae"]
        },
        "seam_ratio": _mean(v["seam_ratio"] for v in volumes),
        "seam_ratio_by_axis": {
            axis: _mean(v["seam_ratio_by_axis"][axis] for v in volumes) for axis in "dhw"
        },
        "mean_volume_psnr_db": _mean(v["mean_volume_psnr_db"] for v in volumes),
    }


def _mean(values: Any) -> float | None:
    """Return the mean of the values that are there."""
    known = [float(v) for v in values if v is not None]
    return statistics.fmean(known) if known else None
