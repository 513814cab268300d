import math

import torch

from ct3dlib.losses.masked import masked_cross_entropy


def _case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 2, 3, 2, 4)
    return logits, torch.randint(0, 4, (2, 1, 2, 3, 2)), torch.rand(2, 1, 2, 3) < 0.5


def test_one_position_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])).view(1, 1, 1, 1, 2, 3)
    classes, masked = torch.tensor([0, 2]).view(1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1).bool()
    loss = masked_cross_entropy(logits, classes, masked)
    torch.testing.assert_close(loss, torch.full((1, 1, 1, 1), -math.log(0.5) - math.log(0.8)))


def test_smoothing_spreads_a_share_of_the_target_over_all_classes():
    logits = torch.log(torch.tensor([0.5, 0.25, 0.25])).view(1, 1, 1, 1, 1, 3)
    classes, masked = torch.zeros(1, 1, 1, 1, 1).long(), torch.ones(1, 1, 1, 1).bool()
    loss = masked_cross_entropy(logits, classes, masked, label_smoothing=0.3)
    expected = -0.8 * math.log(0.5) - 0.1 * math.log(0.25) - 0.1 * math.log(0.25)
    torch.testing.assert_close(loss.item(), expected)


def test_flat_logits_cost_all_bits_of_the_index():
    logits = torch.zeros(1, 2, 2, 2, 2, 8)
    classes, masked = torch.randint(0, 8, (1, 2, 2, 2, 2)), torch.ones(1, 2, 2, 2).bool()
    bits = masked_cross_entropy(logits, classes, masked) / math.log(2)
    torch.testing.assert_close(bits, torch.full((1, 2, 2, 2), 6.0))


def test_visible_positions_cost_nothing_and_push_nothing():
    logits, classes, masked = _case()
    logits[~masked] = torch.inf
    logits.requires_grad_()
    loss = masked_cross_entropy(logits, torch.where(masked[..., None], classes, 0), masked)
    assert torch.equal(loss != 0, masked)


def test_visible_classes_do_not_matter():
    logits, classes, masked = _case()
    other = torch.where(masked[..., None], classes, 3 - classes)
    before = masked_cross_entropy(logits, classes, masked, label_smoothing=0.1)
    assert torch.equal(masked_cross_entropy(logits, other, masked, label_smoothing=0.1), before)


def test_gradients_stop_at_visible_positions():
    logits, classes, masked = _case()
    logits.requires_grad_()
    masked_cross_entropy(logits, classes, masked).sum().backward()
    assert torch.equal(logits.grad.abs().sum((-1, -2)) > 0, masked)
