"""Transformer blocks that a condition vector steers."""

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ct3dlib.config import BlocksSpec
from ct3dlib.nn.attention import SelfAttention


class SwiGLU(nn.Module):
    """A gated feed-forward layer with as many weights as a plain one of `mlp_ratio`.

    Shazeer (arXiv:2002.05202, equation 6); its three matrices make the inner width 2/3 of the
    plain one's, rounded to a multiple of 8.
    """

    def __init__(self, spec: BlocksSpec) -> None:
        super().__init__()
        inner = 8 * max(1, round(spec.mlp_ratio * spec.hidden_size * 2 / 3 / 8))
        self.gate_and_value = nn.Linear(spec.hidden_size, 2 * inner)
        self.out = nn.Linear(inner, spec.hidden_size)

    def forward(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Return the layer's output for each token."""
        gate, value = self.gate_and_value(tokens).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class PreNormBlock(nn.Module):
    """Attention and feed-forward, each on normalised tokens and added to its input.

    What is asked for stands among the tokens (in-context conditioning, Peebles and Xie,
    arXiv:2212.09748, section 3.2).
    """

    def __init__(self, spec: BlocksSpec) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(spec.hidden_size, eps=1e-6)
        self.attention = SelfAttention(spec)
        self.feed_forward_norm = nn.LayerNorm(spec.hidden_size, eps=1e-6)
        self.feed_forward = SwiGLU(spec)
        self.dropout = nn.Dropout(spec.dropout)

    def forward(
        self,
        tokens: Float[Tensor, "B N C"],
        angles: Float[Tensor, "N P"],
        at: Int64[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, "B _ C"]:
        """Return the tokens after attention and feed-forward; with `at`, those at these places."""
        attended = self.attention(self.attention_norm(tokens), angles, at)
        tokens = tokens_at(tokens, at) + self.dropout(attended)
        return tokens + self.dropout(self.feed_forward(self.feed_forward_norm(tokens)))


class AdaLNZeroBlock(nn.Module):
    """Attention and feed-forward, shifted, scaled and gated by a condition.

    The gates start at 0, so a new block is the identity whatever the condition
    (Peebles and Xie, arXiv:2212.09748, section 3.2).
    """

    def __init__(self, spec: BlocksSpec) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.hidden_size, elementwise_affine=False, eps=1e-6)
        self.attention = SelfAttention(spec)
        self.feed_forward = SwiGLU(spec)
        self.dropout = nn.Dropout(spec.dropout)
        self.modulation = nn.Linear(spec.hidden_size, 6 * spec.hidden_size)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        tokens: Float[Tensor, "B N C"],
        *,
        condition: Float[Tensor, "B C"],
        angles: Float[Tensor, "N P"],
        at: Int64[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, "B _ C"]:
        """Return the tokens after attention and feed-forward, each added to its input.

        With `at` only those at these places, which saves the others' work in a last block.
        """
        # six of B 1 C
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (
            self.modulation(F.silu(condition)).unsqueeze(1).chunk(6, dim=-1)
        )
        attended = self.attention(self.norm(tokens) * (1 + scale_a) + shift_a, angles, at)
        tokens = tokens_at(tokens, at) + gate_a * self.dropout(attended)
        fed = self.feed_forward(self.norm(tokens) * (1 + scale_f) + shift_f)
        return tokens + gate_f * self.dropout(fed)


def tokens_at(
    tokens: Float[Tensor, "B N C"], at: Int64[Tensor, "B M"] | None
) -> Float[Tensor, "B _ C"]:
    """Return the tokens at some places of their row; None: all."""
    return tokens if at is None else tokens.take_along_dim(at[..., None], dim=1)
