"""Self-attention over tokens on a grid."""

import torch.nn.functional as F
from jaxtyping import Float
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
        self, tokens: Float[Tensor, "B N C"], angles: Float[Tensor, "N P"]
    ) -> Float[Tensor, "B N C"]:
        """Return what each token gathers from all tokens; `angles` as of `rotary_angles`."""
        # 3 B num_heads N E
        query, key, value = (
            self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        # Norm and rotation stay in float32 under autocast, attention does not.
        query = rotate(self.query_norm(query.float()), angles).to(value.dtype)
        key = rotate(self.key_norm(key.float()), angles).to(value.dtype)
        gathered = F.scaled_dot_product_attention(query, key, value)
        return self.out(gathered.transpose(1, 2).flatten(2))
