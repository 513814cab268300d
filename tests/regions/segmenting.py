"""A volume's regions, in one call."""

from pathlib import Path

from ct3dlib.cohort.private import RawRoot
from ct3dlib.config import RegionsSpec
from ct3dlib.regions import Regions, build_segmenter
from ct3dlib.scan.volume import Volume


def segment(volume: Volume, spec: RegionsSpec) -> Regions:
    """Return the regions of a volume that no catalog knows."""
    return build_segmenter(spec, RawRoot(Path("nowhere")))(volume)
