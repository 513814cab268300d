"""CT volumes in HU through an autoencoder and back.

Letters: D H W voxels, C latent channels, d h w latent grid.

Volumes are D H W as stored on both sides. Here alone they are turned into the order of axes, the
range and the whole latents that the model sees, and back; latents and indices stay as it sees them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.inference.windows import decode_codes, encode_latents
from ct3dlib.scan.axes import from_model, to_model
from ct3dlib.scan.intensity import apply_window, remove_window

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class EncodedVolume:
    """Token indices of a volume and what was added to it to fill whole tokens.

    Args:
        indices: Token indices, d h w.
        pad: Voxels of the window's low end added behind the last one along the model's axes.
    """

    indices: Int64[Tensor, "d h w"]
    pad: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class ReconstructedVolume:
    """A volume that went through an autoencoder.

    Args:
        hu: HU within the window, D H W as the original.
        indices: Token indices, d h w; None where the model makes none.
    """

    hu: NDArray[np.float32]
    indices: Int64[Tensor, "d h w"] | None


@torch.inference_mode()
def encode_to_latents(
    tokenizer: Tokenizer,
    volume: NDArray[np.generic],
    *,
    window: Interval,
    windows_per_batch: int,
) -> Float[Tensor, "C d h w"]:
    """Return the latents of a volume of any shape before quantization, float32.

    Args:
        tokenizer: Of any kind.
        volume: HU, D H W.
        window: HU that map to the ends of the recipe's range; values outside are clipped.
        windows_per_batch: Windows of a causal model encoded together.

    Raises:
        FloatingPointError: The volume or a latent is not finite.
    """
    values, _ = _seen(tokenizer, volume, window)
    return encode_latents(
        tokenizer.model, values, windows_per_batch=windows_per_batch, sliding=tokenizer.sliding
    )[0]


@torch.inference_mode()
def encode_volume(
    tokenizer: Tokenizer,
    volume: NDArray[np.generic],
    *,
    window: Interval,
    windows_per_batch: int,
) -> EncodedVolume:
    """Return the token indices of a volume of any shape; arguments as `encode_to_latents`.

    Raises:
        CheckpointError: The model makes no tokens.
        FloatingPointError: The volume or a latent is not finite.
    """
    quantizer = tokenizer.quantizer
    values, pad = _seen(tokenizer, volume, window)
    latents = encode_latents(
        tokenizer.model, values, windows_per_batch=windows_per_batch, sliding=tokenizer.sliding
    )
    return EncodedVolume(quantizer(latents.to(_device(tokenizer))).indices[0], pad)


@torch.inference_mode()
def reconstruct(
    tokenizer: Tokenizer,
    volume: NDArray[np.generic],
    *,
    window: Interval,
    windows_per_batch: int,
) -> ReconstructedVolume:
    """Return what a volume becomes through its latents; arguments as `encode_to_latents`.

    A variational model's latents are the mean, so the result is the same every time.
    """
    latents = encode_to_latents(
        tokenizer, volume, window=window, windows_per_batch=windows_per_batch
    )
    codes, indices = _quantized(tokenizer, latents)
    hu = _decode(tokenizer, codes, shape=volume.shape, window=window)
    return ReconstructedVolume(hu, indices)


@torch.inference_mode()
def decode_latents(
    tokenizer: Tokenizer,
    latents: Float[Tensor, "C d h w"],
    *,
    shape: tuple[int, ...],
    window: Interval,
) -> NDArray[np.float32]:
    """Return the HU volume of latents, which are quantized first where the model has a quantizer.

    Args:
        tokenizer: The one that made the latents.
        latents: On any device.
        shape: Voxels along (D, H, W) to keep, from the first on.
        window: HU at the ends of the recipe's range, to which the decoded values are clamped.

    Raises:
        FloatingPointError: A latent to be quantized is not finite.
        ValueError: `shape` has more voxels than the latents decode to.
    """
    codes, _ = _quantized(tokenizer, latents)
    return _decode(tokenizer, codes, shape=shape, window=window)


@torch.inference_mode()
def decode_indices(
    tokenizer: Tokenizer,
    indices: Int64[Tensor, "d h w"],
    *,
    shape: tuple[int, ...],
    window: Interval,
) -> NDArray[np.float32]:
    """Return the HU volume of token indices; arguments as `decode_latents`.

    Raises:
        CheckpointError: The model makes no tokens.
        ValueError: An index is outside the codebook, or `shape` has more voxels than the indices
            decode to.
    """
    codes = tokenizer.quantizer.indices_to_codes(indices.unsqueeze(0).to(_device(tokenizer)))
    return _decode(tokenizer, codes, shape=shape, window=window)


def _seen(
    tokenizer: Tokenizer, volume: NDArray[np.generic], window: Interval
) -> tuple[Float[Tensor, "1 D H W"], tuple[int, int, int]]:
    """Return a volume as the model sees it, and what fills its whole latents."""
    recipe = tokenizer.recipe
    seen = to_model(volume.astype(np.float32), recipe.axes)
    pad = tokenizer.model.padding(seen.shape)
    filled = np.pad(seen, [(0, n) for n in pad], constant_values=window[0])
    return torch.from_numpy(apply_window(filled, window, onto=recipe.range)).unsqueeze(0), pad


def _quantized(
    tokenizer: Tokenizer, latents: Float[Tensor, "C d h w"]
) -> tuple[Float[Tensor, "1 C d h w"], Int64[Tensor, "d h w"] | None]:
    """Return codes and indices of latents; these themselves where the model has no quantizer."""
    batch, quantizer = latents.unsqueeze(0).to(_device(tokenizer)), tokenizer.model.quantizer
    if quantizer is None:
        return batch, None
    quantized = quantizer(batch)
    return quantized.codes, quantized.indices[0]


def _decode(
    tokenizer: Tokenizer,
    codes: Float[Tensor, "1 C d h w"],
    *,
    shape: tuple[int, ...],
    window: Interval,
) -> NDArray[np.float32]:
    """Return the HU volume of codes."""
    recipe = tokenizer.recipe
    values = decode_codes(tokenizer.model, codes, sliding=tokenizer.sliding)[0, 0].numpy()
    stored = from_model(values, recipe.axes)
    if len(shape) != 3 or any(n > have for n, have in zip(shape, stored.shape, strict=True)):
        raise ValueError(
            f"{tuple(codes.shape[2:])} tokens decode to {stored.shape} voxels, not {shape}"
        )
    depth, height, width = shape
    kept = np.ascontiguousarray(stored[:depth, :height, :width])
    return remove_window(kept, window, onto=recipe.range)


def _device(tokenizer: Tokenizer) -> torch.device:
    """Return the device of the model's weights."""
    return next(tokenizer.model.parameters()).device
