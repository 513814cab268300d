"""What every autoencoder with a quantizer owes the rest of the program."""

import pytest
import torch

from ct3dlib.config import (
    AutoencoderSpec,
    CausalTokenizerSpec,
    FSQSpec,
    LFQSpec,
    MaisiTokenizerSpec,
    QuantizerSpec,
)
from ct3dlib.models import build_autoencoder
from ct3dlib.models.autoencoder import VolumeAutoencoder


def causal(quantizer: QuantizerSpec) -> CausalTokenizerSpec:
    return CausalTokenizerSpec(
        filters=4,
        num_res_blocks=1,
        channel_multipliers=(1, 2),
        temporal_downsample=(True,),
        norm_groups=2,
        quantizer=quantizer,
    )


def maisi(quantizer: QuantizerSpec) -> MaisiTokenizerSpec:
    return MaisiTokenizerSpec(
        num_channels=(4, 8, 8),
        num_res_blocks=(1, 1, 1),
        attention_levels=(False, False, True),
        norm_groups=2,
        quantizer=quantizer,
    )


LFQ, FSQ = LFQSpec(bits=6), FSQSpec(levels=(8, 5, 5))
SPECS = {
    "causal-lfq": causal(LFQ),
    "causal-fsq": causal(FSQ),
    "maisi-lfq": maisi(LFQ),
    "maisi-fsq": maisi(FSQ),
}


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> AutoencoderSpec:
    return SPECS[request.param]


@pytest.fixture
def model(spec: AutoencoderSpec) -> VolumeAutoencoder:
    torch.manual_seed(0)
    return build_autoencoder(spec).eval()


@pytest.fixture
def volumes(model: VolumeAutoencoder) -> torch.Tensor:
    """Volumes of no round shape, padded as the model asks."""
    torch.manual_seed(1)
    shape = [n + p for n, p in zip((10, 7, 11), model.padding((10, 7, 11)), strict=True)]
    return torch.rand(2, 1, *shape) * 2 - 1


def test_volumes_come_back_in_their_shape(model: VolumeAutoencoder, volumes: torch.Tensor):
    result = model(volumes)
    assert result.volumes.shape == volumes.shape
    assert result.volumes.isfinite().all()
    assert result.posterior is None


def test_what_is_decoded_is_what_the_indices_say(model: VolumeAutoencoder, volumes: torch.Tensor):
    result = model(volumes)
    assert torch.equal(model.decode_indices(result.quantized.indices), result.volumes)
    assert torch.equal(model.decode(result.quantized.codes), result.volumes)
    assert torch.equal(model.tokens(result.latents).indices, result.quantized.indices)


def test_padding_is_the_least_that_fits(model: VolumeAutoencoder, volumes: torch.Tensor):
    padding = model.padding(volumes.shape[2:])
    assert padding == (0, 0, 0)
    for axis, step in enumerate(model.downsampling):
        shape = list(volumes.shape[2:])
        shape[axis] += 1
        assert model.padding(shape)[axis] == step - 1
        with pytest.raises(ValueError, match=r"volumes have .* voxels; this tokenizer needs"):
            model.encode(torch.zeros(1, 1, *shape))


def test_the_gradient_reaches_encoder_and_decoder(model: VolumeAutoencoder, volumes: torch.Tensor):
    result = model(volumes)
    (result.volumes - volumes).abs().mean().backward()
    assert model.last_layer().grad.abs().max() > 0
    for module in model.encoding_modules():
        assert max(p.grad.abs().max() for p in module.parameters()) > 0


def test_latents_that_are_not_finite_stop_the_pass(model: VolumeAutoencoder, volumes: torch.Tensor):
    volumes[1, 0, 4, 3, 5] = float("nan")
    with pytest.raises(FloatingPointError, match="latents are not finite"):
        model(volumes)


def test_half_precision_makes_ids_of_its_latents_and_no_others(
    model: VolumeAutoencoder, volumes: torch.Tensor
):
    with torch.autocast("cpu", torch.bfloat16):
        result = model(volumes)
    assert result.quantized.codes.dtype == torch.float32
    assert torch.equal(result.quantized.indices, model.tokens(result.latents).indices)
    assert result.volumes.isfinite().all()
