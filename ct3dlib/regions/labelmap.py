"""Regions from label maps that lie beside the scans."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ct3dlib.cohort.catalog import without_root
from ct3dlib.cohort.private import RawRoot
from ct3dlib.config import LabelMapSpec, Shape
from ct3dlib.errors import StoreError, VolumeError
from ct3dlib.regions.label_files import NIFTI, LabelMap, read_label_map
from ct3dlib.regions.label_map import LUNGS, REGIONS
from ct3dlib.regions.provider import Provided, Provider, Request
from ct3dlib.scan.geometry import orientation, reorient
from ct3dlib.scan.normalize import Record
from ct3dlib.scan.reading import file_sha256
from ct3dlib.scan.resample import resample_to
from ct3dlib.scan.volume import Volume

logger = logging.getLogger(__name__)

_LEFT, _RIGHT = ([i for i in LUNGS if REGIONS[i].endswith(side)] for side in ("left", "right"))
_SCANS = (*NIFTI, ".nrrd", ".nhdr", ".mha", ".mhd")  # endings that a label map's name goes without


@dataclass(frozen=True)
class LabelMapProvider(Provider):
    """Reads the label map of each volume.

    Args:
        spec: Where label maps lie, and what their numbers mean.
        raw: The raw root.

    Raises:
        StoreError: The folder is not there.
    """

    spec: LabelMapSpec
    raw: RawRoot
    name: str = "labelmap"

    def __post_init__(self) -> None:
        """Refuse a folder that is not there: every volume would fall back without a word."""
        if not self.folder.is_dir():
            raise StoreError(
                f"regions.labelmap.folder: {self.folder} is no folder; correct it (it is relative "
                f"to raw_root), or take labelmap out of regions.providers"
            )

    @property
    def folder(self) -> Path:
        """The folder of the label maps."""
        return self.raw.folder / self.spec.folder

    def identity(self, name: str, sources: tuple[str, ...]) -> str:
        """Return the hash of a volume's label map; empty where it has none."""
        path = self.find(name, sources)
        if path is None:
            return ""
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return " ".join(f"{f.name}:{file_sha256(f)}" for f in files if f.is_file())

    def find(self, name: str, sources: tuple[str, ...]) -> Path | None:
        """Return the label map of a volume: a file, or a folder of one file per class."""
        for place in self._places(name, sources):
            for ending in NIFTI:
                path = self.folder / place.with_name(f"{place.name}{ending}")
                if path.is_file():
                    return path
            if (self.folder / place).is_dir():
                return self.folder / place
        return None

    def _places(self, name: str, sources: tuple[str, ...]) -> Iterator[PurePosixPath]:
        """Return where a label map may lie, without its ending.

        A scan of several slices is the folder that they lie in.
        """
        if sources:
            scan = PurePosixPath(self.raw.path(sources[0]).relative_to(self.raw.folder).as_posix())
            if ending := next((e for e in _SCANS if scan.name.lower().endswith(e)), ""):
                scan = scan.with_name(scan.name[: -len(ending)])
            elif len(sources) > 1:
                scan = scan.parent
            if len(scan.parts) > self.spec.strip:
                yield PurePosixPath(*scan.parts[self.spec.strip :])
        yield PurePosixPath(name)

    def __call__(self, request: Request) -> Provided:
        """Return the regions of a volume's label map on the volume's grid.

        Raises:
            VolumeError: What `read` raises.
        """
        affine, shape = request.volume.affine, request.volume.shape
        found = self.read(
            request.name, request.sources, record=request.record, affine=affine, shape=shape
        )
        return Provided(np.asarray(found.volume.array, np.uint8), found.known, sure=found.known)

    def read(
        self,
        name: str,
        sources: tuple[str, ...],
        *,
        record: Record | None,
        affine: NDArray[np.float64],
        shape: Shape,
    ) -> LabelMap:
        """Return a volume's label map on a grid, 0 where it does not reach.

        Args:
            name: Id of the volume.
            sources: Its files, as the catalog names them.
            record: How the volume came from them; None: the grid is the scan's own.
            affine: Of the grid, voxel (d, h, w, 1) to LPS mm.
            shape: Of the grid.

        Raises:
            VolumeError: `NO_LABEL_MAP`, `LABEL_MAP_ELSEWHERE`, or what `read_label_map` raises.
        """
        try:
            found = self._read(
                name,
                sources,
                affine=affine if record is None else np.array(record.source_affine),
                shape=shape if record is None else record.source_shape,
            )
        except VolumeError as error:
            if sources and self.raw.hides(sources[0]):
                logger.warning("%s: %s", name, error)
                message = f"{name}: {error.reason}; the log says more"
            else:
                message = without_root(str(error), self.raw.folder)
            raise VolumeError(error.reason, message) from error
        ids = resample_to(found.volume, affine=affine, shape=shape, fill=0, nearest=True)
        return LabelMap(Volume(ids.array.astype(np.uint8), affine, "uint8"), found.known)

    def _read(
        self, name: str, sources: tuple[str, ...], *, affine: NDArray[np.float64], shape: Shape
    ) -> LabelMap:
        """Read a volume's label map and hold it against the grid of the scan."""
        path = self.find(name, sources)
        if path is None:
            places = ", ".join(f"{p}.nii.gz" for p in self._places(name, sources))
            raise VolumeError(
                "NO_LABEL_MAP", f"{name}: no label map {places} in {self.spec.folder}"
            )
        d, h, w = np.linalg.norm(affine[:3, :3], axis=0).tolist()
        found = read_label_map(path, numbering=self.spec.numbering, spacing=(d, h, w))
        check_field(path, found.volume, affine=affine, shape=shape)
        check_content(path, found)
        return found


