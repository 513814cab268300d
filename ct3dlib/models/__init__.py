"""Models that are trained, saved and loaded by their spec."""

from torch import nn

from ct3dlib.config import (
    AutoencoderSpec,
    CausalTokenizerSpec,
    KLAutoencoderSpec,
    MaisiTokenizerSpec,
    MaskedAutoencoderNetworkSpec,
    MaskGITNetworkSpec,
    PredictorNetworkSpec,
    SegmenterNetworkSpec,
    SliceFeaturesSpec,
    VlmNetworkSpec,
    VolumeClassifierNetworkSpec,
    VolumeEncoderNetworkSpec,
)
from ct3dlib.models.autoencoder import VolumeAutoencoder
from ct3dlib.models.classifier import VolumeClassifier
from ct3dlib.models.mae import MaskedAutoencoder
from ct3dlib.models.maskgit import MaskGIT
from ct3dlib.models.predictor import Predictor
from ct3dlib.models.segmenter import Segmenter
from ct3dlib.models.slice_features import SliceFeatures
from ct3dlib.models.tokenizer import CausalTokenizer
from ct3dlib.models.volume_encoder import VolumeEncoder

ModelSpec = (
    AutoencoderSpec
    | MaskGITNetworkSpec
    | SliceFeaturesSpec
    | VolumeClassifierNetworkSpec
    | VolumeEncoderNetworkSpec
    | MaskedAutoencoderNetworkSpec
    | PredictorNetworkSpec
    | SegmenterNetworkSpec
    | VlmNetworkSpec
)


def build_model(spec: ModelSpec) -> nn.Module:
    """Return the model that a spec describes, with fresh weights."""
    match spec:
        case MaskGITNetworkSpec():
            return MaskGIT(spec)
        case SliceFeaturesSpec():
            return SliceFeatures(spec)
        case VolumeClassifierNetworkSpec():
            return VolumeClassifier(spec)
        case VolumeEncoderNetworkSpec():
            return VolumeEncoder(spec)
        case MaskedAutoencoderNetworkSpec():
            return MaskedAutoencoder(spec)
        case PredictorNetworkSpec():
            return Predictor(spec)
        case SegmenterNetworkSpec():
            return Segmenter(spec)
        case VlmNetworkSpec():
            # transformers takes a second to import, and only this model has texts.
            from ct3dlib.models.vlm import RegionLanguageModel

            return RegionLanguageModel(spec)
        case _:
            return build_autoencoder(spec)


def build_autoencoder(spec: AutoencoderSpec) -> VolumeAutoencoder:
    """Return the autoencoder that a spec describes, with fresh weights."""
    match spec:
        case CausalTokenizerSpec():
            return CausalTokenizer(spec)
        case KLAutoencoderSpec():
            from ct3dlib.models.vae import KLAutoencoder

            return KLAutoencoder(spec)
        case MaisiTokenizerSpec():
            # MONAI takes seconds to import, and few models are of its kind.
            from ct3dlib.models.maisi import MaisiTokenizer

            return MaisiTokenizer(spec)
