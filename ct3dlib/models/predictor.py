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
        self.head: _Attentive | nn.Sequential
        if spec.head.pooling == "attentive":
            self.head = _Attentive(width, spec)
        else:
            features = 2 * width if spec.head.pooling == "both" else width
            self.head = nn.Sequential(nn.LayerNorm(features, eps=1e-6), *_layers(features, spec))

    def forward(self, volumes: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B K"]:
        """Return the outputs of volumes in the spec's range."""
        tokens = self.encoder(volumes)
        pooling = self.spec.head.pooling
        return self.head(tokens if pooling == "attentive" else pooled(tokens, pooling))


class _Attentive(nn.Module):
    """A learnt query an output, that gathers from all tokens what it needs.

    Attentive probing (Chen et al., arXiv:2202.03026, section 3.3) with the queries of Liu et al.
    (Query2Label, arXiv:2107.10834). Whole scans lie alike, and findings in places of their own:
    each query also learns how much it likes each place, whatever is there.
    """

    def __init__(self, width: int, spec: PredictorNetworkSpec) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(1, spec.num_outputs, width))
        nn.init.normal_(self.queries, std=0.02)
        self.places = nn.Parameter(torch.zeros(spec.num_outputs, 1 + spec.encoder.num_patches))
        heads = next(n for n in range(_PROBE_HEADS, 0, -1) if width % n == 0)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        *hidden, last = _layers(width, spec)
        self.hidden = nn.Sequential(*hidden)
        self.last = last

    def forward(self, tokens: Float[Tensor, "B _ C"]) -> Float[Tensor, "B K"]:
        """Return an output for each query, read off by its own weights."""
        queries = self.queries.expand(len(tokens), -1, -1)
        gathered, _ = self.attention(  # B K C
            queries, tokens, tokens, need_weights=False, attn_mask=self.places.to(tokens.dtype)
        )
        features = self.hidden(self.norm(gathered))
        return (features * self.last.weight).sum(-1) + self.last.bias


def _layers(features: int, spec: PredictorNetworkSpec) -> list[nn.Module]:
    """Return the layers from features to outputs; the last one starts near 0."""
    hidden = spec.head.hidden_size
    last = nn.Linear(hidden or features, spec.num_outputs)
    nn.init.trunc_normal_(last.weight, std=spec.head.init_std)
    nn.init.zeros_(last.bias)
    return [last] if hidden is None else [nn.Linear(features, hidden), nn.GELU(), last]


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
