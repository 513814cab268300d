"""Mixup and CutMix of the volumes of a batch and what is learnt of them.

What is drawn for an item is a function of its `item_seed` alone; whom it is mixed with is the item
before it in its batch. So a training split into other batches mixes other pairs, equally strongly.

Letters: B items, D H W voxels, K targets.
"""

import torch
from jaxtyping import Float, Int
from scipy.special import betaincinv
from torch import Tensor

from ct3dlib.training.draws import uniform

# A stream of draws that no other use of the same seed has.
_MIXING = 111


def mix(
    volumes: Float[Tensor, "B 1 D H W"],
    targets: Float[Tensor, "B K"],
    item_seed: Int[Tensor, " B"],
    *,
    mixup: float,
    cutmix: float,
) -> tuple[Float[Tensor, "B 1 D H W"], Float[Tensor, "B K"]]:
    """Return each item mixed with the one before it (the first with the last).

    Mixup takes a share of every voxel (Zhang et al., arXiv:1710.09412), CutMix every voxel of a
    box (Yun et al., arXiv:1905.04899): in both the target is lambda x own + (1 - lambda) x other,
    with the share of voxels that the box has. With both on, each item takes one, half and half.
    A target mixed with an unknown one (NaN) is unknown. One item alone stays as it is.

    Args:
        volumes: Values.
        targets: 0 or 1, one-hot, smoothed, or any numbers.
        item_seed: The batch's.
        mixup: Alpha of lambda's Beta(alpha, alpha); 0: none.
        cutmix: The same for boxes; with both 0 the tensors given are returned.

    Raises:
        ValueError: An alpha is negative.
    """
    if mixup < 0 or cutmix < 0:
        raise ValueError(f"alphas of mixing must be 0 or more, not {mixup} and {cutmix}")
    if not (mixup or cutmix) or len(volumes) < 2:
        return volumes, targets
    # A few numbers per item, on the CPU: SciPy has the quantiles, and no device rounds otherwise.
    numbers = uniform(item_seed.cpu(), (5,), _MIXING).double()
    boxed = numbers[:, 0] < (0.5 if mixup and cutmix else float(cutmix > 0))
    others = 1 - draw_lambdas(numbers[:, 1], torch.where(boxed, cutmix, mixup).double())
    starts, stops = draw_boxes(others, numbers[:, 2:], shape=tuple(volumes.shape[2:]))
    sizes = torch.tensor(volumes.shape[2:])
    shares = torch.where(boxed, (stops - starts).prod(1) / sizes.prod().double(), others)
    weights = shares.to(volumes)[:, None, None, None, None]  # B 1 1 1 1
    if boxed.any():
        inside = _inside(starts, stops, volumes)
        chosen = boxed.to(volumes.device)[:, None, None, None, None]
        weights = torch.where(chosen, inside, weights)  # B 1 D H W
    return (
        torch.lerp(volumes, volumes.roll(1, 0), weights),
        torch.lerp(targets, targets.roll(1, 0), shares.to(targets)[:, None]),
    )


def draw_lambdas(numbers: Float[Tensor, " B"], alphas: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return quantiles of Beta(alpha, alpha): the share of itself that each item keeps.

    Args:
        numbers: Uniform in [0, 1).
        alphas: Above 0.
    """
    quantiles = betaincinv(alphas.numpy(), alphas.numpy(), numbers.numpy())
    return torch.from_numpy(quantiles)


def draw_boxes(
    shares: Float[Tensor, " B"], numbers: Float[Tensor, "B 3"], *, shape: tuple[int, ...]
) -> tuple[Int[Tensor, "B 3"], Int[Tensor, "B 3"]]:
    """Return the starts and stops of boxes in voxels, of the volume's proportions.

    Each side is share^(1/3) of the volume's, rounded. A box lies within the volume, anywhere with
    equal chance. (That of Yun et al. has its centre anywhere and loses what is outside: with
    Beta(1, 1) and three axes it would paste 24 % of a volume on average instead of 50 %.)

    Args:
        shares: Of the volume, in [0, 1].
        numbers: Uniform in [0, 1).
        shape: (D, H, W), voxels.
    """
    sizes = torch.tensor(shape)
    sides = (shares[:, None] ** (1 / 3) * sizes).round().long()  # B 3
    starts = (numbers * (sizes - sides + 1)).long()
    return starts, starts + sides


def _inside(
    starts: Int[Tensor, "B 3"], stops: Int[Tensor, "B 3"], volumes: Float[Tensor, "B 1 D H W"]
) -> Float[Tensor, "B 1 D H W"]:
    """Return 1 in a box of each volume, 0 elsewhere."""
    sides = []
    for axis, size in enumerate(volumes.shape[2:]):
        places = torch.arange(size)
        side = (places >= starts[:, axis, None]) & (places < stops[:, axis, None])
        sides.append(side.to(volumes))  # B size
    d, h, w = sides
    return d[:, None, :, None, None] * h[:, None, None, :, None] * w[:, None, None, None, :]
