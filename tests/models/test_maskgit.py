import math
from dataclasses import replace

import pytest
import torch

from ct3dlib.config import FSQSpec, LFQSpec, MaskGITNetworkSpec, MaskGITSpec
from ct3dlib.models.maskgit import Conditions, Digits, MaskGIT, Source, Text
from ct3dlib.quantizers.fsq import FSQ

SPEC = MaskGITNetworkSpec(
    hidden_size=24, num_layers=2, num_heads=2, dropout=0.0, radices=(8, 8), num_labels=4
)


def _awake(spec: MaskGITNetworkSpec = SPEC) -> MaskGIT:
    """Return a model whose blocks are no identities."""
    torch.manual_seed(0)
    model = MaskGIT(spec).eval()
    for block in model.blocks:
        if spec.conditioning == "adaln":
            torch.nn.init.normal_(block.modulation.weight, std=0.2)
    return model


def _inputs(shape=(2, 2, 3, 4)) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "indices": torch.randint(0, 64, shape),
        "masked": torch.rand(shape) < 0.5,
        "labels": torch.rand(shape[0], 4).round(),
        "label_present": torch.ones(shape[0], dtype=torch.bool),
    }


def _logits(
    model: MaskGIT,
    inputs: dict[str, torch.Tensor],
    start: list[int] | None = None,
    **asked: Source | Text,
) -> torch.Tensor:
    """Return the model's output, with labels from the inputs and more conditions."""
    conditions = Conditions(inputs["labels"], inputs["label_present"], **asked)
    starts = None if start is None else torch.tensor(start)
    return model(inputs["indices"], inputs["masked"], conditions, start=starts)


@pytest.fixture(params=["adaln", "in_context"])
def translator(request: pytest.FixtureRequest) -> MaskGIT:
    return _awake(SPEC.model_copy(update={"source": True, "conditioning": request.param}))


def _source(labels: torch.Tensor, seed: int = 2) -> Source:
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(0, 64, (2, 2, 3, 4), generator=generator)
    return Source(indices, labels, torch.ones(2, dtype=torch.bool))


@torch.no_grad()
def test_tokens_and_label_of_a_source_and_the_wanted_label_all_count(translator):
    model, inputs = translator, _inputs()
    one, other = torch.eye(4)[[0, 0]], torch.eye(4)[[1, 1]]
    before = _logits(model, inputs, source=_source(one))
    assert not torch.allclose(_logits(model, inputs, source=_source(other)), before)
    assert not torch.allclose(_logits(model, inputs, source=_source(one, seed=3)), before)
    wanted = {**inputs, "labels": 1 - inputs["labels"]}
    assert not torch.allclose(_logits(model, wanted, source=_source(one)), before)


@torch.no_grad()
def test_a_source_that_is_absent_is_not_seen(translator):
    model, inputs = translator, _inputs()
    absent = torch.zeros(2, dtype=torch.bool)
    nothing = _logits(model, inputs)
    for seed in (2, 3):
        source = replace(_source(torch.rand(2, 4), seed), present=absent)
        assert torch.equal(_logits(model, inputs, source=source), nothing)
    assert not torch.allclose(_logits(model, inputs, source=_source(torch.zeros(2, 4))), nothing)


@torch.no_grad()
def test_a_token_that_is_added_is_seen_at_its_own_position_most():
    model, inputs = _awake(SPEC.model_copy(update={"source": True})), _inputs()
    inputs["masked"][:] = True
    first = _source(torch.zeros(2, 4))
    changed = first.indices.clone()
    changed[:, 1, 2, 3] = 63 - changed[:, 1, 2, 3]
    gap = _logits(model, inputs, source=replace(first, indices=changed)) - _logits(
        model, inputs, source=first
    )
    by_place = gap.abs().amax((0, 4, 5)).flatten()
    assert by_place.argmax() == 23
    assert by_place[23] > 2 * by_place[:23].max()


def test_a_model_without_a_source_takes_none():
    with pytest.raises(ValueError, match="was trained without a source; leave it out"):
        _logits(_awake(), _inputs(), source=_source(torch.zeros(2, 4)))


def test_digit_0_is_the_least_significant():
    assert Digits((8, 8)).split(torch.tensor([0b101_011])).tolist() == [[0b011, 0b101]]
    assert Digits((8, 5, 3)).split(torch.tensor([7 + 8 * 4 + 40 * 2])).tolist() == [[7, 4, 2]]


