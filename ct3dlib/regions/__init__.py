"""Region ids 0-20 on a volume's grid."""

from ct3dlib.cohort.private import RawRoot
from ct3dlib.config import RegionsSpec
from ct3dlib.regions.classical import ClassicalProvider
from ct3dlib.regions.labelmap import LabelMapProvider
from ct3dlib.regions.mask import Regions, sidecar
from ct3dlib.regions.provider import Provider
from ct3dlib.regions.refine import build_refiner
from ct3dlib.regions.segmenter import Segmenter
from ct3dlib.regions.totalsegmentator import TotalSegmentatorProvider

__all__ = ["Regions", "Segmenter", "build_segmenter", "sidecar"]


def build_segmenter(spec: RegionsSpec, raw: RawRoot) -> Segmenter:
    """Return what finds regions as a spec says; whatever it needs is looked for at once.

    Args:
        spec: The providers and their settings.
        raw: The raw root, where label maps lie.

    Raises:
        StoreError: There is no folder of label maps.
        ConfigError: TotalSegmentator or a device is not there.
        CheckpointError: MedSAM2's weights are missing or others.
    """
    return Segmenter(
        [_build_provider(name, spec, raw) for name in spec.providers],
        None if spec.medsam2 is None else build_refiner(spec.medsam2),
        spec.classical.spacing,
    )


def _build_provider(name: str, spec: RegionsSpec, raw: RawRoot) -> Provider:
    """Return one provider."""
    match name:
        case "labelmap" if spec.labelmap is not None:
            return LabelMapProvider(spec.labelmap, raw)
        case "totalsegmentator":
            return TotalSegmentatorProvider(spec.totalsegmentator)
        case _:
            return ClassicalProvider()
