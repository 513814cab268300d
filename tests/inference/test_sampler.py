import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from scipy.stats import chisquare

from ct3dlib.config import MaskGITNetworkSpec, SamplesSpec
from ct3dlib.inference.halton import halton_order
from ct3dlib.inference.sampler import (
    Known,
    Prompt,
    commit_counts,
    masked_share,
    sample_indices,
    sample_seeds,
)
from ct3dlib.models.maskgit import Conditions, Digits, MaskGIT

SCHEDULES = ["cosine", "arccos", "linear", "sqrt", "log2", "square"]
ORDERS = ["confidence", "random", "halton"]
SPEC = MaskGITNetworkSpec(
    hidden_size=12, num_layers=1, num_heads=2, dropout=0.0, radices=(8, 8), num_labels=2
)
DIGITS = Digits((8, 8))
GRID = (2, 3, 4)


class Fixed(MaskGIT):
    """Return given logits (D H W G K) whatever it is shown, and remember what that was."""

    def __init__(self, logits: torch.Tensor, unlabelled: torch.Tensor | None = None) -> None:
        super().__init__(SPEC)
        self.logits = logits
        self.unlabelled = logits if unlabelled is None else unlabelled
        self.shown: list[torch.Tensor] = []
        self.eval()

    def forward(self, indices, masked, conditions, *, start=None, wanted=None):
        self.shown.append(torch.where(masked, -1, indices))
        present = conditions.label_present
        return torch.stack([self.logits if p else self.unlabelled for p in present])


def _prompt(num_samples: int, seed: int = 0) -> Prompt:
    present = torch.ones(num_samples, dtype=torch.bool)
    conditions = Conditions(torch.zeros(num_samples, 2), present)
    return Prompt(sample_seeds(seed, num_samples), conditions)


def _certain(target: torch.Tensor) -> torch.Tensor:
    classes = DIGITS.split(target)
    return 100.0 * torch.nn.functional.one_hot(classes, 8).float()


def _awake(spec: MaskGITNetworkSpec = SPEC) -> MaskGIT:
    torch.manual_seed(0)
    model = MaskGIT(spec).eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.modulation.weight, std=0.5)
    return model


