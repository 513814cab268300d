import pytest
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import (
    AutoencoderKlMaisi,
    MaisiGroupNorm3D,
)
from torch import nn

from ct3dlib.config import FSQSpec, LFQSpec, MaisiTokenizerSpec
from ct3dlib.models import build_model
from ct3dlib.models.maisi import MaisiTokenizer, swap_norms_

MILLIONS = {
    "MedMNIST": ((32, 64, 128, 256), (False, False, False, True), 1, 12.3),
    "BraTS": ((32, 64, 128, 256, 512), (False, False, True, True, True), 1, 49.6),
    "BraTS base": ((128, 256, 512, 512), (False, False, False, True), 2, 157.6),
}


def tiny(*, levels: int = 2, num_splits: int = 1, bits: int | None = None) -> MaisiTokenizer:
    """A model that halves its grid `levels` - 1 times and attends on the deepest."""
    torch.manual_seed(0)
    spec = MaisiTokenizerSpec(
        num_channels=tuple(8 * 2 ** min(level, 2) for level in range(levels)),
        num_res_blocks=(1,) * (levels - 1) + (2,),
        attention_levels=(False,) * (levels - 1) + (True,),
        norm_groups=4,
        num_splits=num_splits,
        quantizer=FSQSpec(levels=(8, 5, 5)) if bits is None else LFQSpec(bits=bits),
    )
    return MaisiTokenizer(spec)


def stock(model: MaisiTokenizer, *, num_splits: int = 1) -> AutoencoderKlMaisi:
    """MONAI's own model with the same weights."""
    spec = model.spec
    peer = AutoencoderKlMaisi(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        num_res_blocks=spec.num_res_blocks,
        num_channels=spec.num_channels,
        attention_levels=spec.attention_levels,
        latent_channels=model.tokens.channels,
        norm_num_groups=spec.norm_groups,
        norm_eps=spec.norm_eps,
        num_splits=num_splits,
    )
    missing, unexpected = peer.load_state_dict(model.state_dict(), strict=False)
    assert {key.split(".")[0] for key in missing} == {"quant_conv_log_sigma"}
    assert not unexpected
    return peer


