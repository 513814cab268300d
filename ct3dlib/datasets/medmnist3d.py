"""MedMNIST 3D: small volumes of one structure each with its class (doi:10.1038/s41597-022-01721-8).

A file a set and size, `organmnist3d.npz` (28 voxels) or `organmnist3d_64.npz`, with the arrays
`{train,val,test}_images` (uint8, N D H W) and `{train,val,test}_labels` (N 1). The splits are the
published ones: val is `tune`, test is `valid`.
"""

import json
import logging
import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from ct3dlib.cohort.catalog import Row
from ct3dlib.config import Split
from ct3dlib.datasets.files import relative, size_and_mtime
from ct3dlib.datasets.listing import Problem
from ct3dlib.errors import DatasetError
from ct3dlib.scan.tree import walk

logger = logging.getLogger(__name__)

# Set -> its classes, in the order of the labels.
CLASSES: dict[str, tuple[str, ...]] = {
    "organmnist3d": (
        *("liver", "kidney-right", "kidney-left", "femur-right", "femur-left", "bladder"),
        *("heart", "lung-right", "lung-left", "spleen", "pancreas"),
    ),
    "nodulemnist3d": ("benign", "malignant"),
    "adrenalmnist3d": ("normal", "hyperplasia"),
    "fracturemnist3d": (
        *("buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture"),
    ),
    "vesselmnist3d": ("vessel", "aneurysm"),
    "synapsemnist3d": ("inhibitory synapse", "excitatory synapse"),
}
_SPLITS: dict[str, Split] = {"train": "train", "val": "tune", "test": "valid"}
_NAME = re.compile(rf"(?P<flag>{'|'.join(CLASSES)})(?P<size>_64)?\.npz")
_DAMAGED = (
    *(OSError, ValueError, EOFError, RuntimeError, NotImplementedError),
    *(zlib.error, zipfile.BadZipFile),
)


@dataclass(frozen=True)
class _Source:
    """One file of the data set."""

    path: Path
    place: str
    flag: str
    size: str


class _MemberError(Exception):
    """An array is not what the data set has there."""


def read_medmnist3d(root: Path) -> Iterator[Row]:
    """Yield a row for every volume of every set, its class in `label`.

    Labels and the headers of images are read, voxels are not. A file or an array that cannot be
    used is one row with its problem.

    Raises:
        DatasetError: No file of the data set is there, or one is there twice.
    """
    sources: dict[str, _Source] = {}
    others = 0
    for path in walk(root):
        place = relative(path, root)
        if name := _NAME.fullmatch(path.name):
            source = _Source(path, place, name["flag"], name["size"] or "")
            if (first := sources.setdefault(path.stem, source)) != source:
                raise DatasetError(f"{root}: {first.place} and {place} are the same set; keep one")
        others += name is None and path.suffix.lower() == ".npz"
    if not sources:
        raise DatasetError(
            f"{root}: no file {{{','.join(CLASSES)}}}[_64].npz; set raw_root (or CT3D_RAW) to the "
            f"folder that MedMNIST was downloaded to"
        )
    if others:
        logger.warning("%s: %s .npz files are no set of MedMNIST 3D", root, others)
    for stem in sorted(sources):
        yield from _read_file(sources[stem])


def _read_file(source: _Source) -> Iterator[Row]:
    """Yield the rows of one file."""
    try:
        with zipfile.ZipFile(source.path) as archive:
            for part in _SPLITS:
                yield from _read_part(archive, source, part=part)
    except _DAMAGED as error:
        problem = "FILE_UNREADABLE", f"{source.place}: damaged ({error}); fetch it again"
        yield _row(source, "", problem=problem)


def _read_part(archive: zipfile.ZipFile, source: _Source, *, part: str) -> list[Row]:
    """Return the rows of one split."""
    try:
        shape = _image_shape(archive, f"{part}_images")
        labels = _read_labels(archive, f"{part}_labels", number=shape[0])
    except _MemberError as error:
        return [_row(source, part, problem=("BAD_MEMBER", f"{source.place}: {error}"))]
    _, depth, height, width = shape
    return [
        _row(source, part, item=item, label=label, shape=(depth, height, width))
        for item, label in enumerate(labels)
    ]


def _open(archive: zipfile.ZipFile, member: str) -> Any:
    """Open the bytes of an array."""
    try:
        return archive.open(f"{member}.npy")
    except KeyError as error:
        raise _MemberError(f"no array {member}; fetch it again") from error


def _header(stream: Any) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Return shape, dtype and whether the first axis is the fastest, of an .npy stream."""
    read = npy.read_array_header_1_0
    if npy.read_magic(stream) != (1, 0):
        read = npy.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return shape, dtype, fortran


def _image_shape(archive: zipfile.ZipFile, member: str) -> tuple[int, int, int, int]:
    """Return (N, D, H, W) of an array of volumes."""
    with _open(archive, member) as stream:
        shape, dtype, fortran = _header(stream)
        held = archive.getinfo(f"{member}.npy").file_size - stream.tell()
    if len(shape) != 4 or dtype != np.uint8 or fortran:
        order = ", first axis fastest" if fortran else ""
        raise _MemberError(
            f"{member} is {dtype} {shape}{order}, wanted uint8 (N, D, H, W); fetch it again"
        )
    if held != math.prod(shape):
        raise _MemberError(
            f"{member} has {held} bytes of voxels, {math.prod(shape)} wanted; fetch it again"
        )
    number, depth, height, width = shape
    return number, depth, height, width


def _read_labels(archive: zipfile.ZipFile, member: str, *, number: int) -> list[int]:
    """Return the labels of an array's volumes."""
    with _open(archive, member) as stream:
        shape, dtype, _ = _header(stream)
        if dtype.kind not in "iu" or shape not in ((number, 1), (number,)):
            raise _MemberError(
                f"{member} is {dtype} {shape}, wanted an integer for each of {number} volumes; "
                f"fetch it again"
            )
        data = stream.read(number * dtype.itemsize)
    if len(data) != number * dtype.itemsize:
        raise _MemberError(f"{member} ends after {len(data)} bytes; fetch it again")
    return np.frombuffer(data, dtype).tolist()


def _row(
    source: _Source,
    part: str,
    *,
    item: int | None = None,
    label: int = 0,
    shape: tuple[int, int, int] | None = None,
    problem: Problem | None = None,
) -> Row:
    """Return the row of one volume; of a split or a file where there is no item."""
    names = [source.flag + source.size, *([part] if part else [])]
    # Both sizes show the same structure: one patient, so that no split divides it.
    thing = [source.flag, *names[1:]]
    if item is not None:
        names, thing = ([*many, f"{item:05d}"] for many in (names, thing))
    classes = CLASSES[source.flag]
    known = item is not None and 0 <= label < len(classes)
    if item is not None and not known:
        wanted = f"wanted 0 to {len(classes) - 1}; fetch it again"
        problem = "BAD_MEMBER", f"{source.place}: {part}_labels[{item}] is {label}, {wanted}"
    size, mtime_ns = size_and_mtime([source.path])
    metadata = {"flag": source.flag, "member": f"{part}_images", "label": label} if known else {}
    return Row(
        volume="_".join(names),
        dataset="medmnist3d",
        patient="_".join(thing),
        study="_".join(thing),
        split=_SPLITS.get(part, "train"),
        kind="npz",
        domain="uint8",
        sources=(source.place,),
        item=item,
        size=size,
        mtime_ns=mtime_ns,
        shape=shape,
        metadata=json.dumps(metadata, sort_keys=True),
        label=classes[label] if known else None,
        problem=problem and problem[0],
        problem_message=problem and problem[1],
    )
