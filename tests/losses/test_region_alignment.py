import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ct3dlib.losses.region_alignment import (
    region_alignment_loss,
    region_positives,
    within_scan_loss,
)

ONE = torch.tensor([1.0])


def _unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def _drawn(*shape: int, share: float, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def test_positives_are_items_of_one_text_and_all_that_are_normal():
    same = torch.eye(3).bool()
    normal = torch.tensor([[True, False], [True, True], [False, True]])
    found = region_positives(same, normal, normal)
    assert found[..., 0].tolist() == [
        [True, True, False],
        [True, True, False],
        [False] * 2 + [True],
    ]
    assert found[..., 1].tolist() == [
        [True, False, False],
        [False, True, True],
        [False, True, True],
    ]


def test_the_loss_of_three_items_by_hand():
    # Region 1: all three count, the first two are normal. Region 2: the third alone, so not at all.
    left = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])[:, None].repeat(1, 2, 1)
    right = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])[:, None].repeat(1, 2, 1)
    valid = torch.tensor([[True, False], [True, False], [True, True]])
    normal = torch.tensor([[True, False], [True, False], [False, False]])
    positives = region_positives(torch.eye(3).bool(), normal, normal)
    cosines = [[1.0, 0.0, 0.8], [0.6, 0.8, 0.96], [0.0, 1.0, 0.6]]
    sums = [math.log(sum(math.exp(c) for c in row)) for row in cosines]
    rows = [sums[0] - (1.0 + 0.0) / 2, sums[1] - (0.6 + 0.8) / 2, sums[2] - 0.6]
    loss = region_alignment_loss(
        left, right, positives=positives, valid=valid, others_valid=valid, scale=ONE
    )
    assert loss.item() == pytest.approx(sum(rows) / 3)


def _slow(left: Tensor, right: Tensor, positives: Tensor, valid: Tensor, scale: float) -> Tensor:
    """Sum n_r L_r / sum n_r, region by region."""
    total, count = torch.zeros((), dtype=left.dtype), 0
    for region in range(valid.shape[1]):
        chosen = valid[:, region].nonzero().flatten()
        if len(chosen) < 2:
            continue
        targets = positives[chosen][:, chosen, region].to(left.dtype)
        targets = targets / targets.sum(1, keepdim=True)
        logits = scale * left[chosen, region] @ right[chosen, region].T
        total = total + len(chosen) * F.cross_entropy(logits, targets)
        count += len(chosen)
    return total / max(count, 1)


@pytest.mark.parametrize("seed", range(3))
def test_all_regions_at_once_are_one_after_the_other(seed):
    items, regions = 6, 20
    left = _unit(items, regions, 8, seed=seed).requires_grad_()
    right = _unit(items, regions, 8, seed=seed + 10)
    valid = _drawn(items, regions, share=0.4, seed=seed)
    normal = _drawn(items, regions, share=0.6, seed=seed + 1)
    same = torch.eye(items).bool()
    same[0, 3] = same[3, 0] = True
    positives = region_positives(same, normal, normal)
    loss = region_alignment_loss(
        left, right, positives=positives, valid=valid, others_valid=valid, scale=5 * ONE
    )
    wanted = _slow(left, right, positives, valid, 5)
    torch.testing.assert_close(loss, wanted)
    (found,), (slow,) = (torch.autograd.grad(value, left) for value in (loss, wanted))
    torch.testing.assert_close(found, slow)
    counted = valid & (valid.sum(0) > 1)
    assert not found[~counted].any()
    # In parts, as ranks have them, the mean is that of the whole.
    parts = [
        region_alignment_loss(
            left[part],
            right,
            positives=positives[part],
            valid=valid[part],
            others_valid=valid,
            scale=5 * ONE,
        )
        for part in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), wanted)


@pytest.mark.parametrize("valid", [torch.zeros(3, 4), torch.eye(3, 4)], ids=["none", "one each"])
def test_where_nothing_counts_the_loss_is_zero_and_has_a_graph(valid):
    left, right = _unit(3, 4, 8).requires_grad_(), _unit(3, 4, 8, seed=1).requires_grad_()
    scale = torch.tensor([2.0], requires_grad=True)
    loss = region_alignment_loss(
        left,
        right,
        positives=torch.ones(3, 3, 4, dtype=torch.bool),
        valid=valid.bool(),
        others_valid=valid.bool(),
        scale=scale,
    )
    loss.backward()
    assert loss.item() == 0
    for value in (left, right, scale):
        assert value.grad is not None
        assert torch.equal(value.grad, torch.zeros_like(value))


def test_the_regions_of_a_scan_by_hand():
    # The first scan has regions 1 and 2, its text speaks of 1; the second has and says all.
    texts = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]]).repeat(2, 1, 1)
    scans = torch.tensor([[[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]]).repeat(2, 1, 1)
    present = torch.tensor([[True, True, False], [True, True, True]])
    valid = torch.tensor([[True, False, False], [True, True, True]])
    cosines = [[1.0, 0.8, 0.0], [0.0, 0.6, 1.0], [0.6, 0.96, 0.8]]
    rows = [math.log(math.exp(1.0) + math.exp(0.8)) - 1.0]
    rows += [math.log(sum(math.exp(c) for c in row)) - row[i] for i, row in enumerate(cosines)]
    loss = within_scan_loss(
        texts, scans, present=present, valid=valid, others_valid=valid, scale=ONE
    )
    assert loss.item() == pytest.approx(sum(rows) / 4)


def test_a_scan_without_regions_costs_nothing_and_stays_finite():
    texts, scans = _unit(2, 5, 8).requires_grad_(), _unit(2, 5, 8, seed=1).requires_grad_()
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    loss = within_scan_loss(
        texts, scans, present=nothing, valid=nothing, others_valid=nothing, scale=ONE
    )
    loss.backward()
    assert loss.item() == 0
    assert texts.grad is not None
    assert scans.grad is not None
    assert not texts.grad.any()
    assert not scans.grad.any()
