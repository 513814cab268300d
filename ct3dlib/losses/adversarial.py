"""The game of a generator and a discriminator that judges patches by logits, real ones high.

Letters: B batch, D H W voxels. Logits have any shape; a loss is a mean over all of them, float32.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Kind = Literal["non_saturating", "hinge", "least_squares"]

_LECAM_DECAY = 0.999
_SMALLEST_NORM = 1e-4


def generator_loss(fake_logits: Float[Tensor, "*shape"], kind: Kind) -> Float[Tensor, ""]:
    """Return how little the reconstructions pass for real.

    Args:
        fake_logits: Of reconstructions.
        kind: non_saturating: -log sigmoid (Goodfellow et al., arXiv:1406.2661, section 3); hinge
            (Lim & Ye, arXiv:1705.02894); least_squares, real ones wanted at 1 (Mao et al.,
            arXiv:1611.04076, eq. 9, without its factor 1/2).
    """
    fake = fake_logits.float()
    match kind:
        case "non_saturating":
            return F.softplus(-fake).mean()
        case "hinge":
            return -fake.mean()
        case "least_squares":
            return (fake - 1).square().mean()


def discriminator_loss(
    real_logits: Float[Tensor, "*real"], fake_logits: Float[Tensor, "*fake"], kind: Kind
) -> Float[Tensor, ""]:
    """Return how badly real crops and reconstructions are told apart.

    The sum of both sides; of least squares the mean, with reconstructions wanted at 0.

    Args:
        real_logits: Of real crops.
        fake_logits: Of reconstructions, through which no gradient should reach the generator.
        kind: See `generator_loss`.
    """
    real, fake = real_logits.float(), fake_logits.float()
    match kind:
        case "non_saturating":
            return F.softplus(-real).mean() + F.softplus(fake).mean()
        case "hinge":
            return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        case "least_squares":
            return ((real - 1).square().mean() + fake.square().mean()) / 2


def feature_matching(
    real_features: Sequence[Tensor], fake_features: Sequence[Tensor]
) -> Float[Tensor, ""]:
    """Return the mean absolute error of a discriminator's features, averaged over its layers.

    Wang et al., arXiv:1711.11585, eq. 4. No gradient passes to the real ones.
    """
    pairs = zip(real_features, fake_features, strict=True)
    return torch.stack(
        [F.l1_loss(fake.float(), real.detach().float()) for real, fake in pairs]
    ).mean()


class LeCam(nn.Module):
    """A penalty on logits that leave the moving average of the other side.

    E|D(real) - average of fake|^2 + E|D(fake) - average of real|^2 (Tseng et al., arXiv:2104.03310,
    section 3.2). The averages start at 0, where an untrained discriminator stands, and forget with
    0.999 a call in training mode. They are part of the state, and of the local batch: each rank has
    its own, so a wrapper that copies buffers between ranks copies those of rank 0.
    """

    real: Tensor
    fake: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    def forward(
        self, real_logits: Float[Tensor, "*real"], fake_logits: Float[Tensor, "*fake"]
    ) -> Float[Tensor, ""]:
        """Return the penalty by the averages so far; in training mode, then move them."""
        real, fake = real_logits.float(), fake_logits.float()
        penalty = (real - self.fake).square().mean() + (fake - self.real).square().mean()
        if self.training:
            self.real.lerp_(real.detach().mean(), 1 - _LECAM_DECAY)
            self.fake.lerp_(fake.detach().mean(), 1 - _LECAM_DECAY)
        return penalty


def r1_penalty(
    discriminator: Callable[[Tensor], Tensor], volumes: Float[Tensor, "B 1 D H W"]
) -> Float[Tensor, ""]:
    """Return the mean squared norm of the gradient of the logits by real volumes.

    Mescheder et al., arXiv:1801.04406, eq. 9 without its factor gamma / 2. Of several patches it is
    that of the sum of their logits, over their number, so that it does not grow with the crop.

    Args:
        discriminator: Volumes to logits.
        volumes: Real ones.
    """
    volumes = volumes.detach().requires_grad_()
    logits = discriminator(volumes)
    (gradient,) = torch.autograd.grad(logits.float().sum(), volumes, create_graph=True)
    return gradient.float().square().sum() / logits.numel()


def adaptive_weight(
    loss: Float[Tensor, ""],
    adversarial: Float[Tensor, ""],
    *,
    last_layer: nn.Parameter,
    limit: float,
    average: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Float[Tensor, ""]:
    """Return the weight that gives the adversarial term the gradient of the others.

    |gradient of loss| / (|gradient of adversarial| + 1e-4), at most `limit` (Esser et al.,
    arXiv:2012.09841, eq. 7). A number without gradient; both graphs are kept.

    Args:
        loss: Of the other terms.
        adversarial: `generator_loss`, not weighted.
        last_layer: Weights whose gradients are compared.
        limit: Largest weight.
        average: Mean of a gradient over the ranks, so that all of them weigh the same.
    """
    wanted, found = (
        average(torch.autograd.grad(term, last_layer, retain_graph=True)[0].float()).norm()
        for term in (loss, adversarial)
    )
    return (wanted / (found + _SMALLEST_NORM)).clamp(max=limit)
