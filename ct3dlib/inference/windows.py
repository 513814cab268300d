"""Volumes to token indices, window by window.

Letters: D H W voxels, N windows, S slices of a window, C latent channels, d h w token grid.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ct3dlib.models.tokenizer import CausalTokenizer, join_windows


@torch.inference_mode()
def encode_windows(
    model: CausalTokenizer, volume: Float[Tensor, "1 D H W"], *, windows_per_batch: int
) -> Int64[Tensor, "d h w"]:
    """Return the token indices of one volume.

    Every window is encoded on its own, `windows_per_batch` at a time. The last batch is filled up,
    so that each runs through the same kernels: indices depend on the volume, the weights and the
    batch size, which is part of the token format, and not on how the work is spread.

    Args:
        model: In eval mode; windows move to its device.
        volume: In the range that the model was trained on, on any device.
        windows_per_batch: Windows encoded together.

    Raises:
        ValueError: The shape does not fill whole tokens, or `windows_per_batch` is not positive.
        FloatingPointError: A latent is not finite.
    """
    if windows_per_batch < 1:
        raise ValueError(f"windows_per_batch must be positive, not {windows_per_batch}")
    device = next(model.parameters()).device
    latents = []
    for batch in model.windows(volume.unsqueeze(0))[0].split(windows_per_batch):  # N 1 S H W
        filling = batch[-1:].expand(windows_per_batch - len(batch), *batch.shape[1:])
        full = torch.cat((batch, filling)).to(device)
        latents.append(model.encode_window(full)[: len(batch)])
    return model.quantizer(join_windows(torch.cat(latents).unsqueeze(0))).indices[0]
