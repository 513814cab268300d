"""One volume out of a NumPy archive of many, as MedMNIST 3D ships them."""

import hashlib
import math
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ct3dlib.errors import VolumeError
from ct3dlib.scan.reading import JSON, Reading, check_size, cut_short
from ct3dlib.scan.volume import Volume

_BLOCK = 1 << 20
_IMAGES, _LABELS = "_images", "_labels"
_DAMAGED = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError)


def read_npz(path: Path, member: str, item: int) -> Reading:
    """Read one volume of an array N D H W of uint8; the others are passed over, none is kept.

    The first reading from an array checks all of it against the archive's checksum; later ones
    stop behind their item. What is deflated must be unpacked up to the item.

    Args:
        path: A .npz file.
        member: Name of the array in it, such as "train_images". Where it ends in "_images" and
            there is an array "_labels" of the same name, the item's label is one of the facts.
        item: Place in the array, from 0.

    Returns:
        Domain "uint8", axes taken as LPS, 1 mm: the file knows neither, and the facts say so. The
        hash is that of the volume's bytes and its label's.

    Raises:
        VolumeError: `FILE_MISSING`, `FILE_TRUNCATED`, `FILE_UNREADABLE`, `NOT_3D`, `TOO_LARGE`, or
            `ITEM_MISSING` where the file has no such array or item.
    """
    if not path.is_file():
        raise VolumeError("FILE_MISSING", f"{path}: no such file; correct the catalog")
    labels = f"{member.removesuffix(_IMAGES)}{_LABELS}"
    try:
        _check_whole(path, path.stat().st_mtime_ns, member)
        with _archive(path) as archive:
            array = _item(archive, path, member, item)
            has_label = member.endswith(_IMAGES) and f"{labels}.npy" in archive.namelist()
            label = _item(archive, path, labels, item) if has_label else None
    except _DAMAGED as error:
        raise VolumeError(
            "FILE_UNREADABLE", f"{path}: {member} is damaged ({error}); fetch it again"
        ) from error
    _check_volume(array, f"{path}[{member}]")
    facts: dict[str, JSON] = {"format": "npz", "member": member, "item": item}
    facts |= {"assumed_orientation": True, "assumed_spacing": True}
    digest = hashlib.sha256(array.tobytes())
    if label is not None:
        digest.update(label.tobytes())
        facts["label"] = label.tolist()
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = 1
    return Reading(
        volume=Volume(array, affine, "uint8"),
        slope=None,
        intercept=None,
        hu=False,
        sha256=digest.hexdigest(),
        facts=facts,
        source=f"{path}[{member}][{item}]",
    )


@lru_cache(maxsize=64)
def _check_whole(path: Path, mtime_ns: int, member: str) -> None:
    """Unpack an array to its end, where zipfile checks it; once per process and `mtime_ns`."""
    with _archive(path) as archive, _open(archive, path, member) as stream:
        while stream.read(_BLOCK):
            pass


def _archive(path: Path) -> zipfile.ZipFile:
    """Open an archive; its table of contents, at the end of the file, is read."""
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        with path.open("rb") as stream:
            cut = stream.read(2) in (b"PK", b"")
        if cut:
            raise cut_short(path, "its table of contents is not there") from error
        raise VolumeError(
            "FILE_UNREADABLE", f"{path}: not a NumPy archive ({error}); fetch it again"
        ) from error


def _open(archive: zipfile.ZipFile, path: Path, member: str) -> Any:
    """Open an array of an archive."""
    try:
        return archive.open(f"{member}.npy")
    except KeyError as error:
        names = ", ".join(sorted(name.removesuffix(".npy") for name in archive.namelist()))
        raise VolumeError(
            "ITEM_MISSING", f"{path}: no array {member}, it has {names}; build the catalog again"
        ) from error


def _item(archive: zipfile.ZipFile, path: Path, member: str, item: int) -> NDArray[np.generic]:
    """Return one item of an array along its first axis."""
    with _open(archive, path, member) as stream:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_column, dtype = read(stream)
        if by_column or dtype.hasobject:
            raise VolumeError(
                "FILE_UNREADABLE",
                f"{path}: {member} holds {dtype}, Fortran order {by_column}, wanted numbers in C "
                f"order; write it anew with np.savez",
            )
        if not shape or not 0 <= item < shape[0]:
            raise VolumeError(
                "ITEM_MISSING",
                f"{path}: {member} has shape {shape} and no item {item}; build the catalog again",
            )
        check_size(f"{path}[{member}]", shape[1:] or (1,))
        length = math.prod(shape[1:]) * dtype.itemsize
        for start in range(0, item * length, _BLOCK):  # one long seek would unpack 16 MB at once
            stream.seek(min(_BLOCK, item * length - start), 1)
        block = stream.read(length)
    if len(block) < length:
        raise cut_short(path, f"{member} ends within item {item}")
    return np.frombuffer(block, dtype).reshape(shape[1:]).copy()


def _check_volume(array: NDArray[np.generic], name: str) -> None:
    """Refuse items that are no volumes of 8 bits."""
    if array.ndim != 3:
        raise VolumeError(
            "NOT_3D", f"{name}: items with {array.ndim} axes {array.shape}, wanted 3 (D, H, W)"
        )
    if array.dtype != np.uint8:
        raise VolumeError(
            "FILE_UNREADABLE", f"{name}: values of type {array.dtype}, wanted uint8; convert it"
        )
