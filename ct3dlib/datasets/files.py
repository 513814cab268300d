"""What lies under a raw root: files, their sizes, and NIfTI headers without voxels."""

import os
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import inv_ornt_aff, io_orientation
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from ct3dlib.progress import progress
from ct3dlib.scan.nifti import unit_mm

Source = TypeVar("Source")
Read = TypeVar("Read")

_NIFTI = (".nii.gz", ".nii")
_ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
_SLICE = re.compile(r"([-+]?[0-9]+)\.(?:jpe?g|png)", re.IGNORECASE)
# Headers wait for the disk or the network, not for the processor.
_THREADS = 16
_BLOCK = 1 << 14
_LONGEST_HEADER = 540


@dataclass(frozen=True)
class Header:
    """Geometry that a header states, D H W in canonical order; None: not known.

    Args:
        spacing: mm.
        shape: Number of voxels.
        corners: Centres of the first voxel and of the last ones along x, y and z, RAS mm.
    """

    spacing: tuple[float, float, float] | None
    shape: tuple[int, int, int] | None
    corners: tuple[tuple[float, ...], ...] | None = field(default=None, compare=False)


def is_nifti(path: Path) -> bool:
    """Return whether a file is NIfTI by its name."""
    return path.name.lower().endswith(_NIFTI)


def is_itk(path: Path) -> bool:
    """Return whether a file is an NRRD or MetaImage, or the header of one, by its name."""
    return path.name.lower().endswith(_ITK)


def slice_number(path: Path) -> int | None:
    """Return the number that a picture is called by, as -1.jpg or 12.png; None: it is no slice."""
    match = _SLICE.fullmatch(path.name)
    return int(match[1]) if match else None


def slice_folders(paths: Iterable[Path]) -> list[list[Path]]:
    """Return the slices of every folder of numbered pictures and no other file, by number."""
    folders: dict[Path, list[Path]] = {}
    for path in paths:
        folders.setdefault(path.parent, []).append(path)
    return [
        sorted(files, key=lambda path: (slice_number(path) or 0, path.name))
        for files in folders.values()
        if None not in map(slice_number, files)
    ]


def stem(name: str) -> str:
    """Return a name without the ending of a format of volumes."""
    for ending in (*_NIFTI, *_ITK):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def relative(path: Path, root: Path) -> str:
    r"""Return a path below a root in POSIX notation, bytes that are not UTF-8 as `\xff`."""
    place = PurePosixPath(path.relative_to(root)).as_posix()
    return place if is_utf8(path) else os.fsencode(place).decode("utf-8", "backslashreplace")


def is_utf8(path: Path) -> bool:
    """Return whether a path is text; a file system may hold names that are not."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def size_and_mtime(paths: Iterable[Path]) -> tuple[int, int]:
    """Return the bytes of files in all and the sum of the times of their changes, ns since 1970.

    The sum, modulo 2^63, also tells when one of them was replaced by an older file. A link that
    leads nowhere counts as empty.
    """
    size = mtime_ns = 0
    for path in paths:
        try:
            state = path.stat()
        except OSError:
            continue
        size += state.st_size
        mtime_ns = (mtime_ns + state.st_mtime_ns) % 2**63
    return size, mtime_ns


def read_headers(paths: Sequence[Path]) -> list[Header]:
    """Return the headers of NIfTI files, in their order."""
    return at_once(read_header, paths)


def at_once(read: Callable[[Source], Read], sources: Sequence[Source]) -> list[Read]:
    """Return what `read` gives for the header of each source, in their order; many wait at once."""
    if not sources:
        return []
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(progress(pool.map(read, sources), name="headers", unit="file"))


def read_header(path: Path) -> Header:
    """Return what a NIfTI header states, nothing where it cannot be read.

    One block of the file is read and no voxel decoded; whether the file is whole shows when it is
    stored. A blank header (no orientation, or the identity) tells no spacing: its reader must not
    take one that the file did not state for one from a table.
    """
    try:
        header = _parse(path)
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
        affine[:3] *= unit_mm(header)
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
    whole = shape[z], shape[y], shape[x]
    return Header(None, whole) if blank else Header(spacing, whole, _corners(affine, shape))


def _corners(affine: NDArray[np.float64], shape: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """Return where a grid begins and ends along its axes; the same for any order of a file's axes.

    Args:
        affine: File voxel (i, j, k, 1) to RAS mm.
        shape: Voxels along i, j, k.
    """
    orientation = io_orientation(affine)
    canonical = affine @ inv_ornt_aff(orientation, shape)
    ends = np.zeros((4, 4))
    ends[orientation[:, 0].astype(int), 1 + orientation[:, 0].astype(int)] = np.subtract(shape, 1)
    ends[3] = 1
    return tuple(tuple(point.tolist()) for point in (canonical @ ends)[:3].T)


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
