"""Slices of a CT as MedSAM2 sees them: a window of HU in 256 greys, square."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ct3dlib.regions.label_map import PromptWindow

# HU that become black and white: those of MedSAM2's training data (Ma et al., arXiv:2504.03600).
WINDOWS: dict[PromptWindow, tuple[float, float]] = {
    "lung": (-910.0, 590.0),
    "soft": (-160.0, 240.0),
    "bone": (-500.0, 1300.0),
}


def grey_pictures(
    slices: Sequence[NDArray[np.generic]], window: tuple[float, float], size: int
) -> UInt8[Tensor, "n S S"]:
    """Return slices as grey pictures.

    Sizes are brought to S by Pillow's bicubic filter on 8-bit greys, as the network was trained;
    torch's own is up to 8 greys off.

    Args:
        slices: HU, H W each.
        window: HU of black and of white.
        size: S.
    """
    low, high = window
    pictures = np.empty((len(slices), size, size), np.uint8)
    for picture, plane in zip(pictures, slices, strict=True):
        share = (plane.astype(np.float32) - low) * (255 / (high - low))
        grey = np.clip(share, 0, 255).astype(np.uint8)
        if grey.shape != picture.shape:
            resized = Image.fromarray(grey).resize((size, size), Image.Resampling.BICUBIC)
            grey = np.asarray(resized)
        picture[...] = grey
    return torch.from_numpy(pictures)
