"""What keeps the latents of a variational autoencoder near a standard normal.

Letters: B batch, C latent channels, d h w latent grid. Both are means over all latents, float32.
"""

from jaxtyping import Float
from torch import Tensor


def kl_divergence(
    mean: Float[Tensor, "B C d h w"], std: Float[Tensor, "B C d h w"], *, free_bits: float = 0.0
) -> Float[Tensor, ""]:
    """Return the mean divergence of each latent's Gaussian from N(0, 1), nats.

    Kingma & Welling, arXiv:1312.6114, appendix B.

    Args:
        mean: Of the posterior.
        std: Of the posterior, positive; where it is fixed, see `latent_energy`.
        free_bits: Nats of each latent that cost nothing (Kingma et al., arXiv:1606.04934, appendix
            C.8, but 0 and not `free_bits` where a latent has less, and of each latent on its own).
    """
    mean, std = mean.float(), std.float()
    nats = (mean.square() + std.square() - 1) / 2 - std.log()
    return (nats - free_bits).clamp_min(0).mean()


def latent_energy(mean: Float[Tensor, "B C d h w"]) -> Float[Tensor, ""]:
    """Return the mean squared latent: twice what the mean adds to `kl_divergence`.

    It stands for the divergence where the deviation is fixed, as it may be at 0.
    """
    return mean.float().square().mean()
