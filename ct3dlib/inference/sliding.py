"""Volumes larger than a window through a model that is not causal, and blended where windows meet.

Letters: D H W voxels, C latent channels, d h w latent grid, N windows at a time.

Windows lie on the latent grid, so that a window of voxels is whole latents. Each axis has weights
that add up to 1 over the windows which cover a place; a voxel's weight is the product of three.
Where one window is alone its weight is exactly 1, at the borders of the volume too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ct3dlib.config import Shape, SlidingWindowSpec
from ct3dlib.models.autoencoder import VolumeAutoencoder

Blend = Literal["gaussian", "constant", "hann"]

_GAUSSIAN_WIDTH = 8.0  # standard deviations in a window, as MONAI's sliding windows have
_VOXELS: Shape = (1, 1, 1)


@dataclass(frozen=True)
class Axis:
    """Windows along one axis, in latents.

    Args:
        size: Of the whole grid.
        window: Of every window.
        starts: Rising; the last window ends with the grid.
    """

    size: int
    window: int
    starts: tuple[int, ...]

    def borders(self, scale: int) -> list[int]:
        """Return the first places behind the start or end of a window, but for the grid's ends.

        Args:
            scale: Places per latent.
        """
        ends = {end for start in self.starts for end in (start, start + self.window)}
        return [end * scale for end in sorted(ends - {0, self.size})]

    def shares(self, scale: int, mode: Blend) -> Float[Tensor, "windows length"]:
        """Return the weights of each window; at every place they add up to 1.

        Args:
            scale: Places per latent.
            mode: How weights fall towards the ends of a window.
        """
        weights = window_weights(self.window * scale, mode)
        total = torch.zeros(self.size * scale, dtype=torch.float64)
        for start in self.starts:
            total[start * scale : (start + self.window) * scale] += weights
        whole = total.unfold(0, len(weights), scale)[list(self.starts)]
        return (weights / whole).float()


def lay_windows(grid: Sequence[int], window: Sequence[int], *, overlap: float) -> list[Axis]:
    """Return the windows along each axis of a latent grid.

    Args:
        grid: Latents along (d, h, w).
        window: Of a window; along an axis that is shorter, a window takes all of it.
        overlap: Share of a window that the next one covers too; the last one more, as it ends
            with the grid.
    """
    axes = []
    for size, wanted in zip(grid, window, strict=True):
        length = min(size, wanted)
        # 10 latents at an overlap of 0.9 leave 1, not the 0.99... of its floating point value.
        step = max(1, int(length * (1 - overlap) + 1e-9))
        axes.append(Axis(size, length, (*range(0, size - length, step), size - length)))
    return axes


def windows_of(
    model: VolumeAutoencoder, shape: Sequence[int], *, spec: SlidingWindowSpec
) -> list[Axis]:
    """Return the windows of a volume along each axis, in latents.

    Args:
        model: Any that is not causal.
        shape: Voxels along (D, H, W), whole latents.
        spec: Size and overlap.

    Raises:
        ValueError: A window or the volume is not whole latents.
    """
    grid = _in_latents("a volume", shape, model.downsampling)
    window = _in_latents("roi_size", spec.roi_size, model.downsampling)
    return lay_windows(grid, window, overlap=spec.overlap)


def _in_latents(name: str, shape: Sequence[int], downsampling: Shape) -> list[int]:
    """Return a shape in latents.

    Raises:
        ValueError: It is not whole latents.
    """
    if any(n % step for n, step in zip(shape, downsampling, strict=True)):
        raise ValueError(
            f"{name} of {tuple(shape)} voxels is not whole latents; each axis must be a multiple "
            f"of {downsampling}"
        )
    return [n // step for n, step in zip(shape, downsampling, strict=True)]


def window_weights(length: int, mode: Blend) -> Float[Tensor, " length"]:
    """Return the weights along one axis of a window, symmetric and positive to the very ends.

    Gaussian: an eighth of the window is a standard deviation. Hann: sampled between the points at
    which it would be 0.
    """
    places = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    match mode:
        case "constant":
            return torch.ones(length, dtype=torch.float64)
        case "gaussian":
            return torch.exp(-(((places * _GAUSSIAN_WIDTH / length) ** 2) / 2))
        case "hann":
            return torch.cos(places * torch.pi / length) ** 2


@torch.inference_mode()
def encode_sliding(
    model: VolumeAutoencoder, volume: Float[Tensor, "1 D H W"], *, spec: SlidingWindowSpec
) -> Float[Tensor, "1 C d h w"]:
    """Return the latents of a volume before quantization, float32 on the CPU.

    Latents are blended, codes are not: a mean of codes is no code. They are quantized once, after.

    Args:
        model: Not causal, in eval mode; windows move to its device.
        volume: In the range that the model was trained on, whole latents, on any device.
        spec: Windows; of the token format.

    Raises:
        ValueError: A window or the volume is not whole latents.
    """
    axes = windows_of(model, volume.shape[1:], spec=spec)
    scales = (model.downsampling, _VOXELS)
    encode = _at_model(model, model.encode)
    return _blended(encode, volume.unsqueeze(0), axes, scales=scales, spec=spec)


@torch.inference_mode()
def decode_sliding(
    model: VolumeAutoencoder, codes: Float[Tensor, "1 C d h w"], *, spec: SlidingWindowSpec
) -> Float[Tensor, "1 1 D H W"]:
    """Return the decoded volume of codes or latents, float32 on the CPU.

    The decoder never sees more than a window's latents, `roi_size` over the model's downsampling.

    Args:
        model: Not causal, in eval mode; windows move to its device.
        codes: On any device.
        spec: Windows, in voxels.

    Raises:
        ValueError: A window is not whole latents.
    """
    down = model.downsampling
    shape = [n * step for n, step in zip(codes.shape[2:], down, strict=True)]
    axes = windows_of(model, shape, spec=spec)
    return _blended(_at_model(model, model.decode), codes, axes, scales=(_VOXELS, down), spec=spec)


def _at_model(
    model: VolumeAutoencoder, apply: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Return a pass of the model that takes from any device and gives float32 on the CPU."""
    device = next(model.parameters()).device
    return lambda windows: apply(windows.to(device)).float().cpu()


