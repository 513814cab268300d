"""The grid that an NRRD or MetaImage header states: axes, voxel type, place in the patient.

Sources: as `itk_header`; where both leave it open, what ITK makes of the header. ITK itself does
not read it here: a damaged MetaImage header makes it crash or never return.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ct3dlib.errors import VolumeError
from ct3dlib.scan.geometry import Affine, Index, check_grid
from ct3dlib.scan.itk_header import TextHeader
from ct3dlib.scan.reading import JSON, check_size

_UNIT_MM = {"m": 1000.0, "cm": 10.0, "mm": 1.0, "millimeter": 1.0, "um": 0.001, "???": 1.0}
_SPACES = {
    **dict.fromkeys(("left-posterior-superior", "lps"), (1.0, 1.0, 1.0)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (-1.0, -1.0, 1.0)),
    **dict.fromkeys(("left-anterior-superior", "las"), (1.0, -1.0, 1.0)),
}
_DOMAIN_KINDS = ("domain", "space", "???", "none")
_MORE_VOLUMES = ("list", "time")
_VECTOR = re.compile(r"none|\([^)]*\)")
_TYPES = {
    **dict.fromkeys(("char", "signed char", "int8", "int8_t", "met_char"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t", "met_uchar"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int"), "i2"),
    **dict.fromkeys(("int16", "int16_t", "met_short"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int"), "u2"),
    **dict.fromkeys(("uint16", "uint16_t", "met_ushort"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "met_int", "met_long"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t", "met_uint", "met_ulong"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long"), "i8"),
    **dict.fromkeys(("signed long long int", "int64", "int64_t", "met_long_long"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int"), "u8"),
    **dict.fromkeys(("uint64", "uint64_t", "met_ulong_long"), "u8"),
    **dict.fromkeys(("float", "met_float"), "f4"),
    **dict.fromkeys(("double", "met_double"), "f8"),
}


@dataclass(frozen=True, eq=False)
class Grid:
    """What a header states of its voxels.

    Args:
        shape: D H W, slowest to fastest axis of the file.
        dtype: Of a voxel, in the file's byte order.
        affine: Voxel (d, h, w, 1) to LPS mm; null where the header states no spacing.
        facts: What was odd about it.
    """

    shape: Index
    dtype: np.dtype[np.generic]
    affine: Affine | None
    facts: Mapping[str, JSON]


def read_grid(text: TextHeader) -> Grid:
    """Return the grid of a header.

    Raises:
        VolumeError: `FILE_UNREADABLE`, `NOT_SCALAR`, `NOT_3D`, `TOO_LARGE` or `BAD_GEOMETRY`.
    """
    dtype = _dtype(text)
    shape, axes = _nrrd_axes(text) if text.kind == "nrrd" else _meta_axes(text)
    found = _nrrd_affine(text, axes) if text.kind == "nrrd" else _meta_affine(text)
    if found is None:
        return Grid(shape, dtype, None, {})
    affine, oriented = found
    unit = _unit_mm(text)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused as infinite
        affine[:3] *= unit
        check_grid(text.path, affine)
    facts: dict[str, JSON] = {}
    if unit != 1:
        facts["header_unit_mm"] = unit
    if not oriented:
        facts["assumed_orientation"] = True
    return Grid(shape, dtype, affine[:, [2, 1, 0, 3]], facts)


def _dtype(text: TextHeader) -> np.dtype[np.generic]:
    """Return the type of a voxel."""
    name = text.fields.get("type" if text.kind == "nrrd" else "elementtype", "")
    code = _TYPES.get(" ".join(name.lower().split()))
    if code is None:
        raise VolumeError(
            "NOT_SCALAR",
            f"{text.path}: voxels of type {name!r}, wanted one number per voxel; convert it",
        )
    return np.dtype(f"{'>' if text.big_endian else '<'}{code}")


def _nrrd_axes(text: TextHeader) -> tuple[Index, list[int]]:
    """Return the D H W lengths, and which axes of the file W, H and D are."""
    sizes = _lengths(text, "dimension", "sizes")
    kinds = text.fields.get("kinds", "").lower().split() or ["domain"] * len(sizes)
    vectors = _VECTOR.findall(text.fields.get("spacedirections", "").lower())
    if len(kinds) != len(sizes) or len(vectors) not in (0, len(sizes)):
        raise VolumeError(
            "FILE_UNREADABLE",
            f"{text.path}: {len(kinds)} kinds and {len(vectors)} directions of {len(sizes)} axes; "
            f"write the header anew",
        )
    axes = []
    for axis, (size, kind) in enumerate(zip(sizes, kinds, strict=True)):
        inside = vectors[axis] != "none" if vectors else kind in _DOMAIN_KINDS
        if inside:
            axes.append(axis)
        elif size > 1 and kind in _MORE_VOLUMES:
            raise VolumeError(
                "NOT_3D",
                f"{text.path}: an axis of kind {kind} and length {size}, wanted axes of space; "
                f"split it into one file per volume",
            )
        elif size > 1:
            raise VolumeError(
                "NOT_SCALAR",
                f"{text.path}: {size} values per voxel ({kind}), wanted one number; convert it",
            )
    while len(axes) > 3 and sizes[axes[-1]] == 1:
        axes.pop()
    return _shape(text, [sizes[axis] for axis in axes]), axes


def _meta_axes(text: TextHeader) -> tuple[Index, list[int]]:
    """Return the D H W lengths; the axes of a MetaImage are all of space."""
    sizes = _lengths(text, "ndims", "dimsize")
    channels = text.fields.get("elementnumberofchannels", "1")
    if channels != "1":
        raise VolumeError(
            "NOT_SCALAR",
            f"{text.path}: {channels} values per voxel, wanted one number; convert it",
        )
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    return _shape(text, sizes), [0, 1, 2]


def _lengths(text: TextHeader, count: str, name: str) -> list[int]:
    """Return the lengths of the file's axes, fastest first, as many as it says."""
    words = text.fields.get(name, "").split()
    stated = text.fields.get(count, "")
    if not words or not all(word.isdecimal() for word in words) or stated != str(len(words)):
        raise VolumeError(
            "FILE_UNREADABLE",
            f"{text.path}: {name} are {' '.join(words)!r} of {stated!r} axes, wanted as many whole "
            f"numbers; write the header anew",
        )
    sizes = [int(word) for word in words]
    check_size(text.path, sizes)
    return sizes