def shake_(model: nn.Module) -> None:
    """Move the weights off their start, where norms do nothing."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)


def test_it_computes_what_monai_computes_with_the_same_weights():
    model = tiny(levels=3)
    shake_(model)
    peer = stock(model)
    volumes = torch.rand(2, 1, 16, 8, 12) * 2 - 1
    latents, _ = peer.encode(volumes)
    assert torch.allclose(model.encode(volumes), latents, atol=1e-5)
    codes = model.tokens(latents.detach()).codes
    assert torch.allclose(model.decode(codes), peer.decode(codes), atol=1e-5)


def test_its_gradients_are_those_of_monai():
    model = tiny()
    shake_(model)
    peer = stock(model)
    volumes = torch.rand(2, 1, 8, 4, 6) * 2 - 1
    model.decode(model.encode(volumes)).square().mean().backward()
    peer.decode(peer.encode(volumes)[0]).square().mean().backward()
    theirs = dict(peer.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-4), name


def test_swapped_norms_keep_their_weights_and_their_output():
    torch.manual_seed(0)
    network = nn.Sequential(MaisiGroupNorm3D(4, 8, eps=1e-3), nn.Sequential(nn.Conv3d(8, 8, 1)))
    shake_(network)
    before = network.state_dict()
    x = 3 * torch.randn(2, 8, 3, 4, 5) + 1
    expected = network(x)
    swap_norms_(network)
    assert type(network[0]) is nn.GroupNorm
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert torch.allclose(network(x), expected, atol=1e-5)


def test_no_norm_of_monai_is_left():
    assert not any(isinstance(module, MaisiGroupNorm3D) for module in tiny(levels=3).modules())


@pytest.mark.parametrize("name", MILLIONS)
def test_known_widths_have_the_known_number_of_parameters(name: str):
    channels, attention, blocks, millions = MILLIONS[name]
    spec = MaisiTokenizerSpec(
        num_channels=channels, num_res_blocks=(blocks,) * len(channels), attention_levels=attention
    )
    with torch.device("meta"):
        model = build_model(spec)
    assert isinstance(model, MaisiTokenizer)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(("levels", "factor"), [(2, 2), (3, 4), (4, 8), (5, 16)])
def test_every_further_level_halves_the_grid(levels: int, factor: int):
    model = tiny(levels=levels)
    volumes = torch.rand(2, 1, 2 * factor, factor, 3 * factor)
    result = model(volumes)
    assert model.downsampling == (factor, factor, factor)
    assert result.latents.shape == (2, 3, 2, 1, 3)
    assert result.quantized.indices.shape == (2, 2, 1, 3)
    assert result.volumes.shape == volumes.shape


@pytest.mark.parametrize("bits", [None, 6], ids=["fsq", "lfq"])
def test_a_training_decodes_the_codes_of_its_indices(bits: int | None):
    model = tiny(bits=bits)
    result = model(torch.rand(2, 1, 8, 6, 4))
    assert torch.equal(model.decode_indices(result.quantized.indices), result.volumes)
    assert torch.equal(model.decode(result.quantized.codes), result.volumes)


def test_the_gradient_passes_the_quantizer_into_every_weight():
    model = tiny(levels=3)
    volumes = torch.rand(1, 1, 8, 8, 12)
    (model(volumes).volumes - volumes).abs().mean().backward()
    for name, parameter in model.named_parameters():
        # A key's bias moves all scores of a query alike, which a softmax does not see.
        assert "to_k.bias" in name or parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("shape", [(8, 8, 10), (7, 8, 8), (8, 6, 8), (3, 4, 4)], ids=str)
def test_shapes_that_do_not_fill_latents_are_refused(shape: tuple[int, int, int]):
    model = tiny(levels=3)
    with pytest.raises(
        ValueError, match=rf"volumes have \({shape[0]}, .* voxels; .* multiples of 4: crop or pad"
    ):
        model.encode(torch.zeros(1, 1, *shape))
    padded = [n + p for n, p in zip(shape, model.padding(shape), strict=True)]
    assert model.encode(torch.zeros(1, 1, *padded)).shape[1] == 3


@pytest.mark.parametrize(
    ("levels", "num_splits", "shape"),
    [
        (2, 2, (16, 16, 16)),
        (2, 2, (20, 16, 18)),
        (2, 3, (24, 24, 24)),
        (3, 2, (32, 32, 32)),
    ],
    ids=str,
)
@torch.no_grad()
def test_convolutions_in_parts_give_the_same(
    levels: int, num_splits: int, shape: tuple[int, int, int]
):
    model, parts = tiny(levels=levels), tiny(levels=levels, num_splits=num_splits)
    volumes = torch.rand(1, 1, *shape)
    latents = model.encode(volumes)
    assert torch.allclose(parts.encode(volumes), latents, atol=1e-4)
    codes = model.tokens(latents).codes
    assert torch.allclose(parts.decode(codes), model.decode(codes), atol=1e-4)


def test_a_crop_of_64_is_too_small_for_16_parts():
    model = tiny(levels=4, num_splits=16)
    with pytest.raises(
        ValueError,
        match=r"volumes have \(64, 64, 64\) voxels; num_splits 16 needs at least "
        r"\(512, 512, 512\) and D a multiple of 128: take larger crops or num_splits 1",
    ):
        model(torch.zeros(1, 1, 64, 64, 64))


def test_five_levels_in_two_parts_refuse_a_crop_of_64():
    model = tiny(levels=5, num_splits=2)
    # MONAI's own would give half of the latents along D without a word.
    with pytest.raises(ValueError, match=r"num_splits 2 needs at least \(128, 128, 128\) and D"):
        model(torch.zeros(1, 1, 64, 64, 64))


def test_parts_that_would_lose_voxels_are_refused_on_both_ways():
    model = tiny(num_splits=2)
    volumes = torch.zeros(1, 1, 18, 16, 16)
    assert stock(model, num_splits=2).encode(volumes)[0].shape[2] == 8  # of 9
    wanted = r"num_splits 2 needs .* and D a multiple of 4"
    with pytest.raises(ValueError, match=rf"volumes have \(18, 16, 16\) voxels; {wanted}"):
        model.encode(volumes)
    with pytest.raises(ValueError, match=rf"volumes have \(18, 16, 16\) voxels; {wanted}"):
        model.decode(torch.zeros(1, 3, 9, 8, 8))


@pytest.mark.parametrize(
    ("shape", "padding"),
    [((9, 16, 19), (7, 0, 1)), ((18, 3, 16), (2, 13, 0)), ((16,) * 3, (0,) * 3)],
)
def test_padding_leads_to_a_shape_that_parts_fit(
    shape: tuple[int, int, int], padding: tuple[int, int, int]
):
    model = tiny(num_splits=2)
    assert model.padding(shape) == padding
    padded = [n + p for n, p in zip(shape, padding, strict=True)]
    assert model.encode(torch.zeros(1, 1, *padded)).shape[2:] == tuple(n // 2 for n in padded)


def test_the_last_layer_makes_the_volumes():
    model = tiny()
    codes = torch.rand(1, 3, 2, 3, 4)
    assert model.last_layer().shape == (1, 8, 3, 3, 3)
    with torch.no_grad():
        model.last_layer().zero_()
    assert len(model.decode(codes).unique()) == 1


def test_blocks_are_the_residual_blocks_of_both_halves():
    assert len(tiny(levels=3).blocks()) == 2 * (1 + 1 + 2)


def test_encoding_modules_hold_all_that_latents_depend_on():
    model = tiny()
    model.encode(torch.rand(1, 1, 4, 4, 6)).square().sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    for module in model.encoding_modules():
        module.requires_grad_(False)
    assert reached == {name for name, p in model.named_parameters() if not p.requires_grad}