def _blended(
    apply: Callable[[Tensor], Tensor],
    values: Float[Tensor, "1 C D H W"],
    axes: Sequence[Axis],
    *,
    scales: tuple[Shape, Shape],
    spec: SlidingWindowSpec,
) -> Float[Tensor, "1 E D2 H2 W2"]:
    """Return what a model makes of all windows, blended.

    The last windows are filled up, so that every batch runs through the same kernels; volumes of
    fewer windows than a batch have a batch of their own size.

    Args:
        apply: The model's encoder or decoder; returns values on the CPU.
        values: On any device.
        axes: Windows along each axis.
        scales: Places per latent along each axis, of what goes in and of what comes out.
        spec: Batch and blending.
    """
    shares = [axis.shares(n, spec.mode) for axis, n in zip(axes, scales[1], strict=True)]
    cells = list(product(*(range(len(axis.starts)) for axis in axes)))
    batch = min(spec.sw_batch_size, len(cells))
    blended = torch.zeros(0)
    for first in range(0, len(cells), batch):
        chosen = cells[first : first + batch]
        windows = torch.cat([values[_box(axes, cell, scales[0])] for cell in chosen])
        filling = windows[-1:].expand(batch - len(chosen), *windows.shape[1:])
        made = apply(torch.cat((windows, filling)))
        if not blended.numel():
            sizes = (axis.size * n for axis, n in zip(axes, scales[1], strict=True))
            blended = torch.zeros(1, made.shape[1], *sizes)
        for cell, window in zip(chosen, made[: len(chosen)], strict=True):
            d, h, w = (share[k] for share, k in zip(shares, cell, strict=True))
            window *= d[:, None, None] * h[:, None] * w
            blended[_box(axes, cell, scales[1])] += window
    return blended


def _box(axes: Sequence[Axis], cell: Sequence[int], scale: Shape) -> tuple[slice, ...]:
    """Return where a window lies in B C D H W.

    Args:
        axes: Windows along each axis.
        cell: Which of them it is, along each.
        scale: Places per latent along each.
    """
    spans = (
        slice(axis.starts[k] * n, (axis.starts[k] + axis.window) * n)
        for axis, k, n in zip(axes, cell, scale, strict=True)
    )
    return (slice(None), slice(None), *spans)
