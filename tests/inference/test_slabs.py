"""Grids longer than a model's slabs, drawn window by window, with every condition at once."""

from dataclasses import replace

import pytest
import torch

from ct3dlib.config import MaskGITNetworkSpec, SamplesSpec, SlabSpec
from ct3dlib.inference.guidance import Draft, guided_logits
from ct3dlib.inference.sampler import Known, Prompt, sample_indices, sample_seeds, slab_windows
from ct3dlib.models.maskgit import Conditions, Digits, MaskGIT, Source, Text

SLAB = SlabSpec(size=4, context=1)
SPEC = MaskGITNetworkSpec(
    hidden_size=12,
    num_layers=1,
    num_heads=2,
    dropout=0.0,
    radices=(8, 8),
    num_labels=2,
    source=True,
    text_size=5,
    slab=SLAB,
)
DIGITS = Digits((8, 8))
GRID = (9, 2, 3)
WINDOWS = [(0, 4), (3, 7), (5, 9)]


class Oracle(MaskGIT):
    """Know every grid, whatever is asked, and remember what was shown, and where."""

    def __init__(self, target: torch.Tensor) -> None:
        super().__init__(SPEC)
        self.logits = 100.0 * torch.nn.functional.one_hot(DIGITS.split(target), 8).float()
        self.shown: list[torch.Tensor] = []
        self.starts: list[int] = []
        self.eval()

    def forward(self, indices, masked, conditions, *, start=None, wanted=None):
        (first,) = start.unique().tolist()
        depth = indices.shape[1]
        if conditions.source is not None:
            assert conditions.source.indices.shape == indices.shape
        self.shown.append(torch.where(masked, -1, indices))
        self.starts.append(first)
        return self.logits[first : first + depth].expand(len(indices), -1, -1, -1, -1, -1)


def _conditions(num_samples: int = 2) -> Conditions:
    torch.manual_seed(1)
    present = torch.ones(num_samples, dtype=torch.bool)
    source = Source(
        torch.randint(0, 64, (num_samples, *GRID)), torch.eye(2)[present.long()], present
    )
    text = Text(torch.randn(num_samples, 5), present)
    return Conditions(torch.eye(2)[0].repeat(num_samples, 1), present, source, text)


def _prompt(num_samples: int = 2) -> Prompt:
    return Prompt(sample_seeds(0, num_samples), _conditions(num_samples))


def _awake(**changes: object) -> MaskGIT:
    torch.manual_seed(0)
    model = MaskGIT(SPEC.model_copy(update=changes)).eval()
    if model.spec.conditioning == "adaln":
        for block in model.blocks:
            torch.nn.init.normal_(block.modulation.weight, std=0.5)
    return model


@pytest.mark.parametrize(
    ("depth", "size", "context", "windows"),
    [
        (3, 4, 1, [(0, 3)]),
        (4, 4, 1, [(0, 4)]),
        (5, 4, 1, [(0, 4), (1, 5)]),
        (7, 4, 1, [(0, 4), (3, 7)]),
        (9, 4, 1, WINDOWS),
        (8, 4, 0, [(0, 4), (4, 8)]),
        (6, 4, 3, [(0, 4), (1, 5), (2, 6)]),
    ],
)
def test_windows_by_hand(depth, size, context, windows):
    assert slab_windows(depth, SlabSpec(size=size, context=context)) == windows


def test_windows_cover_any_grid_and_begin_with_what_is_drawn():
    for size in range(1, 7):
        for context in range(size):
            for depth in range(size, 30):
                windows = slab_windows(depth, SlabSpec(size=size, context=context))
                assert windows[0][0] == 0
                assert windows[-1][1] == depth
                ends = [stop for _, stop in windows]
                for (start, stop), before in zip(windows[1:], ends, strict=False):
                    assert stop - start == size
                    assert start <= before - context
                    assert stop > before


def test_without_slabs_any_grid_is_one_window():
    assert slab_windows(1000, None) == [(0, 1000)]


@pytest.mark.parametrize("order", ["confidence", "random", "halton"])
@pytest.mark.parametrize("schedule", ["cosine", "arccos", "linear", "sqrt", "log2", "square"])
def test_a_model_that_knows_the_target_gives_it_over_all_slabs(schedule, order):
    torch.manual_seed(0)
    target = torch.randint(0, 64, GRID)
    model = Oracle(target)
    spec = SamplesSpec(steps=5, schedule=schedule, order=order, guidance=1.0)
    drawn = sample_indices(model, _prompt(), grid=GRID, spec=spec)
    assert torch.equal(drawn, target.expand(2, *GRID))
    assert model.starts == [start for start, _ in WINDOWS for _ in range(5)]
    assert max(shown.shape[1] for shown in model.shown) == SLAB.size
    # A window begins with what it shares with the one before, and nothing else.
    for number, shared in enumerate((0, 1, 2)):
        first = model.shown[5 * number]
        start = WINDOWS[number][0]
        wanted = target[start : start + 4].clone()
        wanted[shared:] = -1
        assert torch.equal(first[0], wanted)


