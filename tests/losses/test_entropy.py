import itertools
import math

import pytest
import torch
import vector_quantize_pytorch

from ct3dlib.losses.entropy import (
    batch_entropy,
    code_probabilities,
    commitment,
    sample_entropy,
)


def full_softmax(latents: torch.Tensor, sharpness: float) -> torch.Tensor:
    """Return p(code | token), N K, by the definition."""
    codes = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=latents.shape[1])))
    tokens = latents.movedim(1, -1).flatten(0, -2)
    return torch.softmax(2 * sharpness * tokens @ codes.T, dim=1)


@pytest.mark.parametrize("sharpness", [0.5, 10.0, 100.0])
def test_entropies_equal_those_of_the_full_softmax(sharpness: float):
    torch.manual_seed(0)
    latents = 0.02 * torch.randn(2, 3, 2, 3, 4)
    p = full_softmax(latents, sharpness)
    per_token = -(p * p.clamp_min(1e-30).log()).sum(1).mean()
    of_mean = -(p.mean(0) * p.mean(0).log()).sum()
    assert sample_entropy(latents, sharpness=sharpness).item() == pytest.approx(
        per_token.item(), abs=1e-4
    )
    assert batch_entropy(code_probabilities(latents, sharpness=sharpness)).item() == pytest.approx(
        of_mean.item(), abs=1e-4
    )


def test_terms_are_those_of_the_published_method():
    latents = 0.02 * torch.randn(2, 10, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    peer = vector_quantize_pytorch.LFQ(dim=10, codebook_size=1024, commitment_loss_weight=1.0)
    codes = torch.where(latents > 0, 1.0, -1.0)
    _, terms = peer.train()(latents, inv_temperature=100.0, return_loss_breakdown=True)
    # Theirs lifts probabilities off 0, which costs the digits after the third.
    assert sample_entropy(latents, sharpness=100.0).item() == pytest.approx(
        terms.per_sample_entropy.item(), rel=1e-3
    )
    assert batch_entropy(code_probabilities(latents, sharpness=100.0)).item() == pytest.approx(
        terms.batch_entropy.item(), rel=1e-3
    )
    assert commitment(latents, codes).item() == pytest.approx(terms.commitment.item(), rel=1e-5)


def test_code_probabilities_are_in_the_order_of_indices():
    latents = torch.tensor([[1.0, -1.0, -1.0], [1.0, 1.0, -1.0]]).T.view(1, 3, 2, 1, 1)
    (p,) = code_probabilities(latents, sharpness=100.0)
    expected = torch.zeros(8)
    expected[0b100] = expected[0b110] = 0.5
    torch.testing.assert_close(p, expected)


def test_undecided_latents_have_one_bit_of_entropy_a_channel():
    assert sample_entropy(torch.zeros(1, 4, 1, 1, 2), sharpness=1.0).item() == pytest.approx(
        4 * math.log(2)
    )
    assert sample_entropy(torch.full((1, 4, 1, 1, 2), -3.0), sharpness=100.0).item() == 0


def test_evenly_used_codes_reach_the_log_of_their_number():
    every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)))
    latents = every.T.reshape(1, 4, 16, 1, 1)
    assert batch_entropy(code_probabilities(latents, sharpness=100.0)).item() == pytest.approx(
        math.log(16), rel=1e-5
    )
    same = torch.ones(1, 4, 16, 1, 1)
    assert batch_entropy(code_probabilities(same, sharpness=100.0)).item() == pytest.approx(
        0, abs=1e-6
    )


def test_many_bits_are_split_into_groups_that_bound_the_entropy():
    latents = torch.randn(1, 18, 8, 8, 8)
    groups = code_probabilities(latents, sharpness=100.0)
    assert [len(p) for p in groups] == [512, 512]
    halves = [code_probabilities(part, sharpness=100.0)[0] for part in latents.split(9, dim=1)]
    for p, half in zip(groups, halves, strict=True):
        torch.testing.assert_close(p, half)
        assert p.sum().item() == pytest.approx(1, rel=1e-5)
    assert batch_entropy(groups).item() > math.log(512)  # that of 512 different tokens


def test_entropies_have_finite_gradients_where_codes_are_certain():
    latents = torch.tensor([1e4, -1e4, 0.0, 1.0]).view(1, 4, 1, 1, 1).requires_grad_()
    probabilities = code_probabilities(latents, sharpness=100.0)
    (sample_entropy(latents, sharpness=100.0) - batch_entropy(probabilities)).backward()
    assert torch.isfinite(latents.grad).all()


def test_autocast_changes_nothing():
    latents = 0.01 * torch.randn(1, 4, 4, 4, 4)
    expected = batch_entropy(code_probabilities(latents, sharpness=100.0))
    with torch.autocast("cpu", torch.bfloat16):
        found = batch_entropy(code_probabilities(latents, sharpness=100.0))
    assert torch.equal(found, expected)


def test_gradient_descent_decides_tokens_and_spreads_codes():
    torch.manual_seed(0)
    latents = (0.01 * torch.randn(1, 2, 64, 1, 1) + 0.002).requires_grad_()
    optimizer = torch.optim.Adam([latents], lr=1e-3)
    for _ in range(100):
        shares = code_probabilities(latents, sharpness=100.0)
        loss = sample_entropy(latents, sharpness=100.0) - batch_entropy(shares)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() == pytest.approx(-math.log(4), abs=0.05)


def test_commitment_pulls_latents_alone():
    latents = torch.tensor([0.5, -2.0]).view(1, 2, 1, 1, 1).requires_grad_()
    codes = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1, 1).requires_grad_()
    value = commitment(latents, codes)
    value.backward()
    assert value.item() == pytest.approx((0.25 + 1) / 2)
    assert latents.grad.flatten().tolist() == pytest.approx([-0.5, -1.0])
    assert codes.grad is None
