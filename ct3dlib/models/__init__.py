"""Models that are trained, saved and loaded by their spec."""

from torch import nn

from ct3dlib.config import CausalTokenizerSpec, MaskGITNetworkSpec
from ct3dlib.models.maskgit import MaskGIT
from ct3dlib.models.tokenizer import CausalTokenizer

ModelSpec = CausalTokenizerSpec | MaskGITNetworkSpec


def build_model(spec: ModelSpec) -> nn.Module:
    """Return the model that a spec describes, with fresh weights."""
    match spec:
        case CausalTokenizerSpec():
            return CausalTokenizer(spec)
        case MaskGITNetworkSpec():
            return MaskGIT(spec)
