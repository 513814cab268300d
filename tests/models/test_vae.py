from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from ct3dlib.config import KLAutoencoderSpec, LatentAttentionSpec
from ct3dlib.config.autoencoder import Activation, Norm
from ct3dlib.models import build_model
from ct3dlib.models.exported import load_model, save_model
from ct3dlib.models.vae import KLAutoencoder, ResidualBlock

UPSAMPLES = get_args(KLAutoencoderSpec.model_fields["upsample"].annotation)
FINAL = get_args(KLAutoencoderSpec.model_fields["final_activation"].annotation)
FINAL_ACTIVATIONS = get_args(FINAL[0])
BOUNDS = {"tanh": (-1, 1), "sigmoid": (0, 1), "relu": (0, None), "softplus": (0, None)}


def tiny(**settings) -> KLAutoencoder:
    """Return a model of 4x along each axis, or what the settings say."""
    torch.manual_seed(0)
    fields = {
        "init_filters": 4,
        "smallest_filters": 6,
        "latent_channels": 3,
        "blocks_down": (1, 1),
        "blocks_up": (1,),
        "norm_groups": 2,
        "res_block_weight": 0.5,
    }
    return KLAutoencoder(KLAutoencoderSpec(**{**fields, **settings}))


@pytest.fixture
def model() -> KLAutoencoder:
    return tiny().eval()


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_default_is_as_large_as_its_model_and_keeps_1024_voxels_in_a_value():
    model = KLAutoencoder(KLAutoencoderSpec())
    # The default of the 3D VAE framework has 1.32 M.
    assert parameters(model) == 1_331_433
    volumes = torch.randn(1, 1, 32, 32, 32)
    result = model(volumes)
    assert result.volumes.shape == volumes.shape
    assert result.latents.numel() * 1024 == volumes.numel()
    assert result.quantized is None


def test_attention_costs_what_it_holds_and_nothing_where_it_is_off():
    with torch.device("meta"):
        without = KLAutoencoder(KLAutoencoderSpec())
        attending = KLAutoencoder(KLAutoencoderSpec(attention=LatentAttentionSpec()))
    # 64 channels, 3 heads of 32: norm 2 x 64, query, key, value 64 x 288, output 96 x 64 + 64.
    assert parameters(attending) - parameters(without) == 24_768


@pytest.mark.parametrize(
    "settings",
    [
        {"blocks_down": (1,), "blocks_up": ()},
        {"blocks_down": (0, 1, 0), "blocks_up": (0, 2)},
        {"strides": ((1, 2, 2),), "latent_stride": (1, 2, 2)},
        {"strides": ((3, 2, 1),), "latent_stride": (1, 4, 5)},
        {"strides": ((1, 1, 1),), "latent_stride": (1, 1, 1)},
        {"spatial_dims": 2},
        {"spatial_dims": 2, "strides": ((1, 3, 1),), "latent_stride": (1, 1, 4)},
    ],
    ids=lambda settings: ",".join(f"{key}={value}" for key, value in settings.items()),
)
@pytest.mark.parametrize("upsample", UPSAMPLES)
def test_every_stride_gives_the_shape_back_exactly(settings: dict, upsample: str):
    model = tiny(upsample=upsample, **settings)
    shape = tuple(n * step for n, step in zip((3, 1, 2), model.downsampling, strict=True))
    volumes = torch.randn(2, 1, *shape)
    result = model(volumes)
    assert result.volumes.shape == volumes.shape
    assert result.latents.shape == result.posterior.std.shape == (2, 3, 3, 1, 2)


@pytest.mark.parametrize("stride", [(2, 2, 2), (3, 4, 5), (1, 2, 6)])
def test_no_voxel_is_skipped_on_the_way_to_the_latents(stride: tuple[int, int, int]):
    conv = tiny(latent_stride=stride).encoder.bottleneck[-1]
    nn.init.ones_(conv.weight)
    voxels = torch.randn(1, conv.in_channels, *(3 * step for step in stride), requires_grad=True)
    result = conv(voxels)
    assert result.shape[2:] == (3, 3, 3)
    result.sum().backward()
    assert (voxels.grad >= 1).all()


def test_shapes_that_do_not_fill_latents_are_refused(model: KLAutoencoder):
    for call in (model, model.encode):
        with pytest.raises(
            ValueError, match=r"\(4, 6, 8\) voxels; this model needs multiples of \(4, 4, 4\): crop"
        ):
            call(torch.zeros(1, 1, 4, 6, 8))


