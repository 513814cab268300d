"""What lies under a raw root: files, their sizes, and NIfTI headers without voxels."""

import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from ct3dlib.progress import progress

_NIFTI = (".nii.gz", ".nii")
_UNFINISHED = (".partial", ".lock", ".tmp", ".part", ".incomplete")
_NOT_DICOM = {
    *(".csv", ".gz", ".gif", ".htm", ".html", ".ini", ".jpeg", ".jpg", ".json", ".log", ".md"),
    *(".nii", ".npy", ".npz", ".pdf", ".png", ".py", ".tar", ".tsv", ".txt", ".xlsx", ".xml"),
    *(".yaml", ".yml", ".zip"),
}
# Headers wait for the disk or the network, not for the processor.
_THREADS = 16
_BLOCK = 1 << 14
_LONGEST_HEADER = 540


@dataclass(frozen=True)
class Header:
    """Geometry that a NIfTI header states, D H W in canonical order; None: not known."""

    spacing: tuple[float, float, float] | None
    shape: tuple[int, int, int] | None


def walk(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder in sorted order, without hidden and unfinished ones.

    Linked folders are followed, each once.
    """
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        state = os.stat(place)  # noqa: PTH116  (os.walk gives strings; a Path per folder is slow)
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith((".", "~")) and not name.lower().endswith(_UNFINISHED):
                yield Path(place, name)


def is_nifti(path: Path) -> bool:
    """Return whether a file is NIfTI by its name."""
    return path.name.lower().endswith(_NIFTI)


def may_be_dicom(path: Path) -> bool:
    """Return whether a file's name does not rule DICOM out."""
    return path.suffix.lower() not in _NOT_DICOM


def stem(name: str) -> str:
    """Return a name without the ending of NIfTI."""
    for ending in _NIFTI:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def relative(path: Path, root: Path) -> str:
    """Return a path below a root in POSIX notation."""
    return PurePosixPath(path.relative_to(root)).as_posix()


def size_and_mtime(paths: Iterable[Path]) -> tuple[int, int]:
    """Return the bytes of files in all and their latest change, ns since 1970.

    A link that leads nowhere counts as empty.
    """
    size = mtime_ns = 0
    for path in paths:
        try:
            state = path.stat()
        except OSError:
            continue
        size += state.st_size
        mtime_ns = max(mtime_ns, state.st_mtime_ns)
    return size, mtime_ns


def read_headers(paths: Sequence[Path]) -> list[Header]:
    """Return the headers of NIfTI files, in their order."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(progress(pool.map(read_header, paths), name="headers", unit="file"))


def read_header(path: Path) -> Header:
    """Return what a NIfTI header states, nothing where it cannot be read.

    One block of the file is read and no voxel decoded; whether the file is whole shows when it is
    stored. A blank header (no orientation, or the identity) tells no spacing: its reader must not
    take one that the file did not state for one from a table.
    """
    try:
        header = _parse(path)
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except (OSError, ValueError, zlib.error, HeaderDataError, WrapStructError):
        return Header(None, None)
    shape = tuple(int(n) for n in header.get_data_shape())
    shape = shape[:3] if shape[3:] == (1,) else shape
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    if len(shape) != 3 or min(shape) < 1 or not np.isfinite(affine).all() or not steps.all():
        return Header(None, None)
    axes = io_orientation(affine)[:, 0]
    if not np.isfinite(axes).all():
        return Header(None, None)
    z, y, x = (int(np.flatnonzero(axes == axis)[0]) for axis in (2, 1, 0))
    spacing = float(steps[z]), float(steps[y]), float(steps[x])
    coded = int(header["qform_code"]) > 0 or int(header["sform_code"]) > 0
    blank = not coded or np.array_equal(affine, np.eye(4))
    return Header(None if blank else spacing, (shape[z], shape[y], shape[x]))


def _parse(path: Path) -> Nifti1Header:
    """Return the header at the start of a NIfTI file; Nifti2Header is one too."""
    with path.open("rb") as stream:
        block = stream.read(_BLOCK)
    if block.startswith(b"\x1f\x8b"):
        block = zlib.decompressobj(wbits=31).decompress(block, _LONGEST_HEADER)
    # Both kinds start with their own length, in the file's byte order.
    lengths = {int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big")}
    kind = Nifti2Header if Nifti2Header.sizeof_hdr in lengths else Nifti1Header
    return kind(block[: kind.sizeof_hdr])
