"""Every kind of autoencoder under one objective: terms, turns, frozen encoders."""

import math

import pytest
import torch
from torch import nn

from ct3dlib.config import (
    AutoencoderSpec,
    CausalTokenizerSpec,
    DiscriminatorSpec,
    FSQSpec,
    KLAutoencoderSpec,
    LFQSpec,
    MaisiTokenizerSpec,
    TokenizerLossSpec,
    TokenizerSpec,
)
from ct3dlib.losses.adversarial import generator_loss
from ct3dlib.objectives.tokenizer import TokenizerObjective, combined
from ct3dlib.training.engine import TorchEngine

CAUSAL = CausalTokenizerSpec(
    filters=8,
    num_res_blocks=1,
    channel_multipliers=(1, 2),
    temporal_downsample=(True,),
    norm_groups=4,
    quantizer=LFQSpec(bits=8),
)
MODELS: dict[str, tuple[AutoencoderSpec, tuple[int, int, int]]] = {
    "causal": (CAUSAL, (9, 16, 16)),
    "maisi": (
        MaisiTokenizerSpec(
            num_channels=(8, 16),
            num_res_blocks=(1, 1),
            attention_levels=(False, False),
            norm_groups=4,
            quantizer=FSQSpec(levels=(5, 5, 5)),
        ),
        (8, 16, 16),
    ),
    "vae": (KLAutoencoderSpec(blocks_down=(1, 1), blocks_up=(1,)), (8, 16, 16)),
    "vae2d": (KLAutoencoderSpec(spatial_dims=2, blocks_down=(1, 1), blocks_up=(1,)), (1, 16, 16)),
}
EVERY_VOXEL_TERM = {"l1": 1, "l2": 1, "ssim": 1, "gradient": 1, "eagle": 0.01, "focal_frequency": 1}


def section(kind: str, loss: dict[str, object], **more: object) -> TokenizerSpec:
    model, crop = MODELS[kind]
    return TokenizerSpec.model_validate(
        {
            "steps": 10,
            "batch_size": 2,
            "micro_batch_size": 2,
            "recipe": "chest",
            "crop": crop,
            "model": model.model_dump(),
            "loss": {"l1": 1.0, **loss},
            "discriminator": DiscriminatorSpec(filters=8, num_layers=1).model_dump(),
            **more,
        }
    )


def objective_of(spec: TokenizerSpec) -> TokenizerObjective:
    torch.manual_seed(0)
    return TokenizerObjective(spec)


