"""What a provider of regions is asked and what it answers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct3dlib.regions.working_grid import Scan
from ct3dlib.scan.normalize import Record
from ct3dlib.scan.volume import Volume


@dataclass(frozen=True, eq=False)
class Request:
    """A scan whose regions are wanted.

    Args:
        volume: HU; axes nearest to D inferior to superior, H anterior to posterior, W right to
            left of the patient.
        name: Id of the volume.
        sources: Its files, as the catalog names them; empty where there is no catalog.
        record: How the volume came from its files; None where it did not come from a store.
        scan: The volume on the working grid.
    """

    volume: Volume
    name: str
    sources: tuple[str, ...]
    record: Record | None
    scan: Scan


@dataclass(frozen=True, eq=False)
class Provided:
    """Regions that a provider looked for.

    Args:
        labels: D H W on the volume's grid, ids 0-20.
        known: Ids that it looked for; one without a voxel is not there.
        sure: Those of them that it finds well; the rest is approximate.
    """

    labels: NDArray[np.uint8]
    known: frozenset[int]
    sure: frozenset[int]


class Provider(ABC):
    """Finds regions of one volume after the other.

    Args:
        name: What rows and messages call it.
    """

    name: str

    @abstractmethod
    def identity(self, name: str, sources: tuple[str, ...]) -> str:
        """Return a hash of what it knows of a volume beside its voxels; empty where nothing."""

    @abstractmethod
    def __call__(self, request: Request) -> Provided:
        """Return what it finds.

        Raises:
            VolumeError: It can say nothing about this volume.
        """
