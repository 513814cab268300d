"""Self-attention over tokens on a grid."""

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ct3dlib.config import BlocksSpec
from ct3dlib.nn.position import rotate


class SelfAttention(nn.Module):
    """Multi-head self-attention of all tokens with all, with rotary positions.

    Queries and keys are RMS-normalised before they turn, which bounds the logits and keeps
    training in bfloat16 stable (Dehghani et al., arXiv:2302.05442, section 2). Attention weights
    have no dropout: with it no fused kernel runs on a CPU, and a step takes three times as long.
    """

    def __init__(self, spec: BlocksSpec) -> None:
        super().__init__()
        self.num_heads = spec.num_heads
        self.qkv = nn.Linear(spec.hidden_size, 3 * spec.hidden_size, bias=False)
        self.query_norm = nn.RMSNorm(spec.head_size, eps=1e-6)
        self.key_norm = nn.RMSNorm(spec.head_size, eps=1e-6)
        self.out = nn.Linear(spec.hidden_size, spec.hidden_size)

    def forward(
        self,
        tokens: Float[Tensor, "B N C"],
        angles: Float[Tensor, "N P"],
        at: Int64[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, "B _ C"]:
        """Return what each token, or each of those `at` some places, gathers from all tokens.

        Args:
            tokens: On a grid.
            angles: As of `rotary_angles`.
            at: Places in the row of tokens; None: all.
        """
        # 3 B num_heads N E
        query, key, value = (
            self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        # Norm and rotation stay in float32 under autocast, attention does not.
        query = rotate(self.query_norm(query.float()), angles).to(value.dtype)
        key = rotate(self.key_norm(key.float()), angles).to(value.dtype)
        if at is not None:
            query = query.take_along_dim(at[:, None, :, None], dim=2)
        gathered = F.scaled_dot_product_attention(query, key, value)
        return self.out(gathered.transpose(1, 2).flatten(2))
