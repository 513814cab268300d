import pytest
import torch

from ct3dlib.config import BlocksSpec
from ct3dlib.nn.attention import SelfAttention
from ct3dlib.nn.position import grid_positions, rotary_angles, rotate

SPEC = BlocksSpec(hidden_size=24, num_layers=1, num_heads=2, dropout=0.5)


def _oracle(attention: SelfAttention, tokens: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Attend one item, one head and one query at a time."""
    heads, size = SPEC.num_heads, SPEC.head_size
    query, key, value = attention.qkv(tokens).chunk(3, dim=-1)
    gathered = torch.zeros_like(tokens)
    for b in range(len(tokens)):
        for head in range(heads):
            span = slice(head * size, (head + 1) * size)
            q = attention.query_norm(query[b : b + 1, :, span])[:, None]
            k = attention.key_norm(key[b : b + 1, :, span])[:, None]
            q, k = rotate(q, angles)[0, 0], rotate(k, angles)[0, 0]
            for n in range(tokens.shape[1]):
                weights = torch.softmax(k @ q[n] / size**0.5, dim=0)
                gathered[b, n, span] = weights @ value[b, :, span]
    return attention.out(gathered)


def test_attention_equals_a_slow_reference():
    torch.manual_seed(0)
    attention = SelfAttention(SPEC)
    tokens = torch.randn(2, 12, 24)
    angles = rotary_angles(grid_positions((2, 2, 3), tokens.device), SPEC.head_size)
    with torch.no_grad():
        torch.testing.assert_close(
            attention(tokens, angles), _oracle(attention, tokens, angles), rtol=1e-5, atol=1e-6
        )


def test_attention_in_bfloat16_stays_close():
    torch.manual_seed(0)
    attention = SelfAttention(SPEC)
    tokens = torch.randn(2, 12, 24)
    angles = rotary_angles(grid_positions((2, 2, 3), tokens.device), SPEC.head_size)
    with torch.no_grad():
        exact = attention(tokens, angles)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = attention(tokens, angles)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 5e-3


def test_normalised_queries_ignore_their_scale():
    torch.manual_seed(0)
    attention = SelfAttention(SPEC)
    tokens = torch.randn(1, 12, 24)
    angles = rotary_angles(grid_positions((2, 2, 3), tokens.device), SPEC.head_size)
    before = attention(tokens, angles)
    with torch.no_grad():
        attention.qkv.weight[:48] *= 100  # queries and keys
    torch.testing.assert_close(attention(tokens, angles), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("hidden_size", "num_heads", "message"),
    [
        (10, 4, r"hidden_size \(10\) must be a multiple of num_heads \(4\)"),
        (8, 2, r"hidden_size / num_heads \(4\) must be even and at least 6"),
        (14, 2, r"hidden_size / num_heads \(7\) must be even and at least 6"),
    ],
)
def test_heads_that_cannot_be_built_are_refused(hidden_size, num_heads, message):
    with pytest.raises(ValueError, match=message):
        BlocksSpec(hidden_size=hidden_size, num_heads=num_heads)
