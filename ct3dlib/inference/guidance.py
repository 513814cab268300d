"""Logits that lean towards what is asked for, and away from those that know nothing of it.

Letters: B samples, D H W the token grid or a window of it, G digits of an index, K classes of the
largest digit.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ct3dlib.config import SamplesSpec
from ct3dlib.models.maskgit import Conditions, MaskGIT, Source, Text


@dataclass(frozen=True, eq=False)
class Draft:
    """A grid that is being drawn, or the window of it that the model sees.

    Args:
        indices: In the codebook; what stands at masked positions is ignored.
        masked: True where nothing is drawn yet.
        lent: True at indices that were drawn for the window before: guidance contrasts with a
            window that does not know its neighbour.
        start: First token slice of the window.
        conditions: What is asked for.
    """

    indices: Int[Tensor, "B D H W"]
    masked: Bool[Tensor, "B D H W"]
    lent: Bool[Tensor, "B D H W"]
    start: int
    conditions: Conditions


def to_device(conditions: Conditions, device: torch.device) -> Conditions:
    """Return conditions on a device."""
    source, text = conditions.source, conditions.text
    return Conditions(
        conditions.labels.to(device),
        conditions.label_present.to(device),
        source
        and Source(source.indices.to(device), source.labels.to(device), source.present.to(device)),
        text and Text(text.embeddings.to(device), text.present.to(device)),
    )


def in_window(conditions: Conditions, start: int, stop: int) -> Conditions:
    """Return the conditions of the token slices in [start, stop): of the source just these."""
    source = conditions.source
    if source is None:
        return conditions
    return replace(conditions, source=replace(source, indices=source.indices[:, start:stop]))


def guidance_weight(spec: SamplesSpec, step: int) -> float:
    """Return the guidance of a step: a ramp from 0, since guidance harms while most is masked.

    Chang et al., Muse (arXiv:2301.00704, section 2.7).
    """
    return spec.guidance * (step / (spec.steps - 1) if spec.steps > 1 else 1.0)


def guided_logits(
    model: MaskGIT,
    draft: Draft,
    *,
    weight: float,
    wanted: Bool[Tensor, "B D H W"] | None = None,
) -> Float[Tensor, "B D H W G K"]:
    """Return logits that lean away from those without conditions, out of one forward pass.

    Without conditions the model knows neither labels, source and text nor the neighbour of its
    window; indices that the sample was given stay. Classifier-free guidance: Ho and Salimans
    (arXiv:2207.12598, equation 6).

    Args:
        model: In evaluation mode.
        draft: What is there already.
        weight: Of guidance.
        wanted: Positions whose logits are used; None: all.
    """
    start = draft.masked.new_full((len(draft.masked),), draft.start, dtype=torch.int64)
    if weight == 0:
        found = model(draft.indices, draft.masked, draft.conditions, start=start, wanted=wanted)
        return found.float()
    asked, unasked = (
        model(
            draft.indices.repeat(2, 1, 1, 1),
            torch.cat((draft.masked, draft.masked | draft.lent)),
            _with_none(draft.conditions),
            start=start.repeat(2),
            wanted=None if wanted is None else wanted.repeat(2, 1, 1, 1),
        )
        .float()
        .chunk(2)
    )
    return (1 + weight) * asked - weight * unasked


def _with_none(conditions: Conditions) -> Conditions:
    """Return the conditions twice, the second time absent."""
    source, text = conditions.source, conditions.text
    return Conditions(
        conditions.labels.repeat(2, 1),
        _then_absent(conditions.label_present),
        source
        and Source(
            source.indices.repeat(2, 1, 1, 1),
            source.labels.repeat(2, 1),
            _then_absent(source.present),
        ),
        text and Text(text.embeddings.repeat(2, 1), _then_absent(text.present)),
    )


def _then_absent(present: Bool[Tensor, " B"]) -> Bool[Tensor, " two_B"]:
    """Return what is present, then as many that are not."""
    return torch.cat((present, torch.zeros_like(present)))
