"""One step of a sample: what is drawn at its masked positions, and which of these are kept.

Letters: B samples, D H W the token grid, N = D x H x W tokens, G digits of an index, K classes of
the largest digit.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ct3dlib.config import SampleOrder, SamplesSpec, Shape
from ct3dlib.inference.halton import halton_order


def priority(
    order: SampleOrder, grid: Shape, generators: Sequence[torch.Generator]
) -> Float[Tensor, "B D H W"] | None:
    """Return how early each position comes, high first; None where that is found out by drawing.

    The order `halton` is moved by a drawn distance along each axis, round its ends.
    """
    num_tokens = math.prod(grid)
    match order:
        case "confidence":
            return None
        case "random":
            ranks = [torch.randperm(num_tokens, generator=g).view(grid) for g in generators]
        case "halton":
            rank = torch.empty(num_tokens, dtype=torch.int64)
            rank[halton_order(grid)] = torch.arange(num_tokens)
            ranks = [_rolled(rank.view(grid), generator) for generator in generators]
    return -torch.stack(ranks).float()


def _rolled(rank: Int[Tensor, "D H W"], generator: torch.Generator) -> Int[Tensor, "D H W"]:
    """Return a grid moved by a drawn number of tokens along each axis."""
    shifts = [int(torch.randint(side, (), generator=generator)) for side in rank.shape]
    return rank.roll(shifts, dims=(0, 1, 2))


def noise(
    generators: Sequence[torch.Generator], shape: tuple[int, ...], *, wanted: Bool[Tensor, " B"]
) -> Float[Tensor, "B *shape"]:
    """Return uniform noise in (0, 1), each sample's from its own generator.

    A sample that wants none, being whole already, gets 1/2 and its generator stays where it is: in
    the next window it goes on as it would alone.
    """
    drawn = torch.stack(
        [
            torch.rand(shape, generator=generator) if wants else torch.full(shape, 0.5)
            for generator, wants in zip(generators, wanted.tolist(), strict=True)
        ]
    )
    return drawn.clamp_min(torch.finfo(drawn.dtype).tiny)


def draw_classes(
    logits: Float[Tensor, "B D H W G K"], noise: Float[Tensor, "B D H W G"], spec: SamplesSpec
) -> tuple[Int[Tensor, "B D H W G"], Float[Tensor, "B D H W"]]:
    """Return a class per digit, by inverting the distribution function, and its log-probability.

    At temperature 0 it is the likeliest, and the log-probability that at temperature 1.
    """
    if spec.temperature == 0:
        likeliest = logits.log_softmax(-1).max(-1)
        return likeliest.indices, likeliest.values.sum(-1)
    if spec.top_k is not None and spec.top_k < logits.shape[-1]:
        smallest = logits.topk(spec.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    log_probabilities = (logits / spec.temperature).log_softmax(-1)
    cumulative = log_probabilities.exp().cumsum(-1)
    # Scaled by the last value, which rounding leaves beside 1; the product may round up to it.
    at = noise.unsqueeze(-1) * cumulative[..., -1:]
    classes = torch.searchsorted(cumulative, at, right=True).clamp_max(logits.shape[-1] - 1)
    return classes.squeeze(-1), log_probabilities.gather(-1, classes).squeeze(-1).sum(-1)


def most_confident(
    confidence: Float[Tensor, "B D H W"],
    masked: Bool[Tensor, "B D H W"],
    counts: Int[Tensor, " B"],
) -> Bool[Tensor, "B D H W"]:
    """Return True at the `counts` most confident masked positions of each sample."""
    eligible = confidence.masked_fill(~masked, -torch.inf).flatten(1)  # B N
    rank = eligible.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < counts[:, None]).view_as(masked)
