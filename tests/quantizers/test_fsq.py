import math

import pytest
import torch
import vector_quantize_pytorch
from pydantic import ValidationError

from ct3dlib.config import FSQSpec
from ct3dlib.quantizers import FSQ, build_quantizer

PUBLISHED = {
    (8, 6, 5): 240,
    (8, 8, 8): 512,
    (8, 5, 5, 5): 1000,
    (6, 6, 6, 5): 1080,
    (7, 5, 5, 5, 5): 4375,
    (8, 8, 8, 6, 5): 15360,
}
VARIANTS = ("fsq", "prod9")


def fsq(levels: tuple[int, ...], variant: str = "fsq") -> FSQ:
    return FSQ(FSQSpec(levels=levels, variant=variant))


def column(*latent: float) -> torch.Tensor:
    return torch.tensor(latent, dtype=torch.float32).view(1, -1, 1, 1, 1)


def line(levels: tuple[int, ...], positions: int) -> torch.Tensor:
    """Latents that differ along D only: the digits of all channels rise together."""
    ramp = torch.linspace(-12, 12, positions).view(1, 1, -1, 1, 1)
    return ramp.expand(1, len(levels), -1, 1, 1)


def randn(levels: tuple[int, ...], positions: int, *, scale: float = 1) -> torch.Tensor:
    torch.manual_seed(0)
    return scale * torch.randn(1, len(levels), positions, 1, 1)


@pytest.mark.parametrize(
    ("levels", "values"),
    [
        (5, [-1, -0.5, 0, 0.5, 1]),
        (8, [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75]),
        (2, [-1, 0]),
    ],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_channel_has_its_levels_and_even_ones_reach_further_down(
    levels: int, values: list[float], variant: str
):
    codes = fsq((levels,), variant)(line((levels,), 20_001)).codes
    assert codes.unique().tolist() == values


def test_channel_0_is_the_least_significant_digit():
    quantizer = fsq((8, 6, 5))
    assert int(quantizer(column(9, -9, -9)).indices) == 7
    assert int(quantizer(column(-9, 9, -9)).indices) == 8 * 5
    assert int(quantizer(column(-9, -9, 9)).indices) == 8 * 6 * 4
    assert int(quantizer(column(0, 0, 0)).indices) == 4 + 8 * 3 + 8 * 6 * 2
    assert quantizer.indices_to_codes(torch.tensor([[[[7 + 8 * 3]]]])).flatten().tolist() == [
        0.75,
        0,
        -1,
    ]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("levels", "size"), [*PUBLISHED.items(), ((2, 2, 2), 8)])
def test_every_index_has_a_code_of_its_own(levels: tuple[int, ...], size: int, variant: str):
    quantizer = build_quantizer(FSQSpec(levels=levels, variant=variant))
    indices = torch.arange(size).view(1, -1, 1, 1)
    codes = quantizer.indices_to_codes(indices)
    assert quantizer.codebook_size == size
    assert len(codes.flatten(1)[0].view(len(levels), -1).unique(dim=1).T) == size
    assert torch.equal(quantizer.codes_to_indices(codes), indices)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("levels", [2, 3, 4, 5, 6, 7, 8, 9, 100, 999])
def test_every_level_is_reached_and_none_outside(levels: int, variant: str):
    indices = fsq((levels,), variant)(line((levels,), 200_001)).indices
    assert indices.unique().tolist() == list(range(levels))


@pytest.mark.parametrize("levels", [2, 5, 8, 1001, 1024])
def test_latents_however_large_stay_in_the_codebook(levels: int):
    quantized = fsq((levels, levels))(torch.cat((column(1e4, -1e4), column(-1e30, 1e30))))
    assert quantized.indices.flatten().tolist() == [levels - 1, (levels - 1) * levels]
    assert quantized.codes.isfinite().all()


@pytest.mark.parametrize("levels", [*PUBLISHED, (4, 3, 16, 9), (64, 33)], ids=str)
def test_ids_and_codes_are_those_of_the_published_method(levels: tuple[int, ...]):
    latents = randn(levels, 200_000, scale=1.5)
    codes, indices = vector_quantize_pytorch.FSQ(list(levels))(latents)
    ours = fsq(levels)(latents)
    assert torch.equal(ours.indices, indices.long())
    assert (ours.codes - codes).abs().max() < 1e-6


