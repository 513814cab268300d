"""Pictures of what a variational model's latents mean, for the log of its training.

Letters: B crops, N volumes shown, H W pixels of a slice.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ct3dlib.models.vae import KLAutoencoder

_POINTS = 5
_LARGEST = 2.0  # deviation of the noise


@torch.no_grad()
def latent_pictures(
    model: KLAutoencoder, volumes: Float[Tensor, "B 1 D H W"], *, seed: int
) -> dict[str, Tensor]:
    """Return middle slices of decoded latents, several side by side.

    `prior` is of latents drawn from the standard normal distribution, `interpolation` leads from
    the first crop to the second (to the prior's mean where there is one), and `noise` is the first
    crop with noise of deviation 0 to 2 on its latents.

    Args:
        model: In eval mode.
        volumes: In the range that it sees.
        seed: Of the prior.

    Returns:
        1 H W each, in the range that the model sees.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = model.sample_prior(1, model.grid(volumes.shape[2:]), generator=generator)
    first, *others = model.encode(volumes[:2]).split(1)
    last = others[0] if others else torch.zeros_like(first)
    shares = torch.linspace(0, 1, _POINTS, device=volumes.device).view(-1, 1, 1, 1, 1)
    noise = torch.randn(first.shape, generator=generator).to(first.device)
    return {
        "prior": _middle(drawn),
        "interpolation": _middle(model.decode(torch.lerp(first, last, shares))),
        "noise": _middle(model.decode(first + _LARGEST * shares * noise)),
    }


def _middle(volumes: Float[Tensor, "N 1 D H W"]) -> Float[Tensor, "1 H NW"]:
    """Return the middle slices of volumes, side by side."""
    return torch.cat(list(volumes[:, :, volumes.shape[2] // 2]), dim=2)