def test_any_size_goes_through_padded_and_comes_back_cropped(model: KLAutoencoder):
    volumes = torch.randn(1, 1, 15, 33, 33)
    depth, height, width = model.padding(volumes.shape[2:])
    assert (depth, height, width) == (1, 3, 3)
    padded = nn.functional.pad(volumes, (0, width, 0, height, 0, depth))
    assert model(padded).volumes[:, :, :15, :33, :33].shape == volumes.shape


@pytest.mark.parametrize("upsample", UPSAMPLES)
@pytest.mark.parametrize(
    ("norm", "activation"), list(product(get_args(Norm), get_args(Activation)))
)
def test_every_norm_activation_and_upsampling_trains_at_batch_size_1(
    norm: str, activation: str, upsample: str
):
    model = tiny(norm=norm, activation=activation, upsample=upsample)
    volumes = torch.randn(1, 1, 8, 4, 4)
    result = model(volumes)
    loss = (result.volumes - volumes).square().mean() + result.posterior.std.log().square().mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
    assert model.last_layer().grad.abs().sum() > 0


@pytest.mark.parametrize("name", FINAL_ACTIVATIONS)
def test_the_final_activation_is_what_voxels_go_through_last(name: str):
    low, high = BOUNDS.get(name, (None, None))
    raw, ranged = tiny(final_activation=None).eval(), tiny(final_activation=name).eval()
    with torch.no_grad():
        for each in (raw, ranged):
            each.last_layer().mul_(30)
        latents = torch.randn(1, 3, 2, 2, 2)
        before, after = raw.decode(latents), ranged.decode(latents)
    assert before.min() < -1
    assert before.max() > 1
    assert torch.equal(after, getattr(nn.functional, name)(before))
    assert low is None or after.min() >= low
    assert high is None or after.max() <= high


@pytest.mark.parametrize(
    ("log_variance", "bias", "std"),
    [
        (False, 0.5, np.log1p(np.exp(0.5)) + 1e-6),
        (False, -100.0, 1e-6),
        (True, 0.5, np.exp(0.25)),
        (True, -100.0, np.exp(-15)),
        (True, 100.0, np.exp(10)),
    ],
)
def test_deviations_match_hand_computation(log_variance: bool, bias: float, std: float):
    model = tiny(log_variance=log_variance).eval()
    nn.init.zeros_(model.encoder.spread.weight)
    nn.init.constant_(model.encoder.spread.bias, bias)
    found = model.posterior(torch.randn(1, 1, 4, 4, 8)).std
    torch.testing.assert_close(found, torch.full((1, 3, 1, 1, 2), std), rtol=1e-5, atol=0)


@pytest.mark.parametrize("std", [0.0, 0.3])
def test_a_fixed_deviation_is_not_predicted(std: float):
    model = tiny(fixed_std=std)
    assert not any("spread" in name for name, _ in model.named_parameters())
    assert (model.posterior(torch.randn(1, 1, 4, 4, 4)).std == std).all()


def test_training_decodes_a_draw_and_evaluation_the_mean(model: KLAutoencoder):
    volumes = torch.randn(2, 1, 4, 8, 8)
    posterior = model.posterior(volumes)
    torch.manual_seed(7)
    noise = torch.randn(posterior.mean.shape)
    drawn = model.decode(posterior.mean + posterior.std * noise)
    torch.manual_seed(7)
    result = model.train()(volumes)
    torch.testing.assert_close(result.volumes, drawn)
    assert torch.equal(result.latents, posterior.mean)
    assert torch.equal(result.posterior.std, posterior.std)
    state = torch.get_rng_state()
    still = model.eval()(volumes)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(still.volumes, model.decode(model.encode(volumes)))
    assert (still.volumes - drawn).abs().max() > 1e-3


def test_mean_and_deviation_learn_through_a_draw():
    model = tiny()
    model(torch.randn(1, 1, 4, 8, 8)).volumes.square().mean().backward()
    for head in (model.encoder.mean, model.encoder.spread):
        assert head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("window", [None, (2, 3)])