@pytest.mark.parametrize("guidance", [0.0, 2.0])
@pytest.mark.parametrize("order", ["confidence", "random", "halton"])
@pytest.mark.parametrize("schedule", ["cosine", "arccos", "linear", "sqrt", "log2", "square"])
def test_known_indices_never_change_over_slabs(schedule, order, guidance):
    model, prompt = _awake(), _prompt(3)
    known = Known(torch.randint(0, 64, (3, *GRID)), torch.rand(3, *GRID) < 0.4)
    known.where[1] = True
    known.where[2, :6] = True  # the first window has nothing to draw
    spec = SamplesSpec(steps=3, schedule=schedule, order=order, guidance=guidance)
    drawn = sample_indices(model, prompt, grid=GRID, spec=spec, known=known)
    assert torch.equal(drawn[known.where], known.indices[known.where])
    free = ~known.where
    assert not torch.equal(drawn[free], known.indices[free])


@pytest.mark.parametrize("order", ["confidence", "random", "halton"])
def test_a_sample_of_slabs_does_not_depend_on_its_batch(order):
    # The others know more, so they take fewer steps of some windows.
    model, prompt = _awake(), _prompt(3)
    known = Known(torch.randint(0, 64, (3, *GRID)), torch.zeros(3, *GRID, dtype=torch.bool))
    known.where[1, :4] = True
    known.where[2, 1:7, :, :2] = True
    spec = SamplesSpec(steps=9, order=order, guidance=1.0)
    together = sample_indices(model, prompt, grid=GRID, spec=spec, known=known)
    for i in range(3):
        one = slice(i, i + 1)
        every = prompt.conditions
        source = Source(*(value[one] for value in vars(every.source).values()))
        text = Text(*(value[one] for value in vars(every.text).values()))
        asked = Conditions(every.labels[one], every.label_present[one], source, text)
        part = Known(known.indices[one], known.where[one])
        alone = sample_indices(
            model, Prompt(prompt.seeds[one], asked), grid=GRID, spec=spec, known=part
        )
        assert torch.equal(alone[0], together[i])


def test_a_grid_that_is_one_slab_is_drawn_as_without_slabs():
    grid = (4, 2, 3)
    prompt = _prompt()
    source = replace(prompt.conditions.source, indices=torch.zeros(2, *grid, dtype=torch.int64))
    prompt = Prompt(prompt.seeds, replace(prompt.conditions, source=source))
    spec = SamplesSpec(steps=4, guidance=1.0)
    slabs, whole = (
        sample_indices(_awake(**changes), prompt, grid=grid, spec=spec)
        for changes in ({}, {"slab": None})
    )
    assert torch.equal(slabs, whole)


def _draft() -> Draft:
    """Return a second window: a slice lent, one position that the user gave, the rest masked."""
    torch.manual_seed(2)
    shape = (2, 4, 2, 3)
    lent = torch.zeros(shape, dtype=torch.bool)
    lent[:, 0] = True
    lent[:, 0, 0, 0] = False
    masked = ~lent
    masked[:, 0, 0, 0] = False
    conditions = _conditions()
    source = replace(conditions.source, indices=conditions.source.indices[:, 3:7])
    return Draft(
        indices=torch.randint(0, 64, shape),
        masked=masked,
        lent=lent,
        start=3,
        conditions=replace(conditions, source=source),
    )


@pytest.mark.parametrize("conditioning", ["adaln", "in_context"])
@torch.no_grad()
def test_one_pass_is_two_with_every_condition_at_once(conditioning):
    model, draft = _awake(conditioning=conditioning), _draft()
    start, none = torch.tensor([3, 3]), torch.zeros(2, dtype=torch.bool)
    asked = model(draft.indices, draft.masked, draft.conditions, start=start)
    nothing = Conditions(torch.zeros(2, 2), none)
    unasked = model(draft.indices, draft.masked | draft.lent, nothing, start=start)
    assert not torch.allclose(asked, unasked, atol=1e-3)
    guided = guided_logits(model, draft, weight=1.5)
    torch.testing.assert_close(guided, 2.5 * asked - 1.5 * unasked, atol=1e-5, rtol=1e-5)
    assert torch.equal(guided_logits(model, draft, weight=0.0), asked)


@torch.no_grad()
def test_guidance_contrasts_with_a_window_that_knows_no_neighbour():
    model, draft = _awake(), _draft()
    calls = []
    with model.register_forward_hook(lambda _module, args, output: calls.append(output)):
        guided_logits(model, draft, weight=1.0)
        other = torch.where(draft.lent, 63 - draft.indices, draft.indices)
        guided_logits(model, replace(draft, indices=other), weight=1.0)
        user = draft.indices.clone()
        user[:, 0, 0, 0] = 63 - user[:, 0, 0, 0]
        guided_logits(model, replace(draft, indices=user), weight=1.0)
    (asked, unasked), (asked_2, unasked_2), (_, unasked_3) = (call.chunk(2) for call in calls)
    assert not torch.allclose(asked, asked_2, atol=1e-3)
    assert torch.equal(unasked, unasked_2)
    assert not torch.allclose(unasked, unasked_3, atol=1e-3)  # what the user gave stays


def test_a_source_of_another_grid_and_a_text_of_another_length_are_refused():
    spec = SamplesSpec(steps=2)
    with pytest.raises(ValueError, match=r"source has \(9, 2, 3\) tokens, the samples have \(5, 2"):
        sample_indices(_awake(), _prompt(), grid=(5, 2, 3), spec=spec)
    prompt = _prompt()
    text = Text(torch.zeros(2, 4), torch.ones(2, dtype=torch.bool))
    prompt = Prompt(prompt.seeds, replace(prompt.conditions, text=text))
    with pytest.raises(ValueError, match="have 4 numbers, this model was trained with 5"):
        sample_indices(_awake(), prompt, grid=GRID, spec=spec)
