"""Drawing grids of indices from a token transformer, a few positions more at every step.

Chang et al., MaskGIT (arXiv:2202.04200, section 3.2): all masked positions are drawn in parallel,
the most confident ones are kept, the rest is masked again.

Letters: B samples, D H W the token grid, N = D x H x W tokens, G digits of an index, K classes of
the largest digit, L labels, S steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ct3dlib.config import MaskSchedule, SampleOrder, SamplesSpec, Shape
from ct3dlib.inference.halton import halton_order
from ct3dlib.models.maskgit import MaskGIT, Source


@dataclass(frozen=True, eq=False)
class Prompt:
    """What is asked of each sample.

    Args:
        seeds: One per sample. A sample depends on its own seed and not on its neighbours.
        labels: Multi-hot, B L.
        label_present: False draws a sample without labels.
        source: What is translated, of a model that sees a source.
    """

    seeds: Sequence[int]
    labels: Float[Tensor, "B L"]
    label_present: Bool[Tensor, " B"]
    source: Source | None = None

    def __post_init__(self) -> None:
        if not len(self.seeds) == len(self.labels) == len(self.label_present):
            raise ValueError(
                f"a prompt has one seed, one row of labels and one presence per sample, not "
                f"{len(self.seeds)}, {len(self.labels)} and {len(self.label_present)}"
            )


@dataclass(frozen=True, eq=False)
class Known:
    """Indices that a sample must keep: inpainting, or a grid that grows window by window.

    Args:
        indices: B D H W, in the codebook where `where` is True.
        where: True at the positions to keep.
    """

    indices: Int[Tensor, "B D H W"]
    where: Bool[Tensor, "B D H W"]


def sample_seeds(seed: int, num_samples: int) -> list[int]:
    """Return the seed of each sample: a function of (seed, number of the sample) alone."""
    return [
        int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0])
        for number in range(num_samples)
    ]


def masked_share(
    schedule: MaskSchedule, progress: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Return the share of positions that is masked after `progress` in [0, 1].

    It falls from 1 to 0. In training, a uniform `progress` gives the law of the masked share.
    """
    match schedule:
        case "cosine":
            return torch.cos(progress * torch.pi / 2)
        case "arccos":
            return torch.acos(progress) * 2 / torch.pi
        case "linear":
            return 1 - progress
        case "sqrt":
            return torch.sqrt(1 - progress)
        case "log2":
            return torch.log2(2 - progress)
        case "square":
            return 1 - progress**2


def commit_counts(schedule: MaskSchedule, num_tokens: int, *, steps: int) -> list[int]:
    """Return how many positions each step commits.

    The counts add up to `num_tokens` and none is 0, so there are at most `num_tokens` steps.
    """
    steps = min(steps, num_tokens)
    progress = torch.arange(1, steps + 1, dtype=torch.float64) / max(steps, 1)
    # Rounding must not turn the whole number 3 into 2.999...
    planned = (masked_share(schedule, progress) * num_tokens + 1e-9).floor().long().tolist()
    counts, masked = [], num_tokens
    for step, plan in enumerate(planned, start=1):
        left = max(min(plan, masked - 1), steps - step)
        counts.append(masked - left)
        masked = left
    return counts


@torch.no_grad()
def sample_indices(
    model: MaskGIT,
    prompt: Prompt,
    *,
    grid: Shape,
    spec: SamplesSpec,
    known: Known | None = None,
) -> Int[Tensor, "B D H W"]:
    """Draw one grid of indices per entry of the prompt.

    Every step draws an index at each masked position, group by group, and commits some of them. In
    the order `confidence` these have the highest log-probability + choice_temperature x (1 -
    progress) x Gumbel noise; in the others they are those that an order of the sample's own has
    next, whatever was drawn.

    Args:
        model: In evaluation mode; it runs on the device it is on.
        prompt: Seeds and labels, one entry per sample.
        grid: Tokens along (D, H, W).
        spec: Steps, schedule, temperatures and guidance. Number and seed are in the prompt.
        known: Indices to keep.

    Raises:
        ValueError: The model is in training mode, the prompt has another number of labels than
            the model, or the known indices have another shape or codebook.
    """
    _check(model, prompt)
    device = next(model.parameters()).device
    indices, masked = _start(model, (len(prompt.seeds), *grid), known=known)  # B D H W
    counts = _counts_per_sample(masked, spec).to(device)  # B S
    generators = [torch.Generator().manual_seed(seed) for seed in prompt.seeds]
    indices, masked = indices.to(device), masked.to(device)
    priority = _priority(spec.order, grid, generators)
    for step in range(counts.shape[1]):
        noise = _noise(generators, (*grid, len(model.spec.radices) + 1)).to(device)
        logits = _guided_logits(model, prompt, indices, masked=masked, weight=_weight(spec, step))
        classes, confidence = _draw(logits, noise[..., :-1], spec)
        if priority is None:
            gumbel = -torch.log(-torch.log(noise[..., -1]))
            confidence += spec.choice_temperature * (1 - (step + 1) / spec.steps) * gumbel
        else:
            confidence = priority.to(device)
        committed = _most_confident(confidence, masked, counts[:, step])
        drawn = model.digits.join(classes)
        indices = torch.where(committed, drawn, indices)
        masked = masked & ~committed
    return indices


