"""Whole volumes to latents and back, with no more of them on the model's device than a window.

Letters: D H W voxels, N windows, S slices of a window, C latent channels, d h w latent grid.

A causal model has windows of its own along D, which define its tokens. Any other model has those
of a `SlidingWindowSpec`, or sees a volume whole where there is none.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ct3dlib.config import SlidingWindowSpec
from ct3dlib.inference.sliding import decode_sliding, encode_sliding, windows_of
from ct3dlib.models.autoencoder import VolumeAutoencoder
from ct3dlib.models.tokenizer import CausalTokenizer, join_windows

_LATENTS_PER_CHUNK = 4

Borders = tuple[Sequence[int], Sequence[int], Sequence[int]]


@torch.inference_mode()
def encode_latents(
    model: VolumeAutoencoder,
    volume: Float[Tensor, "1 D H W"],
    *,
    windows_per_batch: int,
    sliding: SlidingWindowSpec | None,
) -> Float[Tensor, "1 C d h w"]:
    """Return the latents of one volume before quantization, float32.

    Args:
        model: In eval mode; windows move to its device.
        volume: In the range that the model was trained on, whole latents, on any device.
        windows_per_batch: Windows of a causal model encoded together.
        sliding: Windows of any other model; None: the volume is encoded whole.

    Raises:
        ValueError: The shape does not fill whole latents, or `windows_per_batch` is not positive.
        FloatingPointError: A latent is not finite.
    """
    match model:
        case CausalTokenizer():
            latents = encode_windows(model, volume, windows_per_batch=windows_per_batch)
        case _ if sliding is None:
            latents = model.encode(volume.unsqueeze(0).to(_device(model))).float()
        case _:
            latents = encode_sliding(model, volume, spec=sliding)
    if not torch.isfinite(latents).all():
        raise FloatingPointError(
            "latents are not finite; check the volume for NaN and the training for divergence"
        )
    return latents


@torch.inference_mode()
def decode_codes(
    model: VolumeAutoencoder,
    codes: Float[Tensor, "1 C d h w"],
    *,
    sliding: SlidingWindowSpec | None,
) -> Float[Tensor, "1 1 D H W"]:
    """Return the decoded volume of codes, or of latents where nothing is quantized; on the CPU.

    Args:
        model: In eval mode.
        codes: On any device.
        sliding: As for `encode_latents`.
    """
    match model:
        case CausalTokenizer():
            chunks = model.decode_stream(
                codes.to(_device(model)), latents_per_chunk=_LATENTS_PER_CHUNK
            )
            return torch.cat([chunk.float().cpu() for chunk in chunks], dim=2)
        case _ if sliding is None:
            return model.decode(codes.to(_device(model))).float().cpu()
        case _:
            return decode_sliding(model, codes, spec=sliding)


@torch.inference_mode()
def encode_windows(
    model: CausalTokenizer, volume: Float[Tensor, "1 D H W"], *, windows_per_batch: int
) -> Float[Tensor, "1 C d h w"]:
    """Return the latents of one volume that define its tokens.

    Every window is encoded on its own, `windows_per_batch` at a time. The last batch is filled up,
    so that each runs through the same kernels: latents depend on the volume, the weights and the
    batch size, which is part of the token format, and not on how the work is spread.

    Args:
        model: In eval mode; windows move to its device.
        volume: In the range that the model was trained on, on any device.
        windows_per_batch: Windows encoded together.

    Raises:
        ValueError: The shape does not fill whole tokens, or `windows_per_batch` is not positive.
    """
    if windows_per_batch < 1:
        raise ValueError(f"windows_per_batch must be positive, not {windows_per_batch}")
    latents = []
    for batch in model.windows(volume.unsqueeze(0))[0].split(windows_per_batch):  # N 1 S H W
        filling = batch[-1:].expand(windows_per_batch - len(batch), *batch.shape[1:])
        full = torch.cat((batch, filling)).to(_device(model))
        latents.append(model.encode_window(full)[: len(batch)].float())
    return join_windows(torch.cat(latents).unsqueeze(0))


def describe_windows(
    model: VolumeAutoencoder, *, windows_per_batch: int, sliding: SlidingWindowSpec | None
) -> dict[str, Any]:
    """Return the windows of a model as JSON: what its tokens depend on beside its weights."""
    match model:
        case CausalTokenizer():
            stride, *_ = model.downsampling
            slices = {"slices": 2 + stride, "stride": stride}
            return {"kind": "causal", **slices, "windows_per_batch": windows_per_batch}
        case _ if sliding is None:
            return {"kind": "whole"}
        case _:
            return {"kind": "sliding", **sliding.model_dump(mode="json")}


def window_borders(
    model: VolumeAutoencoder, shape: Sequence[int], *, sliding: SlidingWindowSpec | None
) -> Borders:
    """Return where windows start or end inside a volume, along each axis.

    Args:
        model: Of any kind.
        shape: Voxels along (D, H, W), whole latents.
        sliding: As for `encode_latents`.

    Returns:
        For each axis the first voxels behind a border.
    """
    match model:
        case CausalTokenizer():
            return range(1, shape[0], model.downsampling[0]), (), ()
        case _ if sliding is None:
            return (), (), ()
        case _:
            axes = windows_of(model, shape, spec=sliding)
            down = model.downsampling
            d, h, w = (axis.borders(step) for axis, step in zip(axes, down, strict=True))
            return d, h, w


def pass_mode(
    model: VolumeAutoencoder, shape: Sequence[int], *, sliding: SlidingWindowSpec | None
) -> Literal["causal", "full", "patch"]:
    """Return how a volume goes through a model: in its own windows, as one window, or in many."""
    if isinstance(model, CausalTokenizer):
        return "causal"
    return "patch" if any(window_borders(model, shape, sliding=sliding)) else "full"


def _device(model: VolumeAutoencoder) -> torch.device:
    """Return the device of a model's weights."""
    return next(model.parameters()).device
