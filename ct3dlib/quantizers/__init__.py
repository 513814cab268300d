"""Quantizers: latents to codes and integer indices."""

from ct3dlib.config import FSQSpec, LFQSpec, QuantizerSpec
from ct3dlib.quantizers.base import Quantized, Quantizer
from ct3dlib.quantizers.fsq import FSQ
from ct3dlib.quantizers.lfq import LFQ

__all__ = ["FSQ", "LFQ", "Quantized", "Quantizer", "build_quantizer"]


def build_quantizer(spec: QuantizerSpec) -> Quantizer:
    """Return the quantizer that a spec describes."""
    match spec:
        case LFQSpec():
            return LFQ(spec)
        case FSQSpec():
            return FSQ(spec)