def _check(model: MaskGIT, prompt: Prompt) -> None:
    if model.training:
        raise ValueError(
            "the model is in training mode and its dropout would disturb the samples; "
            "call model.eval() first"
        )
    if prompt.labels.shape[1] != model.spec.num_labels:
        raise ValueError(
            f"the prompt has {prompt.labels.shape[1]} labels per sample, the model was trained "
            f"with {model.spec.num_labels}"
        )


def _start(
    model: MaskGIT, shape: tuple[int, int, int, int], *, known: Known | None
) -> tuple[Int[Tensor, "B D H W"], Bool[Tensor, "B D H W"]]:
    """Return the indices to begin with and where they are masked."""
    if known is None:
        return torch.zeros(shape, dtype=torch.int64), torch.ones(shape, dtype=torch.bool)
    if known.indices.shape != shape or known.where.shape != shape:
        raise ValueError(
            f"the known indices have shape {tuple(known.indices.shape)}, known where "
            f"{tuple(known.where.shape)}; samples and grid want {shape}"
        )
    kept = torch.where(known.where, known.indices, 0)
    if kept.min() < 0 or kept.max() >= model.spec.codebook_size:
        raise ValueError(
            f"the known indices span {int(kept.min())} to {int(kept.max())}; the model's codebook "
            f"ends at {model.spec.codebook_size - 1}"
        )
    return kept, ~known.where


def _counts_per_sample(masked: Bool[Tensor, "B D H W"], spec: SamplesSpec) -> Int[Tensor, "B S"]:
    """Return the positions each sample commits at each step; samples that finish early commit 0."""
    counts = [
        commit_counts(spec.schedule, num_tokens, steps=spec.steps)
        for num_tokens in masked.flatten(1).sum(1).tolist()
    ]
    num_steps = max(map(len, counts), default=0)
    padded = [row + [0] * (num_steps - len(row)) for row in counts]
    return torch.tensor(padded, dtype=torch.int64).view(len(counts), num_steps)


def _priority(
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


def _noise(
    generators: Sequence[torch.Generator], shape: tuple[int, ...]
) -> Float[Tensor, "B *shape"]:
    """Return uniform noise in (0, 1), each sample's from its own generator."""
    noise = torch.stack([torch.rand(shape, generator=g) for g in generators])
    return noise.clamp_min(torch.finfo(noise.dtype).tiny)


def _weight(spec: SamplesSpec, step: int) -> float:
    """Return the guidance of a step: a ramp from 0, since guidance harms while most is masked.

    Chang et al., Muse (arXiv:2301.00704, section 2.7).
    """
    return spec.guidance * (step / (spec.steps - 1) if spec.steps > 1 else 1.0)


def _guided_logits(
    model: MaskGIT,
    prompt: Prompt,
    indices: Int[Tensor, "B D H W"],
    *,
    masked: Bool[Tensor, "B D H W"],
    weight: float,
) -> Float[Tensor, "B D H W G K"]:
    """Return logits that lean away from those without labels and source, out of one forward pass.

    Classifier-free guidance: Ho and Salimans (arXiv:2207.12598, equation 6).
    """
    labels = prompt.labels.to(indices.device)
    present = prompt.label_present.to(indices.device)
    source = None if prompt.source is None else _moved(prompt.source, indices.device)
    if weight == 0:
        return model(indices, masked, labels=labels, label_present=present, source=source).float()
    asked, unasked = (
        model(
            indices.repeat(2, 1, 1, 1),
            masked.repeat(2, 1, 1, 1),
            labels=labels.repeat(2, 1),
            label_present=torch.cat((present, torch.zeros_like(present))),
            source=source and _with_none(source),
        )
        .float()
        .chunk(2)
    )
    return (1 + weight) * asked - weight * unasked


def _moved(source: Source, device: torch.device) -> Source:
    """Return a source on a device."""
    return Source(source.indices.to(device), source.labels.to(device), source.present.to(device))


def _with_none(source: Source) -> Source:
    """Return a source twice, the second time absent."""
    return Source(
        source.indices.repeat(2, 1, 1, 1),
        source.labels.repeat(2, 1),
        torch.cat((source.present, torch.zeros_like(source.present))),
    )


def _draw(
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


def _most_confident(
    confidence: Float[Tensor, "B D H W"],
    masked: Bool[Tensor, "B D H W"],
    counts: Int[Tensor, " B"],
) -> Bool[Tensor, "B D H W"]:
    """Return True at the `counts` most confident masked positions of each sample."""
    eligible = confidence.masked_fill(~masked, -torch.inf).flatten(1)  # B N
    rank = eligible.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < counts[:, None]).view_as(masked)