def batch_of(kind: str, step: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    volumes = torch.rand(2, 1, *MODELS[kind][1], generator=generator) * 2 - 1
    return {"volume": volumes, "step": torch.tensor(step), "item_seed": torch.tensor([3, 4])}


@pytest.mark.parametrize("kind", MODELS)
def test_loss_is_the_weighted_sum_of_the_voxel_terms(kind: str) -> None:
    objective = objective_of(section(kind, EVERY_VOXEL_TERM)).eval()
    loss, m = objective.loss(batch_of(kind), "model")
    wanted = sum(weight * m[name] for name, weight in EVERY_VOXEL_TERM.items())
    torch.testing.assert_close(loss.detach(), wanted)
    assert math.isfinite(loss.item())


@pytest.mark.parametrize("kind", MODELS)
def test_a_term_of_no_weight_is_not_made(kind: str) -> None:
    _, m = objective_of(section(kind, {})).loss(batch_of(kind), "model")
    extra = {"kl", "beta"} if kind.startswith("vae") else {"code_usage"}
    assert set(m) == {"l1", "l2", "psnr_db", *extra}


@pytest.mark.parametrize("kind", ["causal", "maisi"])
def test_training_reconstructs_through_the_tokens(kind: str) -> None:
    objective = objective_of(section(kind, {}))
    volumes = batch_of(kind)["volume"]
    result = objective.model(volumes)
    assert result.quantized is not None
    decoded = objective.model.decode_indices(result.quantized.indices)
    torch.testing.assert_close(decoded, result.volumes, rtol=1e-4, atol=1e-5)


def test_beta_rises_over_its_share_of_the_steps() -> None:
    objective = objective_of(section("vae", {"kl": 0.5, "kl_warmup": 0.4}))
    betas = [objective.beta(torch.tensor(step)).item() for step in (0, 1, 2, 4, 9)]
    assert betas == pytest.approx([0, 0.125, 0.25, 0.5, 0.5])
    published = objective_of(section("vae", {"kl": 0.9}))  # 30 % of the steps
    betas = [published.beta(torch.tensor(step)).item() for step in (0, 1, 3, 9)]
    assert betas == pytest.approx([0, 0.3, 0.9, 0.9])
    loss, m = objective.eval().loss(batch_of("vae", step=2), "model")
    torch.testing.assert_close(loss.detach(), m["l1"] + 0.25 * m["kl"])


def test_a_fixed_deviation_makes_kl_the_energy_of_the_means() -> None:
    spec = section("vae", {"kl": 1.0, "kl_warmup": 0.0})
    fixed = spec.model.model_copy(update={"fixed_std": 0.1})
    objective = objective_of(spec.model_copy(update={"model": fixed})).eval()
    batch = batch_of("vae")
    _, m = objective.loss(batch, "model")
    energy = objective.model.encode(batch["volume"]).square().mean()
    torch.testing.assert_close(m["kl"], energy.detach())


ADVERSARIAL = {
    "adversarial": 0.5,
    "adversarial_start": 3,
    "feature_matching": 0.1,
    "adaptive_limit": 10.0,
    "lecam": 0.01,
    "r1": 1.0,
    "r1_every": 2,
}


def weights_of(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(one, other, strict=True)]


@pytest.mark.parametrize("kind", MODELS)
def test_the_discriminator_rests_until_its_start(kind: str) -> None:
    objective = objective_of(section(kind, ADVERSARIAL))
    engine = TorchEngine(objective, objective.spec, torch.device("cpu"))
    objective.train()
    before = weights_of(objective.discriminator)
    for step in range(5):
        for turn in objective.turns:
            if objective.acts(turn, step):
                metrics = engine.update([batch_of(kind, step)], turn, step)
        if step < 3:
            assert all(same(before, weights_of(objective.discriminator)))
            assert "generator" not in metrics
    assert not any(same(before, weights_of(objective.discriminator)))


def test_turns_leave_each_other_alone() -> None:
    objective = objective_of(section("causal", {**ADVERSARIAL, "adversarial_start": 0}))
    engine = TorchEngine(objective, objective.spec, torch.device("cpu"))
    objective.train()
    model, judge = weights_of(objective.model), weights_of(objective.discriminator)
    found = engine.update([batch_of("causal")], "discriminator", 0)
    assert all(same(model, weights_of(objective.model)))
    assert {"lecam", "r1", "real_logit", "fake_logit"} <= set(found)
    judge = weights_of(objective.discriminator)
    found = engine.update([batch_of("causal")], "model", 0)
    assert all(same(judge, weights_of(objective.discriminator)))
    assert {"generator", "adversarial_weight", "feature_matching"} <= set(found)
    assert "r1" not in engine.update([batch_of("causal", step=1)], "discriminator", 1)


def test_the_model_pays_for_the_discriminator_by_its_weights() -> None:
    objective = objective_of(section("causal", {**ADVERSARIAL, "adversarial_start": 0})).train()
    batch = batch_of("causal")
    loss, m = objective.loss(batch, "model")
    wanted = m["l1"] + m["adversarial_weight"] * m["generator"] + 0.1 * m["feature_matching"]
    torch.testing.assert_close(loss.detach(), wanted)
    made = objective.model(batch["volume"]).volumes
    last = objective.model.last_layer()
    norms = [
        torch.autograd.grad(term, last, retain_graph=True)[0].norm()
        for term in (
            (made - batch["volume"]).abs().mean(),
            generator_loss(objective.discriminator(made).logits, "non_saturating"),
        )
    ]
    torch.testing.assert_close(m["adversarial_weight"], 0.5 * norms[0] / (norms[1] + 1e-4))


@pytest.mark.parametrize(("step", "r1"), [(0, 1.0), (1, 0.0), (2, 1.0)])
def test_the_discriminator_pays_for_its_penalties_by_their_weights(step: int, r1: float) -> None:
    objective = objective_of(section("causal", {**ADVERSARIAL, "adversarial_start": 0})).train()
    loss, m = objective.loss(batch_of("causal", step), "discriminator")
    wanted = m["adversarial"] + 0.01 * m["lecam"] + r1 * m.get("r1", torch.zeros(()))
    torch.testing.assert_close(loss.detach(), wanted)
    assert ("r1" in m) == bool(r1)


def test_validation_leaves_the_discriminator_out() -> None:
    objective = objective_of(section("causal", {**ADVERSARIAL, "adversarial_start": 0})).eval()
    loss, m = objective.loss(batch_of("causal", step=5), "model")
    torch.testing.assert_close(loss.detach(), m["l1"])
    assert "generator" not in m


def test_the_discriminator_has_its_own_rate() -> None:
    spec = section("causal", ADVERSARIAL, discriminator_rate=0.8, learning_rate=1e-3)
    objective = objective_of(spec)
    engine = TorchEngine(objective, spec, torch.device("cpu"))
    objective.train()
    rates = [engine.update([batch_of("causal", 3)], turn, 0)["lr"] for turn in objective.turns]
    assert rates == pytest.approx([1e-3, 0.8e-3])


@pytest.mark.parametrize("kind", MODELS)
def test_a_frozen_encoder_does_not_move(kind: str) -> None:
    objective = objective_of(section(kind, {}, freeze_encoder=True))
    engine = TorchEngine(objective, objective.spec, torch.device("cpu"))
    objective.train()
    frozen = nn.ModuleList(objective.model.encoding_modules())
    before, decoder = frozen.state_dict(), weights_of(objective.model.decoder)
    before = {name: value.clone() for name, value in before.items()}
    for step in range(2):
        engine.update([batch_of(kind, step)], "model", step)
    after = frozen.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not all(same(decoder, weights_of(objective.model.decoder)))


def test_a_perceptual_term_needs_its_network() -> None:
    with pytest.raises(ValueError, match=r"loss\.perceptual needs a feature network"):
        objective_of(section("causal", {"perceptual": 1.0}))


def test_stages_change_what_they_name() -> None:
    spec = section(
        "causal",
        {},
        stages=(
            {"steps": 3},
            {"steps": 4, "crop": (17, 16, 16), "learning_rate": 0.5},
            {"steps": 5, "freeze_encoder": True, "loss": TokenizerLossSpec(l1=2).model_dump()},
        ),
    )
    first, second, third = spec.in_stages()
    assert [stage.steps for stage in (first, second, third)] == [3, 4, 5]
    assert (first.crop, second.crop, third.crop) == ((9, 16, 16), (17, 16, 16), (9, 16, 16))
    assert (second.learning_rate, third.learning_rate) == (0.5, spec.learning_rate)
    assert [stage.freeze_encoder for stage in (first, second, third)] == [False, False, True]
    assert (second.loss.l1, third.loss.l1) == (1, 2)
    assert not any(stage.stages for stage in (first, second, third))


def test_combined_joins_what_is_measured() -> None:
    objective = objective_of(section("causal", {"ssim": 1.0})).eval()
    m = objective.validate(batch_of("causal"))
    wanted = max(0.0, min(1.0, (m["psnr_db"].item() - 20) / 20)) + 1 - m["ssim"].item()
    assert m["combined"].item() == pytest.approx(wanted)


@pytest.mark.parametrize("kind", ["vae", "vae2d"])
def test_what_the_latents_of_a_variational_model_mean_is_among_the_pictures(kind: str) -> None:
    objective = objective_of(section(kind, {})).eval()
    batch = batch_of(kind)
    height, width = batch["volume"].shape[3:]
    found = objective.pictures(batch)
    assert found["prior"].shape == (1, height, width)
    assert 0 <= found["prior"].min() < found["prior"].max() <= 1
    torch.testing.assert_close(found["prior"], objective.pictures(batch)["prior"])
    # From the first crop's reconstruction to the second's.
    strip = found["interpolation"].split(width, dim=2)
    assert len(strip) == 5
    middle = batch["volume"].shape[2] // 2
    ends = (objective.model(batch["volume"]).volumes[:, :, middle] + 1) / 2
    torch.testing.assert_close(strip[0], ends[0].clamp(0, 1).detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(strip[4], ends[1].clamp(0, 1).detach(), atol=1e-5, rtol=0)
    # The noisier, the farther from the first.
    noisy = found["noise"].split(width, dim=2)
    torch.testing.assert_close(noisy[0], strip[0], atol=1e-5, rtol=0)
    gaps = [(picture - noisy[0]).square().mean().item() for picture in noisy]
    assert gaps == sorted(gaps)
    assert gaps[1] > 0
    assert "prior" not in objective_of(section("causal", {})).eval().pictures(batch_of("causal"))


def test_one_crop_is_enough_for_the_pictures_of_latents() -> None:
    objective = objective_of(section("vae", {})).eval()
    batch = batch_of("vae")
    single = {**batch, "volume": batch["volume"][:1], "item_seed": batch["item_seed"][:1]}
    found = objective.pictures(single)["interpolation"].split(batch["volume"].shape[4], dim=2)
    zeros = torch.zeros_like(objective.model.posterior(single["volume"]).mean)
    end = (objective.model.decode(zeros)[0, :, batch["volume"].shape[2] // 2] + 1) / 2
    torch.testing.assert_close(found[4], end.clamp(0, 1).detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("psnr", "share"), [((-5.0,), 0.0), ((20.0,), 0.0), ((50.0, 40.0), 1.0), ((10.0, 30.0), 0.25)]
)
def test_combined_clamps_the_psnr_of_each_crop(psnr: tuple[float, ...], share: float) -> None:
    found = torch.tensor(psnr)
    assert combined(found, {}).item() == pytest.approx(share)
    others = {"ssim": torch.tensor(0.25), "perceptual": torch.tensor(0.125)}
    assert combined(found, others).item() == pytest.approx(share + 0.75 - 0.125)


def test_what_weights_are_chosen_by_does_not_depend_on_how_crops_are_batched() -> None:
    objective = objective_of(section("causal", {})).eval()
    batch = batch_of("causal")
    batch["volume"] = batch["volume"] * torch.tensor([1.0, 0.05]).view(2, 1, 1, 1, 1)
    single = [
        objective.validate({**batch, "volume": batch["volume"][i : i + 1], "item_seed": seed})
        for i, seed in enumerate(batch["item_seed"].split(1))
    ]
    together = objective.validate(batch)
    for name in ("psnr_db", "combined", "l1"):
        mean = sum(one[name].item() for one in single) / 2
        assert together[name].item() == pytest.approx(mean, rel=1e-5)


def balls(number: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """Return crops with a ball of drawn place and size, soft tissue in air with a soft edge."""
    generator = torch.Generator().manual_seed(0)
    axes = [torch.arange(n, dtype=torch.float32) for n in shape]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    centers = torch.rand(number, 3, 1, 1, 1, generator=generator) * 4 - 2
    middle = torch.tensor([4.0, 8.0, 8.0]).view(3, 1, 1, 1)
    distance = (places - middle - centers).square().sum(1).sqrt()
    radius = 3 + 3 * torch.rand(number, 1, 1, 1, generator=generator)
    return (torch.sigmoid(radius - distance) - 0.95).unsqueeze(1)


@pytest.mark.parametrize(("kind", "steps"), [("causal", 150), ("maisi", 50)])
def test_an_fsq_tokenizer_learns_phantoms(kind: str, steps: int) -> None:
    torch.manual_seed(0)
    model, crop = MODELS[kind]
    model = model.model_dump() | {"quantizer": FSQSpec(levels=(8, 8, 8)).model_dump()}
    objective = objective_of(section(kind, {"l1": 0.0, "l2": 20.0}, model=model))
    volumes = balls(8, crop)
    optimizer = torch.optim.AdamW(objective.parameters_of("model"), lr=5e-3, weight_decay=0)
    first = None
    for step in range(steps):
        seeds = torch.arange(8)
        batch = {"volume": volumes, "step": torch.tensor(step), "item_seed": seeds}
        loss, metrics = objective.loss(batch, "model")
        first = metrics["l1"].item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    batch = {"volume": volumes, "step": torch.tensor(0), "item_seed": torch.arange(8)}
    found = objective.eval().validate(batch)
    assert first is not None
    assert found["l1"].item() < 0.4 * first
    assert found["psnr_db"].item() >= 24
    assert found["code_usage"].item() >= 0.1
