"""Entropy and commitment of lookup-free quantization, without a table of all codes per token.

Letters: B batch, C channels = bits, D H W latent grid, N tokens = B*D*H*W.
Entropies are in nats.

The soft assignment of a latent z to the codes c in {-1, +1}^C, softmax(2 * sharpness * z.c), is a
product over bits with p(bit = 1) = sigmoid(4 * sharpness * z). So the entropy of a token is a sum
over bits, and the mean over tokens of the joint of two halves of the bits is one matrix product.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MAX_JOINT_BITS = 10
_SMALLEST = 1e-9


def sample_entropy(latents: Float[Tensor, "B C D H W"], *, sharpness: float) -> Float[Tensor, ""]:
    """Return the mean entropy of the tokens' soft assignments.

    Yu et al., arXiv:2310.05737, eq. 5, first term. Small where every latent is far from 0.

    Args:
        latents: Before quantization.
        sharpness: Inverse temperature of the assignment.
    """
    logits = (4 * sharpness * latents.float()).abs()
    # h(sigmoid(x)) is even in x; with |x| it neither overflows nor cancels.
    return (F.softplus(-logits) + logits * torch.sigmoid(-logits)).sum(dim=1).mean()


def code_probabilities(
    latents: Float[Tensor, "B C D H W"], *, sharpness: float
) -> list[Float[Tensor, " K"]]:
    """Return the probabilities of the codes, averaged over all tokens.

    Exact up to 10 bits, at a cost of N * 2^C multiplications and memory for N * 2^(C/2) numbers.
    Beyond, the bits are split into even groups, each with its own joint of 2^group codes.

    Args:
        latents: Before quantization.
        sharpness: Inverse temperature of the assignment.
    """
    logits = 4 * sharpness * latents.float().movedim(1, -1).flatten(0, -2)  # N C
    groups = -(-logits.shape[1] // MAX_JOINT_BITS)
    return [_mean_joint(group) for group in logits.tensor_split(groups, dim=1)]


def batch_entropy(probabilities: Sequence[Float[Tensor, " K"]]) -> Float[Tensor, ""]:
    """Return the entropy of averaged code probabilities.

    Yu et al., arXiv:2310.05737, eq. 5, second term. Large where the codes are used evenly. With
    several groups of bits it is the sum over groups, an upper bound that is reached where the
    groups are independent.
    """
    entropies = [-(p * p.clamp_min(_SMALLEST).log()).sum() for p in probabilities]
    return torch.stack(entropies).sum()


def commitment(
    latents: Float[Tensor, "B C D H W"], codes: Float[Tensor, "B C D H W"]
) -> Float[Tensor, ""]:
    """Return the mean squared distance of latents to their codes, with no gradient to the codes.

    Van den Oord et al., arXiv:1711.00937, eq. 3, third term.
    """
    return F.mse_loss(latents.float(), codes.detach())


def _mean_joint(logits: Float[Tensor, "N C"]) -> Float[Tensor, " K"]:
    """Return the mean over tokens of the joint of all bits, first bit most significant."""
    first, second = (_joint(half) for half in logits.tensor_split(2, dim=1))
    with torch.autocast(logits.device.type, enabled=False):  # small shares would drown in bfloat16
        return (first.T @ second).flatten() / len(logits)


def _joint(logits: Float[Tensor, "N C"]) -> Float[Tensor, "N K"]:
    """Return each token's joint probabilities of the bits, first bit most significant."""
    ones = torch.sigmoid(logits)
    joint = ones.new_ones(len(ones), 1)
    for one in ones.unbind(dim=1):
        pair = torch.stack((1 - one, one), dim=1)  # N 2
        joint = (joint.unsqueeze(2) * pair.unsqueeze(1)).flatten(1)
    return joint