@pytest.mark.parametrize("levels", [(8, 8, 8), (7, 5, 5, 5, 5)], ids=str)
def test_the_variant_bounds_by_a_tangent_and_agrees_almost_everywhere(levels: tuple[int, ...]):
    latents = randn(levels, 20_000)
    found = fsq(levels, "prod9")(latents).indices.flatten()
    for position in range(0, 20_000, 100):
        index, basis = 0, 1
        for level, z in zip(levels, latents[0, :, position, 0, 0].tolist(), strict=True):
            half = (level - 1) * 0.999 / 2
            offset = 0.0 if level % 2 else 0.5
            bounded = math.tanh(z + math.tan(offset / half)) * half - offset
            index += (round(bounded) + level // 2) * basis
            basis *= level
        assert int(found[position]) == index
    agreement = (found == fsq(levels)(latents).indices.flatten()).float().mean()
    assert 0.98 < agreement < 0.995


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_is_that_of_the_bound(variant: str):
    levels = (8, 5, 3)
    quantizer = fsq(levels, variant)
    latents = randn(levels, 500).requires_grad_()
    weights = torch.randn_like(latents)
    (quantizer(latents).codes * weights).sum().backward()
    width = torch.tensor([4.0, 2.0, 1.0]).view(-1, 1, 1, 1)
    (expected,) = torch.autograd.grad((quantizer.bound(latents) / width * weights).sum(), latents)
    assert torch.allclose(latents.grad, expected, atol=1e-6, rtol=0)


def test_gradient_of_saturated_latents_is_zero():
    latents = column(1e4, -1e4).requires_grad_()
    fsq((8, 5))(latents).codes.sum().backward()
    assert latents.grad.flatten().tolist() == [0, 0]


@pytest.mark.parametrize("levels", PUBLISHED, ids=str)
def test_codes_are_points_of_the_lattice_and_keep_their_ids(levels: tuple[int, ...]):
    quantizer = fsq(levels)
    quantized = quantizer(randn(levels, 100_000).requires_grad_())
    assert torch.equal(quantizer.codes_to_indices(quantized.codes), quantized.indices)
    assert torch.equal(quantizer.indices_to_codes(quantized.indices), quantized.codes)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("levels", "survive", "changed"),
    [((8, 8, 8), 216, 448), ((8, 8, 8, 6, 5), 4320, 14_080), ((2, 2, 2), 1, 7)],
)
def test_quantizing_codes_again_would_lose_most_of_the_codebook(
    levels: tuple[int, ...], survive: int, changed: int, variant: str
):
    # Why codes have a way to indices of their own: the bound moves what is bounded already.
    quantizer = fsq(levels, variant)
    indices = torch.arange(quantizer.codebook_size).view(1, -1, 1, 1)
    again = quantizer(quantizer.indices_to_codes(indices)).indices
    assert len(again.unique()) == survive
    assert int((again != indices).sum()) == changed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ids_are_exact_under_autocast(dtype: torch.dtype):
    levels = (8, 8, 8, 6, 5)
    quantizer = fsq(levels)
    latents = randn(levels, 20_000)
    indices = quantizer(latents).indices
    with torch.autocast("cpu", dtype):
        quantized = quantizer(latents)
    assert quantized.indices.dtype == torch.int64
    assert torch.equal(quantized.indices, indices)
    assert torch.equal(quantized.codes, quantizer(latents).codes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codes_that_were_rounded_to_half_precision_keep_their_ids(dtype: torch.dtype):
    quantizer = fsq((7, 8, 8, 6, 5))
    indices = torch.arange(quantizer.codebook_size).view(1, -1, 1, 1)
    codes = quantizer.indices_to_codes(indices).to(dtype)
    assert torch.equal(quantizer.codes_to_indices(codes), indices)


def test_halving_a_model_does_not_change_its_ids():
    levels = (8, 8, 8, 6, 5)
    latents = randn(levels, 20_000)
    assert torch.equal(fsq(levels).bfloat16()(latents).indices, fsq(levels)(latents).indices)


def test_indices_outside_the_codebook_are_refused():
    with pytest.raises(ValueError, match="indices span -1 to 512, the codebook has 0 to 511"):
        fsq((8, 8, 8)).indices_to_codes(torch.tensor([[[[-1, 512]]]]))


@pytest.mark.parametrize("level", [-1, 0, 1])
def test_a_channel_of_fewer_than_two_levels_is_refused(level: int):
    with pytest.raises(ValidationError, match=r"levels\.1\n.*greater than or equal to 2"):
        FSQSpec(levels=(8, level, 8))
