"""The chain: providers one after the other, MedSAM2 over what they found, then the shells."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct3dlib.errors import VolumeError
from ct3dlib.regions.derived import derived_regions
from ct3dlib.regions.label_map import DERIVED, FOUND, REGIONS
from ct3dlib.regions.mask import Regions, Skipped, Status, areas
from ct3dlib.regions.provider import Provided, Provider, Request
from ct3dlib.regions.refine import Refiner
from ct3dlib.regions.working_grid import to_volume_grid, to_working_grid
from ct3dlib.scan.normalize import Record
from ct3dlib.scan.volume import Volume

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segmenter:
    """Finds the regions of one volume after the other.

    Args:
        providers: Asked in this order; each gives the regions that none before it knows of.
        refiner: Draws regions anew; None: they stay as they were found.
        spacing: Of the working grid, mm.
    """

    providers: Sequence[Provider]
    refiner: Refiner | None
    spacing: float

    def identity(self, name: str, sources: tuple[str, ...]) -> list[str]:
        """Return what the providers know of a volume beside its voxels, for its key."""
        return [provider.identity(name, sources) for provider in self.providers]

    def __call__(
        self,
        volume: Volume,
        *,
        name: str = "scan",
        sources: tuple[str, ...] = (),
        record: Record | None = None,
    ) -> Regions:
        """Return the regions of a volume.

        Args:
            volume: HU; axes nearest to D inferior to superior, H anterior to posterior, W right to
                left of the patient.
            name: Its id.
            sources: Its files, as the catalog names them.
            record: How it came from them.

        Raises:
            VolumeError: `WRONG_DOMAIN`, the volume is not in HU; or what the last provider raised
                where none could say anything.
            ValueError: Its axes point elsewhere.
        """
        _check(volume)
        scan = to_working_grid(volume, self.spacing)
        request = Request(volume, name, sources, record, scan)
        found = _ask(self.providers, request)
        labels, agreement, source = found.labels, {}, dict(found.source)
        if self.refiner is not None:
            labels, agreement, taken = self.refiner(volume, labels)
            source |= {i: f"{source[i]}+medsam2" for i in taken}
        small = to_volume_grid(labels, scan.hu.shape)  # the voxel at each cell's centre
        shells = to_volume_grid(derived_regions(small, scan), volume.shape)
        mask = np.where(labels > 0, labels, shells)
        source |= dict.fromkeys(DERIVED, "derived")
        present = areas(mask).sum(axis=0) > 0
        status: dict[str, Status] = {}
        for i in range(1, len(REGIONS)):
            found_well: Status = "ok" if i in found.sure else "approximate"
            status[REGIONS[i]] = found_well if present[i] else "absent"
        return Regions(
            mask,
            status,
            sources={REGIONS[i]: source[i] for i in sorted(source)},
            agreement={REGIONS[i]: value for i, value in agreement.items()},
            skipped=found.skipped,
        )


@dataclass(frozen=True, eq=False)
class _Answers:
    """What a chain of providers found."""

    labels: NDArray[np.uint8]
    source: Mapping[int, str]
    sure: frozenset[int]
    skipped: tuple[Skipped, ...]


def _ask(providers: Sequence[Provider], request: Request) -> _Answers:
    """Ask providers until every region is looked for; a voxel stays with who gave it first."""
    labels = np.zeros(request.volume.shape, np.uint8)
    source: dict[int, str] = {}
    sure: set[int] = set()
    skipped: list[Skipped] = []
    for provider in providers:
        wanted = FOUND - source.keys()
        if not wanted:
            break
        try:
            provided = provider(request)
        except VolumeError as error:
            logger.warning("%s: %s: %s", request.name, provider.name, error)
            skipped.append(Skipped(provider.name, error.reason, str(error)))
            continue
        new = provided.known & wanted
        labels = _paint(labels, provided, new)
        source |= dict.fromkeys(new, provider.name)
        sure |= provided.sure & new
    if not source:
        raise VolumeError(
            skipped[-1].reason, "; ".join(f"{s.provider}: {s.message}" for s in skipped)
        )
    return _Answers(labels, source, frozenset(sure), tuple(skipped))


def _paint(labels: NDArray[np.uint8], provided: Provided, new: frozenset[int]) -> NDArray[np.uint8]:
    """Return labels with the new regions of a provider where nothing was."""
    table = np.zeros(len(REGIONS), np.uint8)
    table[[*new]] = [*new]
    return np.where(labels > 0, labels, table[provided.labels])


def _check(volume: Volume) -> None:
    """Refuse a volume whose values or axes are not what the anatomy is read from."""
    if volume.domain != "hu":
        raise VolumeError("WRONG_DOMAIN", f"regions need HU, not the domain {volume.domain!r}")
    direction: NDArray[Any] = volume.affine[:3, :3] / volume.spacing
    if not (direction[[2, 1, 0], [0, 1, 2]] > 0.5).all():
        raise ValueError(
            "regions need axes D to superior, H to posterior, W to the patient's left; "
            f"the affine's columns point to {np.round(direction, 2).T.tolist()}; normalize first"
        )
