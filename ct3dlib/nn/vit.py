"""Vision transformer blocks with absolute positions (Dosovitskiy et al., arXiv:2010.11929).

Letters: B volumes, N tokens, C channels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ct3dlib.config import VisionTransformerSpec
from ct3dlib.nn.linear import Linear


class ViTBlock(nn.Module):
    """Attention and feed-forward, each on normalised tokens and added to its input.

    Args:
        spec: Width, heads, feed-forward.
        drop_path: Chance that an item skips a branch in training (Huang et al., arXiv:1603.09382).
    """

    def __init__(self, spec: VisionTransformerSpec, drop_path: float = 0.0) -> None:
        super().__init__()
        width, inner = spec.hidden_size, round(spec.mlp_ratio * spec.hidden_size)
        self.num_heads = spec.num_heads
        self.drop_path = drop_path
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.qkv = Linear(width, 3 * width)
        self.attention_out = Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-6)
        self.feed_forward = nn.Sequential(Linear(width, inner), nn.GELU(), Linear(inner, width))

    def forward(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Return the tokens after attention and feed-forward."""
        tokens = tokens + self._kept(self._attend(self.attention_norm(tokens)))
        return tokens + self._kept(self.feed_forward(self.feed_forward_norm(tokens)))

    def attention(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B num_heads N N"]:
        """Return how much each token (rows) takes from each (columns); rows add up to 1.

        What the fused kernel of `forward` never writes down: to look at, not to train.
        """
        query, key, _ = self._heads(self.attention_norm(tokens))
        return (query.float() @ key.float().transpose(2, 3) * query.shape[-1] ** -0.5).softmax(-1)

    def _attend(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Return what each token gathers from all."""
        query, key, value = self._heads(tokens)
        gathered = F.scaled_dot_product_attention(query, key, value)
        return self.attention_out(gathered.transpose(1, 2).flatten(2))

    def _heads(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "3 B num_heads N E"]:
        """Return queries, keys and values."""
        return self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)

    def _kept(self, branch: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Return a branch, left out for some items in training; the mean stays."""
        if not self.training or not self.drop_path:
            return branch
        keep = 1 - self.drop_path
        chosen = torch.rand(len(branch), 1, 1, device=branch.device) < keep
        return branch * chosen / keep