def check_field(path: Path, found: Volume, *, affine: NDArray[np.float64], shape: Shape) -> None:
    """Refuse a label map that does not fill its scan's field of view.

    Its faces may lie up to half a voxel from the scan's, of the coarser of the two grids.

    Args:
        path: What the message calls it.
        found: The label map, of any spacing, its axes along the scan's.
        affine: Of the scan, voxel (d, h, w, 1) to LPS mm.
        shape: Of the scan.

    Raises:
        VolumeError: `LABEL_MAP_ELSEWHERE`.
    """
    grid = Volume(np.broadcast_to(np.uint8(0), shape), affine)
    scan, other = (reorient(v, orientation(v.affine)) for v in (grid, found))
    corners = np.array([*np.ndindex(2, 2, 2)]) * np.array(other.shape) - 0.5
    world = np.c_[corners, np.ones(8)] @ other.affine.T
    there = (world @ np.linalg.inv(scan.affine).T)[:, :3]  # in voxels of the scan
    wanted = np.array([*np.ndindex(2, 2, 2)]) * np.array(scan.shape) - 0.5
    coarser = np.maximum(1, np.divide(other.spacing, scan.spacing))
    away = np.abs(there - wanted).max(axis=0) / coarser
    if away.max() > 0.5:
        raise VolumeError(
            "LABEL_MAP_ELSEWHERE",
            f"{path}: its field of view ends up to {away.max():.1f} voxels from the scan's (shape "
            f"{found.shape}, the scan's {tuple(shape)}); is it of this scan?",
        )


def check_content(path: Path, found: LabelMap) -> None:
    """Refuse a label map without a label, or whose left lung lies to the right of the right one.

    Its field of view may be the scan's although its header mirrors it, as where one system's
    axes were written as another's.

    Args:
        path: What the message calls it.
        found: What was read of it.

    Raises:
        VolumeError: `BAD_LABELS`, `LABEL_MAP_ELSEWHERE`.
    """
    if found.empty:
        raise VolumeError(
            "BAD_LABELS",
            f"{path}: all its voxels are 0, as of a program that failed; make it again",
        )
    ids = reorient(found.volume, orientation(found.volume.affine)).array  # W: right to left
    depth, height, width = (max(1, n // 64) for n in ids.shape)
    sample = ids[::depth, ::height, ::width]
    right, left = (np.nonzero(np.isin(sample, side))[2] for side in (_RIGHT, _LEFT))
    # Lungs lie about half a chest apart; remnants of them need not.
    if len(right) and len(left) and right.mean() - left.mean() > 0.1 * sample.shape[2]:
        raise VolumeError(
            "LABEL_MAP_ELSEWHERE",
            f"{path}: its left lung lies to the patient's right; its header mirrors it, write the "
            f"affine of the scan into it",
        )
