"""Soft Dice and cross entropy by hand, and as MONAI and torch have them."""

import pytest
import torch
import torch.nn.functional as F
from monai.losses.dice import DiceLoss

from ct3dlib.losses.segmentation import balanced_cross_entropy, soft_dice_loss


def drawn(seed: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((2, classes, 3, 4, 5), generator=generator)
    return logits, torch.randint(0, classes, (2, 1, 3, 4, 5), generator=generator)


def test_a_value_by_hand():
    # Two voxels, class 1 in the first; p = 0.75 and 0.25 of class 1.
    logits = torch.log(torch.tensor([[0.25, 0.75], [0.75, 0.25]])).T.reshape(1, 2, 1, 1, 2)
    mask = torch.tensor([1, 0], dtype=torch.uint8).reshape(1, 1, 1, 1, 2)
    wanted = 1 - 2 * 0.75 / (0.75 + 0.25 + 1)
    assert soft_dice_loss(logits, mask).item() == pytest.approx(wanted, abs=1e-5)


def test_where_all_classes_are_held_it_is_monais():
    logits, mask = drawn(0)
    oracle = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, reduction="none")(
        logits, mask
    )
    torch.testing.assert_close(
        soft_dice_loss(logits, mask), oracle.flatten(1).mean(1), rtol=1e-5, atol=1e-6
    )


def test_classes_that_a_mask_does_not_hold_do_not_count():
    logits, mask = drawn(1)
    mask[1][mask[1] == 2] = 0
    oracle = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, reduction="none")
    each = oracle(logits, mask).flatten(1)  # B K-1
    found = soft_dice_loss(logits, mask)
    assert found[0].item() == pytest.approx(each[0].mean().item(), abs=1e-5)
    assert found[1].item() == pytest.approx(each[1, [0, 2]].mean().item(), abs=1e-5)


def test_a_mask_of_background_costs_nothing_and_perfect_masks_next_to_nothing():
    logits, mask = drawn(2)
    assert soft_dice_loss(logits, torch.zeros_like(mask)).tolist() == [0, 0]
    sure = 50 * torch.nn.functional.one_hot(mask[:, 0], 4).movedim(-1, 1).float()
    assert soft_dice_loss(sure, mask).max() < 1e-5
    assert soft_dice_loss(-sure, mask).min() > 0.5


def test_items_do_not_mix():
    logits, mask = drawn(3)
    one = soft_dice_loss(logits[1:], mask[1:])
    torch.testing.assert_close(soft_dice_loss(logits, mask)[1:], one)


def test_bytes_and_half_precision_are_taken():
    logits, mask = drawn(4)
    found = soft_dice_loss(logits.bfloat16(), mask.byte())
    torch.testing.assert_close(found, soft_dice_loss(logits, mask), rtol=0.02, atol=0.02)
    assert found.dtype == torch.float32


def test_classes_weigh_as_the_square_root_of_their_voxels():
    logits, mask = drawn(5)
    mask[0, 0, :2] = 0  # many of one class, and none of another
    mask[0][mask[0] == 3] = 1
    found = balanced_cross_entropy(logits, mask)
    for i in range(2):
        entropy = F.cross_entropy(logits[i : i + 1], mask[i].long(), reduction="none")
        classes, counts = mask[i].unique(return_counts=True)
        means = torch.stack([entropy[mask[i] == k].mean() for k in classes])
        shares = counts.sqrt() / counts.sqrt().sum()
        assert found[i].item() == pytest.approx((shares * means).sum().item(), rel=1e-5)


def test_equal_classes_leave_the_cross_entropy_as_it_is():
    logits, _ = drawn(6)
    mask = (torch.arange(60) % 4).reshape(1, 1, 3, 4, 5).expand(2, -1, -1, -1, -1)
    wanted = F.cross_entropy(logits, mask[:, 0], reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(balanced_cross_entropy(logits, mask), wanted)
    narrow = balanced_cross_entropy(logits.bfloat16(), mask.byte())
    torch.testing.assert_close(narrow, wanted, rtol=0.02, atol=0.02)