GOLDEN_COUNTS = {
    "log2": [32, 33, 34, 36, 38, 40, 42, 45, 48, 51, 54, 59],
    "linear": [43, 43, 42] * 4,
    "sqrt": [22, 23, 24, 25, 27, 29, 32, 35, 39, 47, 62, 147],
    "cosine": [5, 13, 21, 30, 37, 44, 51, 55, 61, 63, 66, 66],
    "arccos": [28, 27, 28, 28, 30, 30, 33, 34, 39, 45, 56, 134],
    "square": [4, 11, 17, 25, 32, 39, 47, 53, 60, 68, 75, 81],
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_counts_of_512_tokens_in_12_steps(schedule):
    assert commit_counts(schedule, 512, steps=12) == GOLDEN_COUNTS[schedule]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_step_commits_and_all_is_committed(schedule):
    for num_tokens in (1, 2, 5, 12, 13, 100, 1080):
        for steps in (1, 2, 11, 12, 30):
            counts = commit_counts(schedule, num_tokens, steps=steps)
            assert len(counts) == min(steps, num_tokens)
            assert sum(counts) == num_tokens
            assert min(counts) >= 1


def test_nothing_to_commit_takes_no_step():
    assert commit_counts("cosine", 0, steps=12) == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_masked_share_falls_from_one_to_zero(schedule):
    shares = masked_share(schedule, torch.linspace(0, 1, 101, dtype=torch.float64)).tolist()
    assert shares[0] == pytest.approx(1)
    assert shares[-1] == pytest.approx(0, abs=1e-12)
    assert all(late < early for early, late in pairwise(shares))


def test_masked_share_half_way_by_hand():
    half = torch.tensor(0.5, dtype=torch.float64)
    shares = {name: masked_share(name, half).item() for name in SCHEDULES}
    assert shares == pytest.approx(
        {
            "cosine": math.sqrt(0.5),
            "arccos": 2 / 3,
            "linear": 0.5,
            "sqrt": math.sqrt(0.5),
            "log2": math.log2(1.5),
            "square": 0.75,
        }
    )


def test_sample_seeds_depend_on_seed_and_number_alone():
    assert sample_seeds(7, 5)[:3] == sample_seeds(7, 3)
    assert len(set(sample_seeds(7, 100)) | set(sample_seeds(8, 100))) == 200


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_model_that_knows_the_target_gives_it(schedule, order):
    torch.manual_seed(0)
    target = torch.randint(0, 64, GRID)
    model = Fixed(_certain(target))
    spec = SamplesSpec(steps=7, schedule=schedule, order=order)
    drawn = sample_indices(model, _prompt(2), grid=GRID, spec=spec)
    assert torch.equal(drawn, target.expand(2, *GRID))
    assert len(model.shown) == 7


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_committed_indices_stay_and_the_schedule_is_kept(schedule, order):
    model = Fixed(torch.zeros(*GRID, 2, 8))
    spec = SamplesSpec(steps=6, schedule=schedule, order=order)
    drawn = sample_indices(model, _prompt(3), grid=GRID, spec=spec)
    left = [24, *(24 - sum(commit_counts(schedule, 24, steps=6)[:n]) for n in range(1, 6))]
    assert [(shown == -1).flatten(1).sum(1).tolist() for shown in model.shown] == [
        [n] * 3 for n in left
    ]
    for early, late in pairwise([*model.shown, drawn]):
        assert torch.equal(late[early >= 0], early[early >= 0])


def test_without_noise_the_most_confident_positions_come_first():
    # Flat over n classes, any draw has log-probability -log n: the order is known beforehand.
    num_classes = [(3, 4), (1, 1), (8, 8), (1, 2), (5, 7), (2, 3)]
    logits = torch.full((1, 1, 6, 2, 8), -1e4)
    for w, groups in enumerate(num_classes):
        for group, n in enumerate(groups):
            logits[0, 0, w, group, :n] = 0
    model = Fixed(logits)
    spec = SamplesSpec(steps=6, order="confidence", choice_temperature=0.0)
    sample_indices(model, _prompt(5), grid=(1, 1, 6), spec=spec)
    for sample in range(5):
        shown = [step[sample].flatten() for step in model.shown]
        order = [int(((a < 0) & (b >= 0)).nonzero()) for a, b in pairwise(shown)]
        assert order == [1, 3, 5, 0, 4]


def test_large_noise_makes_the_order_uniform():
    logits = torch.zeros(1, 1, 4, 2, 8)
    logits[..., 0] = torch.tensor([0.0, 1.0, 2.0, 3.0])[:, None]
    model = Fixed(logits)
    spec = SamplesSpec(steps=4, order="confidence", choice_temperature=1e6)
    sample_indices(model, _prompt(4000), grid=(1, 1, 4), spec=spec)
    first = (model.shown[1] >= 0).flatten(1).sum(0)
    assert first.sum() == 4000
    assert chisquare(first.numpy()).pvalue > 0.01


def test_drawn_classes_follow_their_distribution():
    probabilities = torch.tensor([[0.4, 0.3, 0.2, 0.1, 0, 0, 0, 0], [0.05, 0.05, 0.9, *[0.0] * 5]])
    model = Fixed(torch.log(probabilities).clamp_min(-1e4).view(1, 1, 1, 2, 8))
    drawn = sample_indices(model, _prompt(10_000), grid=(1, 1, 1), spec=SamplesSpec(steps=1))
    classes = DIGITS.split(drawn.flatten())
    joint = torch.bincount(classes[:, 0] * 8 + classes[:, 1], minlength=64)
    expected = torch.outer(*probabilities.double()).flatten()
    expected *= 10_000 / expected.sum()
    assert joint[expected == 0].sum() == 0
    possible = expected > 0
    assert chisquare(joint[possible].numpy(), expected[possible].numpy()).pvalue > 0.01


@pytest.mark.parametrize("order", ["random", "halton"])
def test_where_the_order_does_not_look_every_position_follows_its_distribution(order):
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    logits = torch.full((1, 2, 5, 2, 8), -1e4)
    logits[..., 0, :4] = probabilities.log().float()
    logits[..., 1, 0] = 0
    spec = SamplesSpec(steps=4, order=order)
    drawn = sample_indices(Fixed(logits), _prompt(1000), grid=(1, 2, 5), spec=spec)
    classes = DIGITS.split(drawn.flatten())[:, 0]
    found = torch.bincount(classes, minlength=4).double().numpy()
    assert chisquare(found, 10_000 * probabilities.numpy()).pvalue > 0.01


@pytest.mark.parametrize("order", ["random", "halton"])
def test_an_order_of_its_own_puts_a_sample_in_any_position_first(order):
    model = Fixed(torch.zeros(1, 2, 3, 2, 8))
    spec = SamplesSpec(steps=6, order=order)
    sample_indices(model, _prompt(3000), grid=(1, 2, 3), spec=spec)
    first = (model.shown[1] >= 0).flatten(1).sum(0)
    assert first.sum() == 3000
    assert chisquare(first.numpy()).pvalue > 0.01


def test_the_halton_order_is_that_of_the_grid_moved_round_its_ends():
    grid = (2, 3, 4)
    model = Fixed(torch.zeros(*grid, 2, 8))
    sample_indices(model, _prompt(4), grid=grid, spec=SamplesSpec(steps=24, order="halton"))
    shown = torch.stack([*model.shown]).flatten(2) >= 0  # steps, samples, positions
    order = halton_order(grid)
    plain = torch.stack([order // 12, order // 4 % 3, order % 4], dim=1)
    for sample in range(4):
        found = shown[1:, sample].int() - shown[:-1, sample].int()
        cells = found.argmax(1)  # of all steps but the last
        places = torch.stack([cells // 12, cells // 4 % 3, cells % 4], dim=1)
        shift = (places - plain[:-1]) % torch.tensor(grid)
        assert torch.equal(shift, shift[:1].expand_as(shift))


def test_only_the_likeliest_classes_are_drawn():
    logits = torch.arange(8.0).expand(1, 1, 1, 2, 8) / 4
    spec = SamplesSpec(steps=1, top_k=3)
    drawn = sample_indices(Fixed(logits), _prompt(3000), grid=(1, 1, 1), spec=spec)
    classes = DIGITS.split(drawn.flatten())[:, 0]
    expected = 3000 * (torch.arange(5.0, 8.0) / 4).softmax(0).double().numpy()
    found = torch.bincount(classes, minlength=8).double().numpy()
    assert found[:5].sum() == 0
    assert chisquare(found[5:], expected * found.sum() / expected.sum()).pvalue > 0.01


@pytest.mark.parametrize("guidance", [0.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 5])
def test_no_temperature_draws_a_class_that_a_digit_lacks(top_k, guidance):
    # [MASK] has an embedding of its own and no class: 24 indices are all there is.
    model = _awake(SPEC.model_copy(update={"radices": (8, 3)}))
    spec = SamplesSpec(steps=3, temperature=1e6, top_k=top_k, guidance=guidance)
    drawn = sample_indices(model, _prompt(100), grid=GRID, spec=spec)
    often = torch.bincount(drawn.flatten(), minlength=24)
    assert len(often) == 24
    assert (often > 0).sum() >= 15  # heat draws all that top_k lets it


def test_temperature_zero_takes_the_likeliest_of_the_most_certain():
    model = _awake()
    greedy = SamplesSpec(steps=6, temperature=0, order="confidence", choice_temperature=0.0)
    drawn = sample_indices(model, _prompt(2), grid=GRID, spec=greedy)
    assert torch.equal(drawn[0], drawn[1])
    cold = SamplesSpec(steps=1, temperature=0)
    absent = torch.zeros(1, dtype=torch.bool)
    prompt = Prompt([0], Conditions(torch.zeros(1, 2), absent))
    nothing, hidden = (
        torch.zeros(1, *GRID, dtype=torch.long),
        torch.ones(1, *GRID, dtype=torch.bool),
    )
    logits = model(nothing, hidden, prompt.conditions)
    likeliest = DIGITS.join(logits.argmax(-1))
    assert torch.equal(sample_indices(model, prompt, grid=GRID, spec=cold), likeliest)


def test_temperature_sharpens_and_flattens():
    logits = torch.zeros(1, 1, 1, 2, 8)
    logits[..., 3] = math.log(4)  # 4 / 11 at temperature 1, 2 / 9 at 2, 16 / 23 at 1/2
    for temperature, share in ((1.0, 4 / 11), (2.0, 2 / 9), (0.5, 16 / 23)):
        spec = SamplesSpec(steps=1, temperature=temperature)
        drawn = sample_indices(Fixed(logits), _prompt(4000), grid=(1, 1, 1), spec=spec)
        found = (drawn >> 3 == 3).float().mean().item()
        assert found == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000))


def test_a_low_temperature_without_noise_is_the_same_for_all_seeds():
    model = _awake()
    spec = SamplesSpec(steps=6, temperature=1e-6, order="confidence", choice_temperature=0.0)
    drawn = sample_indices(model, _prompt(3), grid=GRID, spec=spec)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("order", ORDERS)
def test_seeds_decide_the_sample(order):
    model, spec = _awake(), SamplesSpec(steps=6, order=order)
    drawn = sample_indices(model, _prompt(3), grid=GRID, spec=spec)
    assert torch.equal(sample_indices(model, _prompt(3), grid=GRID, spec=spec), drawn)
    other = sample_indices(model, _prompt(3, seed=1), grid=GRID, spec=spec)
    for a in range(3):
        assert not torch.equal(drawn[a], other[a])
        assert not torch.equal(drawn[a], drawn[a - 1])
    assert drawn.min() >= 0
    assert drawn.max() < 64


def test_a_sample_does_not_depend_on_its_batch():
    model, spec, prompt = _awake(), SamplesSpec(steps=6, guidance=1.0), _prompt(3)
    together = sample_indices(model, prompt, grid=GRID, spec=spec)
    for i in range(3):
        alone = Prompt(prompt.seeds[i : i + 1], _prompt(1).conditions)
        assert torch.equal(sample_indices(model, alone, grid=GRID, spec=spec)[0], together[i])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_known_indices_never_change(schedule, order):
    torch.manual_seed(0)
    model = _awake()
    known = Known(torch.randint(0, 64, (3, *GRID)), torch.rand(3, *GRID) < 0.5)
    known.where[2] = True
    spec = SamplesSpec(steps=6, schedule=schedule, order=order)
    drawn = sample_indices(model, _prompt(3), grid=GRID, spec=spec, known=known)
    assert torch.equal(drawn[known.where], known.indices[known.where])
    free = ~known.where
    assert not torch.equal(drawn[free], known.indices[free])


def test_known_indices_are_shown_to_the_model():
    torch.manual_seed(0)
    model = Fixed(torch.zeros(*GRID, 2, 8))
    known = Known(torch.randint(0, 64, (1, *GRID)), torch.rand(1, *GRID) < 0.5)
    sample_indices(model, _prompt(1), grid=GRID, spec=SamplesSpec(steps=3), known=known)
    assert torch.equal(model.shown[0], torch.where(known.where, known.indices, -1))


def test_all_known_is_returned_without_a_forward_pass():
    model = Fixed(torch.zeros(*GRID, 2, 8))
    known = Known(torch.full((2, *GRID), 5), torch.ones(2, *GRID, dtype=torch.bool))
    drawn = sample_indices(model, _prompt(2), grid=GRID, spec=SamplesSpec(), known=known)
    assert torch.equal(drawn, known.indices)
    assert model.shown == []


def test_guidance_rises_from_plain_to_its_weight():
    # Labelled and unlabelled logits cancel at weight 1: 2 x (0.5 a) - 1 x a is flat.
    target = torch.full((1, 1, 4), 9)
    model = Fixed(0.5 * _certain(target), unlabelled=_certain(target))
    spec = SamplesSpec(
        steps=3, schedule="linear", guidance=1.0, order="confidence", choice_temperature=0.0
    )
    prompt = _prompt(500)
    drawn = sample_indices(model, prompt, grid=(1, 1, 4), spec=spec)
    assert [len(shown) for shown in model.shown] == [500, 1000, 1000]
    first_two = model.shown[2][:500]
    assert (first_two[first_two >= 0] == 9).all()  # weights 0 and 1/2 still see the target
    last = drawn[first_two < 0]
    assert (last == 9).float().mean() < 0.1  # one in 64


def test_guidance_of_a_model_that_ignores_labels_changes_nothing():
    torch.manual_seed(0)
    logits = torch.randn(*GRID, 2, 8)
    plain, guided = (
        sample_indices(Fixed(logits), _prompt(2), grid=GRID, spec=SamplesSpec(steps=6, guidance=w))
        for w in (0.0, 2.0)
    )
    assert torch.equal(plain, guided)


def test_one_batched_pass_equals_two_passes():
    model, prompt = _awake(), _prompt(2)
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    prompt = Prompt(prompt.seeds, replace(prompt.conditions, labels=labels))
    grid, weight = (1, 2, 2), 1.5
    seen = []

    def remember(_module, args, output):
        seen.append((*args, output))

    with model.register_forward_hook(remember):
        spec = SamplesSpec(steps=1, guidance=weight)
        sample_indices(model, prompt, grid=grid, spec=spec)
    indices, masked, asked, output = seen[0]
    assert asked.label_present.tolist() == [True, True, False, False]
    with torch.no_grad():
        for half in (slice(0, 2), slice(2, 4)):
            part = Conditions(asked.labels[half], asked.label_present[half])
            torch.testing.assert_close(model(indices[half], masked[half], part), output[half])


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"training mode .* call model.eval\(\) first"):
        sample_indices(_awake().train(), _prompt(1), grid=GRID, spec=SamplesSpec())


def test_labels_of_another_length_are_refused():
    prompt = Prompt([0], Conditions(torch.zeros(1, 18), torch.ones(1, dtype=torch.bool)))
    with pytest.raises(ValueError, match="has 18 labels per sample, the model was trained with 2"):
        sample_indices(_awake(), prompt, grid=GRID, spec=SamplesSpec())


def test_a_prompt_has_one_entry_of_each_per_sample():
    with pytest.raises(ValueError, match="per sample, not 2, 1 and 1"):
        Prompt([0, 1], Conditions(torch.zeros(1, 2), torch.ones(1, dtype=torch.bool)))


def test_known_indices_of_another_grid_are_refused():
    known = Known(torch.zeros(1, 4, 4, 4).long(), torch.ones(1, 4, 4, 4).bool())
    with pytest.raises(ValueError, match=r"known indices have shape \(1, 4, 4, 4\)"):
        sample_indices(_awake(), _prompt(1), grid=GRID, spec=SamplesSpec(), known=known)


def test_known_indices_of_another_codebook_are_refused():
    known = Known(torch.full((1, *GRID), 64), torch.ones(1, *GRID).bool())
    with pytest.raises(ValueError, match="span 64 to 64; the model's codebook ends at 63"):
        sample_indices(_awake(), _prompt(1), grid=GRID, spec=SamplesSpec(), known=known)


@pytest.mark.parametrize("order", ["random", "halton"])
def test_what_is_drawn_does_not_hang_on_the_work_that_is_saved(order, monkeypatch):
    spec = SamplesSpec(steps=5, order=order, guidance=1.0)
    model = _awake()
    saved = sample_indices(model, _prompt(3), grid=GRID, spec=spec)
    forward = model.forward

    def whole(*arguments, wanted, **others):
        assert wanted.sum() < wanted.numel()
        return forward(*arguments, **others)

    monkeypatch.setattr(model, "forward", whole)
    assert torch.equal(sample_indices(model, _prompt(3), grid=GRID, spec=spec), saved)
