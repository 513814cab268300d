from itertools import product

import pytest
import torch

from ct3dlib.config import LatentAttentionSpec
from ct3dlib.nn.window_attention import LatentAttention, RelativeBias, from_windows, to_windows

GRID = (5, 3, 4)
CHANNELS = 7
# Neither side of the second divides the grid, the third is larger than it, the last is of slices.
WINDOWS = [(5, 1, 2), (2, 2, 3), (6, 4, 4), (2, 3)]
CASES = [(None, False), *product(WINDOWS, (False, True))]


def built(window: tuple[int, ...] | None, relative_bias: bool) -> LatentAttention:
    torch.manual_seed(0)
    spec = LatentAttentionSpec(
        window=window, relative_bias=relative_bias, num_heads=2, head_size=3, dropout=0.5
    )
    attention = LatentAttention(spec, CHANNELS).eval()
    if attention.bias is not None:
        torch.nn.init.normal_(attention.bias.table)
    torch.nn.init.normal_(attention.norm.weight)
    return attention


def slow_attention(attention: LatentAttention, x: torch.Tensor) -> torch.Tensor:
    """Attend one item, one head and one query at a time, to the keys that share its window."""
    out = x.clone()
    window = attention.window or GRID
    positions = list(product(*(range(n) for n in GRID)))
    for item in range(len(x)):
        tokens = {at: attention.norm(x[item, :, *at]) for at in positions}
        qkv = {at: attention.qkv(tokens[at]).view(3, 2, 3) for at in positions}
        for at in positions:
            near = [
                other
                for other in positions
                if all(a // w == b // w for a, b, w in zip(at, other, window, strict=True))
            ]
            heads = []
            for head in range(2):
                scores = torch.stack(
                    [qkv[at][0, head] @ qkv[other][1, head] / 3**0.5 for other in near]
                )
                if attention.bias is not None:
                    scores = scores + torch.stack(
                        [bias_of(attention.bias, window, head, at, other) for other in near]
                    )
                values = torch.stack([qkv[other][2, head] for other in near])
                heads.append(torch.softmax(scores, 0) @ values)
            out[item, :, *at] += attention.out(torch.cat(heads))
    return out


def bias_of(
    bias: RelativeBias,
    window: tuple[int, ...],
    head: int,
    query: tuple[int, ...],
    key: tuple[int, ...],
) -> torch.Tensor:
    table = bias.table[head].view(*(2 * side - 1 for side in window))
    return table[*(q - k + side - 1 for q, k, side in zip(query, key, window, strict=True))]


@pytest.mark.parametrize(("window", "relative_bias"), CASES)
def test_attention_equals_a_slow_softmax_also_where_windows_are_filled_up(window, relative_bias):
    attention = built(window, relative_bias)
    x = torch.randn(2, CHANNELS, *GRID)
    with torch.no_grad():
        expected = slow_attention(attention, x)
        assert (expected - x).abs().max() > 0.1
        torch.testing.assert_close(attention(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [*WINDOWS[:3], (1, 1, 1)])
def test_windows_hold_every_position_once_and_join_again(window: tuple[int, int, int]):
    x = torch.arange(1.0, 121.0).view(2, *GRID, 1)
    windows = to_windows(x, window)
    assert windows.shape[2] == torch.Size(window).numel()
    assert torch.equal(windows[windows > 0].sort().values, x.flatten())
    assert torch.equal(from_windows(windows, GRID, window=window), x)


def test_a_change_stays_in_its_window():
    attention = built((2, 2, 3), relative_bias=True)
    x = torch.randn(1, CHANNELS, *GRID)
    changed = x.clone()
    changed[0, 0, 3, 2, 1] += 1  # window d 2-3, h 2-3, w 0-2
    moved = (attention(changed) - attention(x)).abs().amax(dim=(0, 1)) > 1e-6
    expected = torch.zeros(GRID, dtype=torch.bool)
    expected[2:4, 2:4, :3] = True
    assert torch.equal(moved, expected)


def test_offsets_of_a_window_are_numbered_as_by_hand():
    offsets = RelativeBias((1, 2, 2), num_heads=1).offsets
    # Positions (0, 0), (0, 1), (1, 0), (1, 1); row 3 * (dh + 1) + (dw + 1) of query minus key.
    assert offsets.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


@pytest.mark.parametrize(("window", "relative_bias"), [(None, False), ((2, 2, 3), True)])
def test_bfloat16_stays_close_and_gradients_are_finite(window, relative_bias):
    attention = built(window, relative_bias)
    x = torch.randn(2, CHANNELS, *GRID, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = attention(x)
    assert (rough - attention(x)).abs().max() < 0.05
    rough.square().sum().backward()
    for gradient in (x.grad, *(p.grad for p in attention.parameters())):
        assert torch.isfinite(gradient).all()


def test_dropout_acts_on_what_is_added_and_in_training_only():
    attention = built(None, relative_bias=False)
    x = torch.randn(1, CHANNELS, *GRID)
    added = attention(x) - x
    dropped = attention.train()(x) - x
    kept = dropped.abs() > 1e-6
    assert 0.3 < kept.float().mean() < 0.7
    torch.testing.assert_close(dropped[kept], 2 * added[kept], rtol=1e-4, atol=1e-5)


def test_a_bias_needs_a_window():
    with pytest.raises(ValueError, match="relative_bias needs a window: its table has one entry"):
        LatentAttentionSpec(relative_bias=True)
