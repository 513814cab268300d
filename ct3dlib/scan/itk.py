"""NRRD and MetaImage files: voxels from a stream that is checked to its end.

ITK is not asked: for a damaged packed MetaImage it hands out whatever the memory held, and says so
on the terminal only; a cut gzip trailer it does not see. The tests hold the two to each other.
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from isal import isal_zlib
from isal.igzip_lib import IsalError
from numpy.typing import NDArray

from ct3dlib.config import Triple
from ct3dlib.errors import VolumeError
from ct3dlib.scan.itk_grid import Grid, read_grid
from ct3dlib.scan.itk_header import TextHeader, read_text_header
from ct3dlib.scan.reading import (
    MAX_DEFLATE,
    Reading,
    check_finite,
    cut_short,
    file_sha256,
    files_sha256,
    narrow,
)
from ct3dlib.scan.volume import Volume

# The stubs of isal call this class an instance.
_DAMAGED: tuple[type[Exception], ...] = (OSError, IsalError)  # pyright: ignore[reportAssignmentType]
_ZLIB_OR_GZIP = 32 + 15
_BLOCK = 1 << 20


def read_itk(path: Path, *, spacing: Triple | None = None) -> Reading:
    """Read an NRRD (.nrrd, .nhdr) or MetaImage (.mha, .mhd) file, its voxels in it or beside it.

    The array is D H W = file axes slowest to fastest; NRRD's other spaces become LPS. Neither
    format says whether its values are HU.

    Args:
        path: The file of the header.
        spacing: (D, H, W) from a table beside the file, mm; taken where the header states none,
            the axes then being LPS.

    Raises:
        VolumeError: `FILE_MISSING`, `FILE_TRUNCATED`, `FILE_UNREADABLE`, `UNSAFE_PATH`,
            `NOT_SCALAR`, `TOO_LARGE`, `NOT_3D`, `NAN_VOXELS`, `BAD_GEOMETRY` or `NO_GEOMETRY`.
    """
    text = read_text_header(path)
    grid = read_grid(text)
    facts = dict(grid.facts)
    affine = grid.affine
    if affine is None:
        if spacing is None:
            raise VolumeError(
                "NO_GEOMETRY",
                f"{path}: the header states no spacing and none is known; add it to the metadata "
                f"or write the header anew",
            )
        affine = np.zeros((4, 4))
        affine[[2, 1, 0, 3], [0, 1, 2, 3]] = *spacing, 1
        facts["blank_header"] = True
    array = narrow(_voxels(text, grid))
    check_finite(array, path)
    files = text.files
    facts |= {"format": text.kind, "stored_dtype": grid.dtype.name, "files": len(files)}
    return Reading(
        volume=Volume(array, affine),
        slope=None,
        intercept=None,
        hu=None,
        sha256=file_sha256(path) if len(files) == 1 else files_sha256(files),
        facts=facts,
        source=str(path),
    )


def _voxels(text: TextHeader, grid: Grid) -> NDArray[np.generic]:
    """Return the voxels as stored, in this machine's byte order."""
    path = text.data
    size = path.stat().st_size
    needed = int(np.prod(grid.shape, dtype=np.int64)) * grid.dtype.itemsize
    offset = size - needed if text.offset is None else text.offset
    room = max(size - offset, 0) * (MAX_DEFLATE if text.deflated else 1)
    if offset < 0 or needed > room:
        raise cut_short(path, f"{size} bytes cannot hold the {needed} of voxels that are stated")
    raw = np.empty(grid.shape, dtype=grid.dtype)
    view = raw.reshape(-1).view(np.uint8).data
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            if text.deflated:
                _inflate(path, stream, view)
            elif stream.readinto(view) < needed:
                raise cut_short(path, "it ends within the voxels")
    except _DAMAGED as error:
        raise VolumeError(
            "FILE_UNREADABLE", f"{path}: damaged ({error}); fetch it again"
        ) from error
    return raw.astype(raw.dtype.newbyteorder("="), copy=False)


def _inflate(path: Path, stream: BinaryIO, view: memoryview) -> None:
    """Unpack zlib or gzip, of one or several members, to the checksum that ends it."""
    done, packed = 0, b""
    inflater = isal_zlib.decompressobj(_ZLIB_OR_GZIP)
    while done < len(view) or not inflater.eof:
        if inflater.eof:
            packed, inflater = inflater.unused_data, isal_zlib.decompressobj(_ZLIB_OR_GZIP)
        packed = packed or stream.read(_BLOCK)
        block = inflater.decompress(packed, _BLOCK)
        if not packed and not block and not inflater.eof:  # nothing read, nothing held back
            raise cut_short(path, f"{done} of {len(view)} bytes of voxels, or no checksum")
        packed = inflater.unconsumed_tail
        if done + len(block) > len(view):
            raise VolumeError(
                "FILE_UNREADABLE",
                f"{path}: holds more than the {len(view)} bytes of voxels that its header states; "
                f"mend the header",
            )
        view[done : done + len(block)] = block
        done += len(block)
