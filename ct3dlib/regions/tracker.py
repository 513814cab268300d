"""Objects followed from slice to slice by MedSAM2, all objects and both directions in one batch.

A track is an object in one direction. MedSAM2 forgets what it saw upwards before it looks
downwards, so tracks are independent once the prompt's slice is known, and k slices from their
prompts all of them remember equally much. Each slice is encoded once, whoever passes it.

Letters: n slices, T tracks, S S pixels of a picture, h w pixels of the features (S/16).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ct3dlib.regions.medsam2_features import Features, Precision, autocast, encode, kept_dtype
from ct3dlib.regions.medsam2_network import NO_OBJECT, Found, Levels, Network

NUM_MEMORIES = 7  # of the prompt's slice and of the 6 before the slice that is looked at
NUM_POINTERS = 16  # likewise; the reference has fewer in a volume of fewer slices

__all__ = ["Features", "Precision", "Prompt", "Track", "encode", "track"]


@dataclass(frozen=True, eq=False)
class Prompt:
    """Where an object is in one slice, by a box or a mask, and which slices it may reach.

    Args:
        key: The slice.
        start: First slice that it may reach.
        stop: One after the last.
        box: x0, y0, x1, y1, pixels of the network's pictures.
        mask: On the network's pictures.

    Raises:
        ValueError: The key lies outside, there is not one of box and mask, or it is empty.
    """

    key: int
    start: int
    stop: int
    box: tuple[float, float, float, float] | None = None
    mask: Bool[Tensor, "S S"] | None = None

    def __post_init__(self) -> None:
        """Check that there is something to follow."""
        if not self.start <= self.key < self.stop:
            raise ValueError(f"key {self.key} lies outside the slices {self.start}:{self.stop}")
        if (self.box is None) == (self.mask is None):
            raise ValueError("a prompt is a box or a mask, exactly one of them")
        if self.box and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise ValueError(f"box (x0, y0, x1, y1) {self.box} is empty; drop the prompt")
        if self.mask is not None and not self.mask.any():
            raise ValueError(f"the mask on slice {self.key} is empty; drop the prompt")


@dataclass(frozen=True, eq=False)
class Track:
    """An object in the slices that it was allowed to reach.

    Args:
        start: First of them.
        stop: One after the last.
        logits: At a quarter of the resolution, above 0 in the object; `NO_OBJECT` where it is not
            or was not looked for any more.
        score: Of each slice, above 0 where the object is; `NO_OBJECT` where it was not looked for.
    """

    start: int
    stop: int
    logits: Float[Tensor, "z S4 S4"]
    score: Float[Tensor, "z"]


class _Canvas:
    """What was found of all objects, in one row for each slice that each may reach."""

    def __init__(self, prompts: Sequence[Prompt], side: int, device: torch.device) -> None:
        self._prompts = prompts
        self._lengths = [prompt.stop - prompt.start for prompt in prompts]
        begins = [0, *accumulate(self._lengths)]
        shifts = [row - prompt.start for row, prompt in zip(begins, prompts, strict=False)]
        self._shifts = torch.tensor(shifts, device=device)
        self._logits = torch.full((begins[-1], side, side), NO_OBJECT, device=device)
        self._score = torch.full((begins[-1],), NO_OBJECT, device=device)

    def put_(self, owners: Tensor, slices: Tensor, found: Found) -> None:
        """Draw what was found of objects, each in a slice."""
        rows = self._shifts[owners] + slices
        self._logits[rows], self._score[rows] = found.logits, found.score

    def tracks(self) -> list[Track]:
        """Return a track for each prompt."""
        parts = zip(
            self._prompts,
            self._logits.split(self._lengths),
            self._score.split(self._lengths),
            strict=True,
        )
        return [Track(p.start, p.stop, logits, score) for p, logits, score in parts]


class _Live:
    """Tracks that go on, a row each, and what they remember.

    Memories and pointers are those of the prompt's slice, then of the slices before, the nearest
    first. Both tracks of an object begin where its prompt is.
    """

    def __init__(self, prompts: Sequence[Prompt], memory: Tensor, pointer: Tensor) -> None:
        def rows(values: list[int]) -> Tensor:
            return torch.tensor(values, device=memory.device)

        count = len(prompts)
        self.owners = rows([*range(count)] * 2)
        self.slices = rows([prompt.key for prompt in prompts] * 2)
        self._signs = rows([1] * count + [-1] * count)
        self._ends = rows([p.stop - 1 for p in prompts] + [p.start for p in prompts])
        self._gone = torch.zeros_like(self.slices)  # slices in a row without the object
        self._step = 0
        self.memories = [memory.repeat(2, 1, 1)]
        self.pointers = [pointer.repeat(2, 1)]

    def advance_(self, patience: int) -> bool:
        """Move the tracks on that neither end here nor have lost their object; false: none."""
        going = (self.slices != self._ends) & (self._gone < patience)
        if not going.all():
            for name in ("owners", "slices", "_signs", "_ends", "_gone"):
                setattr(self, name, getattr(self, name)[going])
            self.memories = [one[going] for one in self.memories]
            self.pointers = [one[going] for one in self.pointers]
        self.slices = self.slices + self._signs
        self._step += 1
        return len(self.slices) > 0

    def ages(self) -> Tensor:
        """Return how far back the pointers lie; 1 is as far as the reference looks at most."""
        slices = [self._step, *range(1, len(self.pointers))]
        return torch.tensor(slices, device=self.slices.device) / (NUM_POINTERS - 1)

    def remember_(self, memory: Tensor, found: Found) -> None:
        """Keep what was seen last, and forget what lies too far back."""
        self._gone = torch.where(found.score > 0, 0, self._gone + 1)
        self.memories = [self.memories[0], memory, *self.memories[1 : NUM_MEMORIES - 1]]
        self.pointers = [self.pointers[0], found.pointer, *self.pointers[1 : NUM_POINTERS - 1]]


@torch.inference_mode()
def track(
    network: Network,
    features: Features,
    prompts: Sequence[Prompt],
    *,
    patience: int | None,
    precision: Precision,
) -> list[Track]:
    """Follow objects up and down from their prompts.

    Args:
        network: MedSAM2.
        features: Of all slices that the prompts may reach.
        prompts: One for each object; their order does not matter.
        patience: A track ends after so many slices in a row without its object; null: it goes on.
        precision: "bf16" runs in bfloat16 and keeps memories so.

    Returns:
        A track for each prompt, both directions in one, on the network's device.

    Raises:
        ValueError: A prompt reaches a slice that was not encoded, its mask is of another size, the
            features are of another precision, or the patience is not positive.
    """
    _check(network, features, prompts, precision)
    if patience is not None and patience < 1:
        raise ValueError(f"patience is {patience} slices, wanted 1 or more, or none")
    if not prompts:
        return []
    canvas = _Canvas(prompts, network.size // 4, features.top.device)
    with autocast(features.top.device, precision):
        _draw_(canvas, network, features, prompts, patience=patience or len(features.slices))
    return canvas.tracks()


def _draw_(
    canvas: _Canvas,
    network: Network,
    features: Features,
    prompts: Sequence[Prompt],
    *,
    patience: int,
) -> None:
    """Find objects in the slices of their prompts, then away from them, slice by slice."""
    keys = torch.tensor([prompt.key for prompt in prompts], device=features.top.device)
    levels = features.at(keys)
    found = _find_prompted(network, levels, prompts)
    memory = network.remember(levels[0], found, prompted=True)
    canvas.put_(torch.arange(len(prompts), device=keys.device), keys, found)
    live = _Live(prompts, memory.to(features.top.dtype), found.pointer)
    while live.advance_(patience):
        coarse, s1, s0 = features.at(live.slices)
        recalled = network.recall(coarse, live.memories, live.pointers, ages=live.ages())
        found = network.find((recalled, s1, s0))
        memory = network.remember(coarse, found, prompted=False)
        canvas.put_(live.owners, live.slices, found)
        live.remember_(memory.to(features.top.dtype), found)


def _find_prompted(network: Network, levels: Levels, prompts: Sequence[Prompt]) -> Found:
    """Find objects in the slices of their prompts, those of boxes together, those of masks too."""
    device = levels[0].device
    boxes = {i: prompt.box for i, prompt in enumerate(prompts) if prompt.box is not None}
    masks = {i: prompt.mask for i, prompt in enumerate(prompts) if prompt.mask is not None}
    parts = []
    if boxes:
        top, s1, s0 = (level[[*boxes]] for level in levels)
        corners = torch.tensor([*boxes.values()], dtype=torch.float32, device=device)
        parts.append(network.find_boxes((top, s1, s0), corners))
    if masks:
        top, s1, s0 = (level[[*masks]] for level in levels)
        given = torch.stack([*masks.values()]).to(device)
        parts.append(network.find_masks((top, s1, s0), given))
    order = torch.tensor([*boxes, *masks], device=device).argsort()
    return Found(*(torch.cat(kind)[order] for kind in zip(*parts, strict=True)))


def _check(
    network: Network, features: Features, prompts: Sequence[Prompt], precision: Precision
) -> None:
    """Refuse prompts that cannot be followed in these features."""
    if features.top.dtype != kept_dtype(precision):
        raise ValueError(
            f"features are {features.top.dtype}, {precision} takes {kept_dtype(precision)}; encode "
            f"the slices with the same precision"
        )
    encoded = set(features.slices.tolist())
    for number, prompt in enumerate(prompts):
        if missing := sorted(set(range(prompt.start, prompt.stop)) - encoded):
            raise ValueError(
                f"prompt {number} reaches slice {missing[0]}, which is not among the "
                f"{len(encoded)} encoded ones; encode it or narrow the prompt's range"
            )
        if prompt.mask is not None and prompt.mask.shape != (network.size, network.size):
            raise ValueError(
                f"prompt {number} has a mask of {tuple(prompt.mask.shape)} pixels, the network "
                f"takes {network.size} x {network.size}; resize it"
            )
