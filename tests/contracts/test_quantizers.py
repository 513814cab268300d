"""What every quantizer owes the rest of the program."""

import pytest
import torch

from ct3dlib.config import FSQSpec, LFQSpec
from ct3dlib.quantizers import Quantizer, build_quantizer

SPECS = [
    LFQSpec(bits=1),
    LFQSpec(bits=5),
    LFQSpec(bits=18),
    LFQSpec(bits=30),
    FSQSpec(levels=(3,)),
    FSQSpec(levels=(8, 8, 8)),
    FSQSpec(levels=(8, 8, 8), variant="prod9"),
    FSQSpec(levels=(7, 5, 5, 5, 5)),
    FSQSpec(levels=(1024, 1024, 1024)),
]


@pytest.fixture(params=SPECS, ids=str)
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    return build_quantizer(request.param)


@pytest.fixture
def latents(quantizer: Quantizer) -> torch.Tensor:
    torch.manual_seed(0)
    return 2 * torch.randn(2, quantizer.channels, 3, 4, 5)


def test_indices_lie_in_the_codebook(quantizer: Quantizer, latents: torch.Tensor):
    indices = quantizer(latents).indices
    assert indices.shape == (2, 3, 4, 5)
    assert indices.dtype == torch.int64
    assert int(indices.min()) >= 0
    assert int(indices.max()) < quantizer.codebook_size <= 2**quantizer.bits


def test_codes_to_indices_to_codes_is_the_identity(quantizer: Quantizer, latents: torch.Tensor):
    quantized = quantizer(latents)
    assert torch.equal(quantizer.indices_to_codes(quantized.indices), quantized.codes)


def test_indices_to_codes_to_indices_is_the_identity(quantizer: Quantizer):
    indices = torch.randint(0, quantizer.codebook_size, (2, 3, 4, 5))
    assert torch.equal(quantizer.codes_to_indices(quantizer.indices_to_codes(indices)), indices)


def test_a_position_is_quantized_on_its_own(quantizer: Quantizer, latents: torch.Tensor):
    one = latents[1:, :, 2:, 3:, 4:]
    assert torch.equal(quantizer(one).indices, quantizer(latents).indices[1:, 2:, 3:, 4:])


def test_the_gradient_reaches_every_latent(quantizer: Quantizer, latents: torch.Tensor):
    latents.requires_grad_()
    quantizer(latents).codes.sum().backward()
    assert (latents.grad != 0).all()


def test_half_precision_latents_are_quantized_in_float32(
    quantizer: Quantizer, latents: torch.Tensor
):
    halves = latents.bfloat16()
    quantized = quantizer(halves)
    assert quantized.codes.dtype == torch.float32
    assert torch.equal(quantized.indices, quantizer(halves.float()).indices)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_are_refused(
    quantizer: Quantizer, latents: torch.Tensor, value: float
):
    latents[0, 0, 1, 2, 3] = value
    with pytest.raises(
        FloatingPointError, match=r"1 of .* latents are not finite; check the volumes"
    ):
        quantizer(latents)


def test_quantizers_have_no_state(quantizer: Quantizer):
    assert not quantizer.state_dict()


def test_a_sequence_is_looked_up_as_its_grid(quantizer: Quantizer):
    indices = torch.randint(0, quantizer.codebook_size, (2, 3, 4, 5))
    sequence = quantizer.indices_to_codes(indices.flatten(1))  # B C K, row by row
    assert torch.equal(sequence, quantizer.indices_to_codes(indices).flatten(2))
