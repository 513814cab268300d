import pytest
import torch
import vector_quantize_pytorch

from ct3dlib.config import LFQSpec
from ct3dlib.quantizers import LFQ, build_quantizer


def index_of(latent: list[float]) -> int:
    return int(LFQ(LFQSpec(bits=len(latent)))(torch.tensor(latent).view(1, -1, 1, 1, 1)).indices)


def test_channel_0_is_the_most_significant_bit():
    assert index_of([0.1] + [-0.1] * 17) == 131072
    assert index_of([-0.1] * 17 + [0.1]) == 1
    assert index_of([5.0, -1e-9, 1e-9]) == 0b101


@pytest.mark.parametrize("bits", [1, 10, 18])
def test_ids_and_codes_are_those_of_the_published_method(bits: int):
    latents = torch.randn(2, bits, 10, 20, 30, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        peer = vector_quantize_pytorch.LFQ(dim=bits, codebook_size=2**bits).eval()
        codes, indices, _ = peer(latents)
    ours = LFQ(LFQSpec(bits=bits))(latents)
    assert torch.equal(ours.indices, indices.long())
    assert torch.equal(ours.codes, codes)


def test_zero_is_minus_one():
    quantized = LFQ(LFQSpec(bits=2))(torch.zeros(1, 2, 1, 1, 1))
    assert quantized.codes.flatten().tolist() == [-1, -1]
    assert int(quantized.indices) == 0


def test_codes_are_exact_signs_however_large_the_latents():
    latents = torch.tensor([1e-30, -3e7, 0.1]).view(1, 3, 1, 1, 1).requires_grad_()
    assert LFQ(LFQSpec(bits=3))(latents).codes.flatten().tolist() == [1, -1, 1]


def test_quantizing_codes_again_changes_nothing():
    torch.manual_seed(0)
    quantizer = LFQ(LFQSpec(bits=5))
    codes = quantizer(torch.randn(2, 5, 3, 4, 5)).codes
    assert torch.equal(quantizer(codes).codes, codes)


def test_gradient_passes_straight_through():
    latents = torch.randn(1, 3, 2, 2, 2, requires_grad=True)
    weights = torch.randn(1, 3, 2, 2, 2)
    (LFQ(LFQSpec(bits=3))(latents).codes * weights).sum().backward()
    assert torch.equal(latents.grad, weights)


def test_lookup_inverts_indices_of_the_published_codebook():
    quantizer = build_quantizer(LFQSpec(bits=18))
    indices = torch.randint(0, 2**18, (1, 10, 100, 100))
    codes = quantizer.indices_to_codes(indices)
    assert set(codes.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(quantizer.codes_to_indices(codes), indices)
    assert quantizer.bits == 18


def test_indices_outside_the_codebook_are_refused():
    with pytest.raises(ValueError, match="indices span 0 to 8, the codebook has 0 to 7"):
        LFQ(LFQSpec(bits=3)).indices_to_codes(torch.tensor([[[[0, 8]]]]))
