import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ct3dlib.losses.contrastive import contrastive_loss, cross_entropies, similarities


def _unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=-1)


def test_the_loss_of_two_pairs_by_hand():
    left = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    right = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # Cosines are 1 and 0.6, 0 and 0.8; times 2.
    rows = [math.log(1 + math.exp(1.2 - 2)), math.log(1 + math.exp(0 - 1.6))]
    loss = contrastive_loss(left, right, positives=torch.eye(2).bool(), scale=torch.tensor([2.0]))
    assert loss.item() == pytest.approx(sum(rows) / 2)


def test_without_positives_twice_it_is_the_loss_of_clip():
    left, right = _unit(6, 16), _unit(6, 16, seed=1)
    wanted = F.cross_entropy(5 * left @ right.T, torch.arange(6))
    loss = contrastive_loss(left, right, positives=torch.eye(6).bool(), scale=torch.tensor(5.0))
    torch.testing.assert_close(loss, wanted)


def test_unrelated_vectors_cost_the_logarithm_of_their_number():
    items = 32
    left, right = _unit(items, 768), _unit(items, 768, seed=1)
    loss = contrastive_loss(
        left, right, positives=torch.eye(items).bool(), scale=torch.tensor(1 / 0.07)
    )
    assert loss.item() == pytest.approx(math.log(items), rel=0.1)


def test_several_positives_share_the_target():
    left, right = _unit(5, 8), _unit(7, 8, seed=1)
    positives = torch.rand(5, 7, generator=torch.Generator().manual_seed(2)) < 0.4
    positives[:, 0] = True
    targets = positives / positives.sum(1, keepdim=True)
    wanted = F.cross_entropy(3 * left @ right.T, targets)
    loss = contrastive_loss(left, right, positives=positives, scale=torch.tensor(3.0))
    torch.testing.assert_close(loss, wanted)


def test_items_of_one_text_are_not_pushed_apart():
    # Two items with the same text: told apart, they could not cost less than ln 2.
    text = _unit(1, 8).expand(2, 8)
    everything = torch.ones(2, 2, dtype=torch.bool)
    scans = text.clone().requires_grad_()
    loss = contrastive_loss(scans, text, positives=everything, scale=torch.tensor(10.0))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert scans.grad is not None
    assert scans.grad.abs().max() < 1e-6


def test_rows_in_parts_have_the_mean_of_the_whole():
    left, right = _unit(8, 4), _unit(8, 4, seed=1)
    positives, scale = torch.eye(8).bool(), torch.tensor(4.0)
    whole = contrastive_loss(left, right, positives=positives, scale=scale)
    parts = [
        contrastive_loss(left[part], right, positives=positives[part], scale=scale)
        for part in (slice(0, 4), slice(4, 8))
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_products_are_float32_under_autocast_and_double_stays():
    left, right = _unit(3, 64), _unit(3, 64, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = similarities(left, right, torch.tensor(1.0))
        half = similarities(left.bfloat16(), right.bfloat16(), torch.tensor(1.0))
    assert found.dtype == half.dtype == torch.float32
    torch.testing.assert_close(found, left @ right.T, rtol=0, atol=1e-7)
    assert similarities(left.double(), right.double(), torch.tensor(1.0)).dtype == torch.float64


def test_a_row_without_positives_costs_nothing():
    logits = torch.tensor([[1.0, -torch.inf], [1.0, 2.0]], requires_grad=True)
    positives = torch.tensor([[True, False], [False, False]])
    costs = cross_entropies(logits, positives)
    costs.sum().backward()
    assert costs.tolist() == [0, 0]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