def _shape(text: TextHeader, sizes: list[int]) -> Index:
    """Return D H W of the lengths along W, H, D."""
    if len(sizes) != 3:
        raise VolumeError(
            "NOT_3D",
            f"{text.path}: {len(sizes)} axes {tuple(sizes)}, wanted 3; split it into one file per "
            f"volume",
        )
    return sizes[2], sizes[1], sizes[0]


def _nrrd_affine(text: TextHeader, axes: list[int]) -> tuple[Affine, bool] | None:
    """Return the affine of (i, j, k) to LPS, and whether the file names its space."""
    fields = text.fields
    affine = np.eye(4)
    vectors = _VECTOR.findall(fields.get("spacedirections", "").lower())
    if not vectors:
        steps = [fields.get("spacings", "").lower().split()[axis : axis + 1] for axis in axes]
        if any(step in ([], ["nan"]) for step in steps):
            return None
        affine[[0, 1, 2], [0, 1, 2]] = _steps(text, " ".join(step[0] for step in steps))
        return affine, False
    for column, axis in enumerate(axes):
        affine[:3, column] = _numbers(text, vectors[axis].strip("()").replace(",", " "), 3)
    if origin := fields.get("spaceorigin"):
        affine[:3, 3] = _numbers(text, origin.strip("()").replace(",", " "), 3)
    signs = _SPACES.get(fields.get("space", "").lower())
    affine[:3] *= np.reshape(signs or (1.0, 1.0, 1.0), (3, 1))
    return affine, signs is not None


def _meta_affine(text: TextHeader) -> tuple[Affine, bool] | None:
    """Return the affine of (i, j, k) to LPS, and whether the file states its directions."""
    fields = text.fields
    steps = fields.get("elementspacing") or fields.get("elementsize")
    if steps is None:
        return None
    affine = np.eye(4)
    matrix = next(
        (fields[n] for n in ("transformmatrix", "orientation", "rotation") if n in fields), None
    )
    if matrix is not None:
        count = int(fields["ndims"])
        # A row of the matrix is the direction of an axis, a column of the affine.
        rows = np.reshape(_numbers(text, matrix, count * count), (count, count))
        affine[:3, :3] = rows.T[:3, :3]
    affine[:3, :3] *= _steps(text, steps)
    offset = next((fields[n] for n in ("offset", "position", "origin") if n in fields), "0 0 0")
    affine[:3, 3] = _numbers(text, offset, 3)
    return affine, matrix is not None


def _steps(text: TextHeader, words: str) -> list[float]:
    """Return the spacing along the first three axes."""
    steps = _numbers(text, words, 3)
    if not all(0 < step < math.inf for step in steps):
        raise VolumeError(
            "BAD_GEOMETRY",
            f"{text.path}: spacing {steps}, wanted positive numbers; write the header anew",
        )
    return steps


def _numbers(text: TextHeader, words: str, count: int) -> list[float]:
    """Return the first numbers of a field of the geometry."""
    try:
        numbers = [float(word) for word in words.split()[:count]]
    except ValueError:
        numbers = []
    if len(numbers) < max(count, 3):
        raise VolumeError(
            "BAD_GEOMETRY",
            f"{text.path}: {words!r} in its geometry, wanted at least {max(count, 3)} numbers; "
            f"write the header anew",
        )
    return numbers


def _unit_mm(text: TextHeader) -> float:
    """Return the length of a header's unit, mm."""
    fields = text.fields
    stated = fields.get("spaceunits") or fields.get("units") or fields.get("distanceunits", "")
    units = {_UNIT_MM.get(word) for word in stated.replace('"', " ").lower().split()[:3]} or {1.0}
    unit = units.pop()
    if unit is None or units:
        raise VolumeError(
            "BAD_GEOMETRY",
            f"{text.path}: distances in {stated}, wanted one of {', '.join(_UNIT_MM)} for all axes;"
            f" write the header anew",
        )
    return unit
