import torch

from ct3dlib.metrics.classification import balanced_accuracy


def test_by_hand():
    true = torch.tensor([[1, 0], [1, 0], [1, 1], [0, 1]]).bool()
    told = torch.tensor([[1, 0], [0, 0], [1, 1], [1, 1]]).bool()
    assert balanced_accuracy(told, true) == [(2 / 3 + 0) / 2, 1.0]


def test_who_always_tells_the_same_has_a_half_however_rare_a_label_is():
    true = torch.zeros(100, 1, dtype=torch.bool)
    true[:3] = True
    assert balanced_accuracy(torch.zeros_like(true), true) == [0.5]
    assert balanced_accuracy(torch.ones_like(true), true) == [0.5]


def test_a_label_that_all_or_none_have_is_left_open():
    true = torch.tensor([[1, 0], [1, 0]]).bool()
    assert balanced_accuracy(true, true) == [None, None]
    assert balanced_accuracy(true[:0], true[:0]) == [None, None]
