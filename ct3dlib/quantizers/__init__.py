"""Quantizers: latents to codes and integer indices."""

from ct3dlib.config import LFQSpec
from ct3dlib.quantizers.base import Quantized, Quantizer
from ct3dlib.quantizers.lfq import LFQ

__all__ = ["LFQ", "Quantized", "Quantizer", "build_quantizer"]


def build_quantizer(spec: LFQSpec) -> Quantizer:
    """Return the quantizer that a spec describes."""
    match spec:
        case LFQSpec():
            return LFQ(spec)
