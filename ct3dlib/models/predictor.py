"""A volume encoder with a head: findings, classes or numbers of a volume.

Letters: B volumes, D H W voxels, N patches, C channels, F features, K outputs.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ct3dlib.config import PredictorNetworkSpec
from ct3dlib.config.mae import Pooling
from ct3dlib.models.volume_encoder import VolumeEncoder

_PROBE_HEADS = 8


class Predictor(nn.Module):
    """An encoder and its head; outputs are logits, or the numbers of a regression."""

    def __init__(self, spec: PredictorNetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = VolumeEncoder(spec.encoder)
        width = spec.encoder.encoder.hidden_size
        self.pool = _Attention(width) if spec.head.pooling == "attentive" else None
        features = 2 * width if spec.head.pooling == "both" else width
        self.norm = nn.LayerNorm(features, eps=1e-6)
        hidden = spec.head.hidden_size
        last = nn.Linear(hidden or features, spec.num_outputs)
        nn.init.trunc_normal_(last.weight, std=spec.head.init_std)
        nn.init.zeros_(last.bias)
        self.head = (
            last if hidden is None else nn.Sequential(nn.Linear(features, hidden), nn.GELU(), last)
        )

    def forward(self, volumes: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B K"]:
        """Return the outputs of volumes in the spec's range."""
        tokens = self.encoder(volumes)
        pooling = self.spec.head.pooling
        features = pooled(tokens, pooling) if self.pool is None else self.pool(tokens)
        return self.head(self.norm(features))


class _Attention(nn.Module):
    """A learnt query that gathers from all tokens (Chen et al., arXiv:2202.03026, section 3.3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, 1, width))
        nn.init.normal_(self.query, std=0.02)
        heads = next(n for n in range(_PROBE_HEADS, 0, -1) if width % n == 0)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, tokens: Float[Tensor, "B _ C"]) -> Float[Tensor, "B C"]:
        """Return one vector a volume."""
        query = self.query.expand(len(tokens), -1, -1)
        return self.attention(query, tokens, tokens, need_weights=False)[0][:, 0]


def pooled(tokens: Float[Tensor, "B _ C"], pooling: Pooling) -> Float[Tensor, "B F"]:
    """Return the class token, the mean of the patches' tokens, or both behind each other."""
    match pooling:
        case "cls":
            return tokens[:, 0]
        case "pooled":
            return tokens[:, 1:].mean(1)
        case "both":
            return torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), dim=1)
        case "attentive":
            raise ValueError("attentive pooling is learnt; it belongs to a trained head")
