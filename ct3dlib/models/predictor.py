"""A volume encoder with a head: findings, classes or numbers of a volume.

Letters: B volumes, D H W voxels, N patches, C channels, F features, K outputs.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ct3dlib.config import PredictorNetworkSpec
from ct3dlib.config.finetune import Pooling
from ct3dlib.models.volume_encoder import VolumeEncoder


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
            return
        features = 2 * width if spec.head.pooling == "both" else width
        layers: list[nn.Module] = [nn.LayerNorm(features, eps=1e-6)]
        if spec.head.hidden_size is not None:
            layers += [nn.Linear(features, spec.head.hidden_size), nn.GELU()]
            features = spec.head.hidden_size
        self.head = nn.Sequential(*layers, _last(features, spec))

    def forward(self, volumes: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B K"]:
        """Return the outputs of volumes in the spec's range."""
        tokens = self.encoder(volumes)
        pooling = self.spec.head.pooling
        return self.head(tokens if pooling == "attentive" else pooled(tokens, pooling))


class _Attentive(nn.Module):
    """Reads each output off the tokens that its own query looks for.

    Attention pooling (Ilse et al., arXiv:1802.04712, equation 8) with a query an output. Whole
    scans lie alike, and findings in places of their own: so each output also learns how much it
    likes a place, whatever is there.
    """

    def __init__(self, width: int, spec: PredictorNetworkSpec) -> None:
        super().__init__()
        hidden = spec.head.hidden_size or width
        self.query = nn.Linear(width, spec.num_outputs, bias=False)
        self.places = nn.Parameter(torch.zeros(1 + spec.encoder.num_patches, spec.num_outputs))
        self.value = nn.Sequential(nn.Linear(width, hidden), nn.GELU())
        self.last = _last(hidden, spec)

    def forward(self, tokens: Float[Tensor, "B _ C"]) -> Float[Tensor, "B K"]:
        """Return an output for each query."""
        shares = (self.query(tokens) + self.places).float().softmax(dim=1)  # B 1+N K
        gathered = shares.transpose(1, 2).to(tokens.dtype) @ self.value(tokens)  # B K H
        return (gathered * self.last.weight).sum(-1) + self.last.bias


def _last(features: int, spec: PredictorNetworkSpec) -> nn.Linear:
    """Return the layer to the outputs, which starts near 0."""
    last = nn.Linear(features, spec.num_outputs)
    nn.init.trunc_normal_(last.weight, std=spec.head.init_std)
    nn.init.zeros_(last.bias)
    return last


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
