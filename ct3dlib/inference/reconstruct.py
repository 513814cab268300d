"""CT volumes in HU through a tokenizer and back.

Letters: D H W voxels, d h w token grid.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from ct3dlib.inference.windows import encode_windows
from ct3dlib.models.tokenizer import CausalTokenizer
from ct3dlib.scan.intensity import apply_window, remove_window

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class EncodedVolume:
    """Token indices of a volume and what was added to it to fill whole tokens.

    Args:
        indices: Token indices, d h w.
        pad: Voxels of the window's low end added behind the last one along (D, H, W).
    """

    indices: Int64[Tensor, "d h w"]
    pad: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class ReconstructedVolume:
    """A volume that went through a tokenizer.

    Args:
        hu: HU within the window, D H W as the original.
        indices: Token indices, d h w.
        pad: As in `EncodedVolume`; already cut off from `hu`.
    """

    hu: NDArray[np.float32]
    indices: Int64[Tensor, "d h w"]
    pad: tuple[int, int, int]


def encode_volume(
    model: CausalTokenizer,
    volume: NDArray[np.generic],
    *,
    window: Interval,
    value_range: Interval,
    windows_per_batch: int,
) -> EncodedVolume:
    """Return the token indices of a volume of any shape.

    Args:
        model: In eval mode.
        volume: HU, D H W.
        window: HU that map to the ends of `value_range`; values outside are clipped.
        value_range: What the model was trained on.
        windows_per_batch: Windows encoded together; part of the token format.

    Raises:
        FloatingPointError: The volume or a latent is not finite.
    """
    pad = padding(volume.shape, model.spec.downsampling)
    filled = np.pad(volume.astype(np.float32), [(0, n) for n in pad], constant_values=window[0])
    values = torch.from_numpy(apply_window(filled, window, onto=value_range)).unsqueeze(0)
    indices = encode_windows(model, values, windows_per_batch=windows_per_batch)
    return EncodedVolume(indices, pad)


def reconstruct(
    model: CausalTokenizer,
    volume: NDArray[np.generic],
    *,
    window: Interval,
    value_range: Interval,
    windows_per_batch: int,
) -> ReconstructedVolume:
    """Return what a volume becomes through its tokens; arguments as `encode_volume`."""
    encoded = encode_volume(
        model,
        volume,
        window=window,
        value_range=value_range,
        windows_per_batch=windows_per_batch,
    )
    hu = decode_indices(
        model, encoded.indices, shape=volume.shape, window=window, value_range=value_range
    )
    return ReconstructedVolume(hu, encoded.indices, encoded.pad)


@torch.inference_mode()
def decode_indices(
    model: CausalTokenizer,
    indices: Int64[Tensor, "d h w"],
    *,
    shape: tuple[int, ...],
    window: Interval,
    value_range: Interval,
) -> NDArray[np.float32]:
    """Return the HU volume of token indices.

    Args:
        model: In eval mode; the indices move to its device.
        indices: Token indices.
        shape: Voxels along (D, H, W) to keep, from the first on.
        window: HU at the ends of `value_range`, to which the decoded values are clamped.
        value_range: What the model was trained on.

    Raises:
        ValueError: An index is outside the codebook, or `shape` has more voxels than the indices
            decode to.
    """
    device = next(model.parameters()).device
    values = model.decode_indices(indices.unsqueeze(0).to(device))[0, 0].float()
    if len(shape) != 3 or any(n > have for n, have in zip(shape, values.shape, strict=True)):
        raise ValueError(
            f"{tuple(indices.shape)} tokens decode to {tuple(values.shape)}, not {shape}"
        )
    depth, height, width = shape
    kept = values[:depth, :height, :width].cpu().numpy()
    return remove_window(kept, window, onto=value_range)


def padding(shape: tuple[int, ...], downsampling: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return how many voxels fill a volume up to 1 + n * downsampling slices, n > 0, and multiples.

    Raises:
        ValueError: The volume does not have three axes.
    """
    if len(shape) != 3:
        raise ValueError(f"a volume has 3 axes (D, H, W), not {len(shape)}")
    slices = max(shape[0], 1 + downsampling[0])
    return (
        slices - shape[0] + (1 - slices) % downsampling[0],
        -shape[1] % downsampling[1],
        -shape[2] % downsampling[2],
    )