@pytest.mark.parametrize("norm", ["group", "instance", "layer"])
def test_a_2d_model_takes_every_slice_on_its_own(norm: str, window: tuple[int, int] | None):
    attention = LatentAttentionSpec(num_heads=1, head_size=4, window=window)
    model = tiny(spatial_dims=2, norm=norm, attention=attention).eval()
    volumes = torch.randn(2, 1, 5, 12, 16)
    assert model.downsampling == (1, 4, 4)
    together = model(volumes)
    apart = [model(volumes[:, :, d : d + 1]) for d in range(5)]
    for name in ("volumes", "latents"):
        joined = torch.cat([getattr(one, name) for one in apart], dim=2)
        torch.testing.assert_close(getattr(together, name), joined, rtol=1e-4, atol=1e-5)
    assert together.latents.shape == (2, 3, 5, 3, 4)


def test_the_prior_is_decoded_from_standard_normal_latents(model: KLAutoencoder):
    latents = torch.randn((2, 3, 2, 1, 3), generator=torch.Generator().manual_seed(5))
    state = torch.get_rng_state()
    volumes = model.sample_prior(2, (2, 1, 3), generator=torch.Generator().manual_seed(5))
    assert torch.equal(volumes, model.decode(latents))
    assert not volumes.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_a_residual_block_adds_its_weighted_branch():
    block = ResidualBlock(tiny(res_block_weight=0.25).spec, 4)
    x = torch.randn(1, 4, 2, 3, 4)
    torch.testing.assert_close(block(x) - x, 0.25 * block.residual(x))
    torch.testing.assert_close(block.residual[0](x), nn.functional.group_norm(x, 2))


def test_levels_hold_the_blocks_of_the_spec_the_decoder_from_the_coarsest():
    model = tiny(blocks_down=(1, 0, 2), blocks_up=(3, 1))
    widths = [block.residual[2].in_channels for block in model.blocks()]
    assert widths == [4, 16, 16, 8, 8, 8, 4]


def test_encoder_and_decoder_are_all_that_is_trained(model: KLAutoencoder):
    (encoder,) = model.encoding_modules()
    for parameter in model.decoder.parameters():
        nn.init.zeros_(parameter)
    assert model.encode(torch.randn(1, 1, 4, 4, 4)).abs().sum() > 0
    assert parameters(encoder) + parameters(model.decoder) == parameters(model)


def test_latents_are_float32_under_bfloat16(model: KLAutoencoder):
    volumes = torch.randn(1, 1, 8, 8, 8)
    exact = model(volumes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(volumes)
    assert rough.posterior.mean.dtype == rough.posterior.std.dtype == torch.float32
    assert (rough.volumes - exact.volumes).abs().max() < 0.05


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_norms_over_a_single_position_are_refused(norm: str):
    model = tiny(norm=norm, blocks_down=(1, 1), blocks_up=(1,), latent_stride=(1, 1, 1))
    with pytest.raises(ValueError, match=r"Expected more than 1 .* when training"):
        model(torch.randn(1, 1, 2, 2, 2))


def test_batch_norm_makes_no_difference_between_volumes_in_evaluation():
    model = tiny(norm="batch").eval()
    volumes = torch.randn(3, 1, 4, 4, 8)
    torch.testing.assert_close(model.encode(volumes)[1:2], model.encode(volumes[1:2]))


def test_a_model_without_quantizer_has_no_tokens(model: KLAutoencoder):
    with pytest.raises(TypeError, match="a model of the name vae has latents and no tokens"):
        model.decode_indices(torch.zeros(1, 1, 1, 1, dtype=torch.int64))


def test_a_saved_model_is_rebuilt_from_its_files(tmp_path):
    window = LatentAttentionSpec(window=(2, 2, 2), relative_bias=True, num_heads=1)
    model = tiny(attention=window, norm="batch", upsample="pixelshuffle_v2").eval()
    save_model(tmp_path, model, spec=model.spec, contract={}, training={})
    loaded = load_model(tmp_path)
    assert loaded.spec == model.spec
    volumes = torch.randn(1, 1, 4, 8, 12)
    assert torch.equal(loaded.module(volumes).volumes, model(volumes).volumes)
    assert isinstance(build_model(model.spec), KLAutoencoder)


def test_a_model_learns_one_crop():
    model = tiny(init_filters=8, latent_channels=8, res_block_weight=1.0)
    axes = torch.linspace(-1, 1, 16)
    volumes = torch.sin(3 * axes[:, None, None] + 2 * axes[:, None] * axes)[None, None] / 2
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        loss = (model(volumes).volumes - volumes).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