@pytest.mark.parametrize("radices", [(64,), (512, 512), (16, 16, 16), (8, 8, 8, 6, 5), (2, 3)])
def test_join_inverts_split(radices):
    digits, size = Digits(radices), math.prod(radices)
    indices = torch.tensor([0, 1, size - 1, size // 2, size // 3])
    found = digits.split(indices)
    assert found[2].tolist() == [radix - 1 for radix in radices]
    assert torch.equal(digits.join(found), indices)


def test_the_digits_of_fsq_are_its_levels():
    levels = (8, 8, 8, 6, 5)
    quantizer = FSQ(FSQSpec(levels=levels))
    indices = torch.arange(0, 15360, 77).view(1, 1, 1, -1)
    codes = quantizer.lookup(indices)[0, :, 0, 0].T  # N C
    digits = Digits(MaskGITSpec().radices(FSQSpec(levels=levels))).split(indices)[0, 0, 0]
    for channel in range(5):
        seen = {
            (int(d), round(float(c), 4))
            for d, c in zip(*(x[:, channel] for x in (digits, codes)), strict=True)
        }
        assert len(seen) == levels[channel]  # one value of the channel a class


@torch.no_grad()
def test_classes_that_a_digit_lacks_are_never_likely():
    spec = SPEC.model_copy(update={"radices": (8, 3)})
    inputs = _inputs()
    inputs["indices"] %= 24
    logits = _logits(_awake(spec), inputs)
    assert logits.shape[-2:] == (2, 8)
    assert logits[..., 1, 3:].max() < -1000 < logits[..., 1, :3].min()
    assert logits[..., 0, :].min() > -1000


@torch.no_grad()
def test_any_grid_gives_a_logit_per_group_and_class():
    model = _awake()
    for grid in ((2, 3, 4), (4, 4, 4), (8, 8, 8), (1, 1, 1)):
        assert _logits(model, _inputs((2, *grid))).shape == (2, *grid, 2, 8)


@torch.no_grad()
def test_masked_positions_hide_their_index():
    model, inputs = _awake(), _inputs()
    before = _logits(model, inputs)
    hidden = torch.where(inputs["masked"], 63 - inputs["indices"], inputs["indices"])
    assert torch.equal(_logits(model, {**inputs, "indices": hidden}), before)
    shown = torch.where(inputs["masked"], inputs["indices"], 63 - inputs["indices"])
    assert not torch.allclose(_logits(model, {**inputs, "indices": shown}), before)


@torch.no_grad()
def test_every_bit_group_of_an_index_is_seen():
    model, inputs = _awake(), _inputs()
    inputs["masked"][:, 0, 0, 0] = False
    before = _logits(model, inputs)
    for bit in (0, 5):
        changed = inputs["indices"].clone()
        changed[:, 0, 0, 0] ^= 1 << bit
        after = _logits(model, {**inputs, "indices": changed})
        assert (after - before)[:, 1].abs().max() > 1e-4


@torch.no_grad()
def test_a_grid_that_is_all_masked_still_knows_its_positions():
    model, inputs = _awake(), _inputs()
    logits = _logits(model, {**inputs, "masked": torch.ones_like(inputs["masked"])}).flatten(1, 3)
    distances = torch.cdist(logits[0].flatten(1), logits[0].flatten(1))
    assert distances.fill_diagonal_(1).min() > 1e-2


@torch.no_grad()
def test_axes_are_told_apart():
    model, inputs = _awake(), _inputs((1, 3, 3, 3))
    turned = {k: v.transpose(1, 3) if v.ndim == 4 else v for k, v in inputs.items()}
    assert not torch.allclose(
        _logits(model, turned).transpose(1, 3), _logits(model, inputs), atol=1e-3
    )


@torch.no_grad()
def test_labels_steer_only_where_they_are_present():
    model, inputs = _awake(), _inputs()
    other = {**inputs, "labels": 1 - inputs["labels"]}
    assert not torch.allclose(_logits(model, inputs), _logits(model, other), atol=1e-4)
    absent = {"label_present": torch.tensor([True, False])}
    before, after = _logits(model, {**inputs, **absent}), _logits(model, {**other, **absent})
    assert not torch.allclose(before[0], after[0], atol=1e-4)
    assert torch.equal(before[1], after[1])
    unknown = inputs["labels"].clone()
    unknown[1] = torch.nan
    assert torch.equal(_logits(model, {**inputs, **absent, "labels": unknown})[1], before[1])


@torch.no_grad()
def test_no_findings_differs_from_no_labels():
    model, inputs = _awake(), _inputs()
    healthy = {**inputs, "labels": torch.zeros(2, 4)}
    unlabelled = {**healthy, "label_present": torch.zeros(2, dtype=torch.bool)}
    assert not torch.allclose(_logits(model, healthy), _logits(model, unlabelled), atol=1e-4)


@torch.no_grad()
def test_items_do_not_see_each_other():
    model, inputs = _awake(), _inputs()
    alone = _logits(model, {k: v[1:] for k, v in inputs.items()})
    torch.testing.assert_close(_logits(model, inputs)[1:], alone)


def test_gradients_reach_every_parameter():
    model, inputs = _awake().train(), _inputs()
    inputs["label_present"][0] = False
    _logits(model, inputs).square().mean().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@torch.no_grad()
def test_a_model_without_labels_takes_an_empty_row():
    model = _awake(MaskGITNetworkSpec(**{**SPEC.model_dump(), "num_labels": 0}))
    logits = _logits(model, {**_inputs(), "labels": torch.zeros(2, 0)})
    assert logits.isfinite().all()


def test_bits_must_split_into_whole_groups():
    with pytest.raises(ValueError, match=r"bits_per_group \(4\) must divide .* 6 bits"):
        MaskGITSpec(bits_per_group=4).radices(LFQSpec(bits=6))


def _text(seed: int = 3) -> Text:
    generator = torch.Generator().manual_seed(seed)
    return Text(torch.randn(2, 5, generator=generator), torch.ones(2, dtype=torch.bool))


@pytest.fixture(params=["adaln", "in_context"])
def reader(request: pytest.FixtureRequest) -> MaskGIT:
    return _awake(SPEC.model_copy(update={"text_size": 5, "conditioning": request.param}))


@torch.no_grad()
def test_a_text_steers_in_any_scale(reader):
    inputs, text = _inputs(), _text()
    before = _logits(reader, inputs, text=text)
    assert not torch.allclose(_logits(reader, inputs, text=_text(4)), before, atol=1e-3)
    for factor, shift in ((700, 30), (0.02, -0.1)):
        scaled = replace(text, embeddings=factor * text.embeddings + shift)
        found = _logits(reader, inputs, text=scaled)
        torch.testing.assert_close(found, before, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_text_that_is_absent_is_not_read(reader):
    inputs, text = _inputs(), _text()
    nothing = _logits(reader, inputs)
    half = replace(text, present=torch.tensor([True, False]))
    half.embeddings[1] = torch.nan
    found = _logits(reader, inputs, text=half)
    assert torch.equal(found[1], nothing[1])
    assert not torch.allclose(found[0], nothing[0], atol=1e-3)
    # A text of which nothing is said differs from none at all.
    flat = replace(text, embeddings=torch.zeros(2, 5))
    assert not torch.allclose(_logits(reader, inputs, text=flat), nothing, atol=1e-3)


def test_a_text_of_another_length_is_refused(reader):
    text = Text(torch.zeros(2, 7), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="have 7 numbers, this model was trained with 5; ask the"):
        _logits(reader, _inputs(), text=text)
    with pytest.raises(ValueError, match="5 numbers, this model was trained with no text; leave"):
        _logits(_awake(), _inputs(), text=_text())


@pytest.mark.parametrize("conditioning", ["adaln", "in_context"])
@torch.no_grad()
def test_the_same_content_further_up_is_something_else(conditioning):
    model = _awake(SPEC.model_copy(update={"conditioning": conditioning, "source": True}))
    inputs, asked = _inputs(), {"source": _source(torch.zeros(2, 4))}
    whole = _logits(model, inputs, **asked)
    assert torch.equal(_logits(model, inputs, [0, 0], **asked), whole)
    moved = _logits(model, inputs, [0, 6], **asked)
    torch.testing.assert_close(moved[0], whole[0])
    assert not torch.allclose(moved[1], whole[1], atol=1e-3)
    twice = {name: torch.stack([value[1], value[1]]) for name, value in inputs.items()}
    far, near = _logits(model, twice, [6, 1])
    assert not torch.allclose(far, near, atol=1e-3)


@torch.no_grad()
def test_a_window_that_sees_nothing_is_where_it_is_in_the_grid():
    # Without blocks a token is its position alone: a window has the logits of its part of the grid.
    model = _awake()
    model.blocks = torch.nn.ModuleList()
    inputs = _inputs((1, 7, 2, 3))
    inputs["masked"][:] = True
    whole = _logits(model, inputs)
    window = {k: v[:, 3:5] if v.ndim == 4 else v for k, v in inputs.items()}
    assert torch.equal(_logits(model, window, [3]), whole[:, 3:5])


@pytest.mark.parametrize("conditioning", ["adaln", "in_context"])
def test_gradients_reach_every_parameter_of_all_conditions(conditioning):
    changes = {"source": True, "text_size": 5, "conditioning": conditioning}
    model, inputs = _awake(SPEC.model_copy(update=changes)).train(), _inputs()
    inputs["label_present"][0] = False
    source, text = _source(torch.ones(2, 4)), _text()
    text.present[0] = source.present[1] = False
    _logits(model, inputs, [0, 3], source=source, text=text).square().mean().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("conditioning", ["adaln", "in_context"])
def test_wanted_positions_have_the_logits_that_they_have_among_all(conditioning):
    spec = SPEC.model_copy(update={"conditioning": conditioning, "num_layers": 2})
    torch.manual_seed(0)
    model = MaskGIT(spec).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    grid = (3, 2, 4)
    indices = torch.randint(0, spec.codebook_size, (3, *grid))
    masked = torch.rand(3, *grid) < 0.7
    wanted = torch.rand(3, *grid) < 0.4
    wanted[1] = False  # an item that is whole already
    labels = torch.zeros(3, spec.num_labels)
    conditions = Conditions(labels, torch.ones(3, dtype=torch.bool))
    with torch.no_grad():
        every = model(indices, masked, conditions)
        some = model(indices, masked, conditions, wanted=wanted)
    torch.testing.assert_close(some[wanted], every[wanted], rtol=1e-4, atol=1e-5)
