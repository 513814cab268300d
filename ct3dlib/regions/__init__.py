"""Region ids 0-20 on a volume's grid."""

from ct3dlib.config import RegionsSpec
from ct3dlib.regions.classical import classical_regions
from ct3dlib.regions.mask import Regions, sidecar
from ct3dlib.scan.volume import Volume

__all__ = ["Regions", "segment", "sidecar"]


def segment(volume: Volume, spec: RegionsSpec) -> Regions:
    """Return the regions of a volume by the backend that the spec names.

    Args:
        volume: HU, canonical orientation.
        spec: The backend and its settings.
    """
    match spec.backend:
        case "classical":
            return classical_regions(volume, spec.classical)
