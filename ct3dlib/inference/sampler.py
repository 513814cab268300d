"""Drawing grids of indices from a token transformer, a few positions more at every step.

Chang et al., MaskGIT (arXiv:2202.04200, section 3.2): all masked positions are drawn in parallel,
the most confident ones are kept, the rest is masked again. A model of slabs draws a longer grid
window by window, each with the last slices of the one before.

Letters: B samples, D H W the token grid, S steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ct3dlib.config import MaskSchedule, SamplesSpec, Shape, SlabSpec
from ct3dlib.inference.commit import draw_classes, most_confident, noise, priority
from ct3dlib.inference.guidance import (
    Draft,
    guidance_weight,
    guided_logits,
    in_window,
    to_device,
)
from ct3dlib.models.maskgit import Conditions, MaskGIT


@dataclass(frozen=True, eq=False)
class Prompt:
    """What is asked of each sample.

    Args:
        seeds: One per sample. A sample depends on its own seed and not on its neighbours.
        conditions: Labels, source and text, one of each per sample.
    """

    seeds: Sequence[int]
    conditions: Conditions

    def __post_init__(self) -> None:
        labels, present = self.conditions.labels, self.conditions.label_present
        if not len(self.seeds) == len(labels) == len(present):
            raise ValueError(
                f"a prompt has one seed, one row of labels and one presence per sample, not "
                f"{len(self.seeds)}, {len(labels)} and {len(present)}"
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


def slab_windows(depth: int, slab: SlabSpec | None) -> list[tuple[int, int]]:
    """Return the first token slice and the one after the last of each window, bottom to top.

    Each begins with the last `context` slices of the one before; the last ends with the grid, so
    that it may share more.
    """
    if slab is None or depth <= slab.size:
        return [(0, depth)]
    starts = range(0, depth - slab.context, slab.size - slab.context)
    return [(start, start + slab.size) for start in (min(s, depth - slab.size) for s in starts)]


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
    next, whatever was drawn. A grid longer than the slabs of the model takes these steps in one
    window after the other.

    Args:
        model: In evaluation mode; it runs on the device it is on.
        prompt: Seeds and conditions, one entry per sample.
        grid: Tokens along (D, H, W).
        spec: Steps, schedule, temperatures and guidance. Number and seed are in the prompt.
        known: Indices to keep.

    Raises:
        ValueError: The model is in training mode, the prompt has another number of labels than
            the model, a source of another grid or a text of another length, or the known indices
            have another shape or codebook.
    """
    _check(model, prompt, grid)
    device = next(model.parameters()).device
    indices, masked = _start(model, (len(prompt.seeds), *grid), known=known)  # B D H W
    indices, masked = indices.to(device), masked.to(device)
    given = ~masked
    conditions = to_device(prompt.conditions, device)
    generators = [torch.Generator().manual_seed(seed) for seed in prompt.seeds]
    for start, stop in slab_windows(grid[0], model.spec.slab):
        here = (slice(None), slice(start, stop))
        draft = Draft(
            indices=indices[here],
            masked=masked[here],
            lent=~(masked | given)[here],
            start=start,
            conditions=in_window(conditions, start, stop),
        )
        indices[here] = _filled(model, draft, spec, generators)
        masked[here] = False
    return indices


def _filled(
    model: MaskGIT, draft: Draft, spec: SamplesSpec, generators: Sequence[torch.Generator]
) -> Int[Tensor, "B D H W"]:
    """Return a draft with an index at every position."""
    _, *grid = draft.indices.shape
    device = draft.indices.device
    counts = _counts_per_sample(draft.masked, spec)  # B S
    early = priority(spec.order, (grid[0], grid[1], grid[2]), generators)
    early = None if early is None else early.to(device)
    for step, count in enumerate(counts.unbind(1)):
        shape = (*grid, len(model.spec.radices) + 1)
        drawn = noise(generators, shape, wanted=count > 0).to(device)
        count = count.to(device)
        # Where the order does not look at what is drawn, only its next positions are drawn.
        following = None if early is None else most_confident(early, draft.masked, count)
        weight = guidance_weight(spec, step)
        logits = guided_logits(model, draft, weight=weight, wanted=following)
        # What the model says of classes that a digit lacks is finite: heat alone would draw them.
        logits = logits.masked_fill(~model.digits.possible, -torch.inf)
        classes, confidence = draw_classes(logits, drawn[..., :-1], spec)
        if following is None:
            gumbel = -torch.log(-torch.log(drawn[..., -1]))
            confidence += spec.choice_temperature * (1 - (step + 1) / spec.steps) * gumbel
            following = most_confident(confidence, draft.masked, count)
        draft = replace(
            draft,
            indices=torch.where(following, model.digits.join(classes), draft.indices),
            masked=draft.masked & ~following,
        )
    return draft.indices


def _check(model: MaskGIT, prompt: Prompt, grid: Shape) -> None:
    if model.training:
        raise ValueError(
            "the model is in training mode and its dropout would disturb the samples; "
            "call model.eval() first"
        )
    num_labels = prompt.conditions.labels.shape[1]
    if num_labels != model.spec.num_labels:
        raise ValueError(
            f"the prompt has {num_labels} labels per sample, the model was trained "
            f"with {model.spec.num_labels}"
        )
    source = prompt.conditions.source
    if source is not None and tuple(source.indices.shape[1:]) != grid:
        raise ValueError(
            f"the source has {tuple(source.indices.shape[1:])} tokens, the samples have {grid}; "
            f"draw them on its grid"
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
