"""NRRD and MetaImage files, one for each way to be bad of header, voxels and file beside it."""

import gzip
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from tests.corpus.case import Case, odd
from tests.corpus.nifti_cases import HU, TEXT, VOXELS, flipped, with_voxel

NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "24 20 12",
    "space directions": "(2.5,0,0) (0,2.5,0) (0,0,4)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(-30,-25,100)",
}
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "-30 -25 100",
    "ElementSpacing": "2.5 2.5 4",
    "DimSize": "24 20 12",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}

Fields = Mapping[str, str | None]
SOUND: Fields = {}


def nrrd(fields: Fields = SOUND, voxels: bytes = VOXELS) -> bytes:
    """Return an NRRD file whose fields are replaced; None takes one out."""
    kept = {name: value for name, value in {**NRRD, **fields}.items() if value is not None}
    lines = ["NRRD0004", *(f"{name}: {value}" for name, value in kept.items()), "", ""]
    return "\n".join(lines).encode() + voxels


def meta(fields: Fields = SOUND, voxels: bytes = VOXELS) -> bytes:
    """Return a MetaImage file whose fields are replaced; None takes one out."""
    merged = {**META, **fields}
    merged["ElementDataFile"] = merged.pop("ElementDataFile")  # must be the last
    lines = [f"{name} = {value}" for name, value in merged.items() if value is not None]
    return "\n".join([*lines, ""]).encode() + voxels


def as_nrrd(content: bytes) -> Callable[[Path], object]:
    """Return a writer of an NRRD file."""
    return lambda folder: (folder / "scan.nrrd").write_bytes(content)


def as_meta(content: bytes) -> Callable[[Path], object]:
    """Return a writer of a MetaImage file."""
    return lambda folder: (folder / "scan.mha").write_bytes(content)


def beside(header: str, content: bytes, data: str | None) -> Callable[[Path], object]:
    """Return a writer of a header and, unless null, of the voxels in a file beside it."""

    def write(folder: Path) -> None:
        (folder / header).write_bytes(content)
        if data is not None:
            (folder / data).write_bytes(VOXELS)

    return write


PACKED = gzip.compress(VOXELS, mtime=0)
DEFLATED = zlib.compress(VOXELS)
GZ = {"encoding": "gzip"}
DEFLATE = {"CompressedData": "True", "CompressedDataSize": str(len(DEFLATED))}
MR = (HU + 1100).tobytes()

NRRD_CASES = [
    Case("nrrd-empty", "FILE_TRUNCATED", "cut short", as_nrrd(b"")),
    Case("nrrd-text", "FILE_UNREADABLE", "neither", as_nrrd(TEXT)),
    Case("nrrd-half-header", "FILE_TRUNCATED", "header", as_nrrd(nrrd()[:80])),
    Case("nrrd-no-voxels", "FILE_TRUNCATED", "cut short", as_nrrd(nrrd(voxels=b""))),
    Case("nrrd-voxels-cut", "FILE_TRUNCATED", "cut short", as_nrrd(nrrd()[:-100])),
    Case("nrrd-gz-cut", "FILE_TRUNCATED", "cut short", as_nrrd(nrrd(GZ, PACKED[:-400]))),
    Case("nrrd-gz-trailer", "FILE_TRUNCATED", "cut short", as_nrrd(nrrd(GZ, PACKED[:-8]))),
    Case("nrrd-gz-flipped", "FILE_UNREADABLE", "damaged", as_nrrd(nrrd(GZ, flipped(PACKED, 2000)))),
    Case("nrrd-ascii", "FILE_UNREADABLE", "encoding", as_nrrd(nrrd({"encoding": "ascii"}))),
    Case("nrrd-type", "NOT_SCALAR", "of type", as_nrrd(nrrd({"type": "quaternion"}))),
    Case(
        "nrrd-2d",
        "NOT_3D",
        "2 axes",
        as_nrrd(
            nrrd(
                {
                    "dimension": "2",
                    "sizes": "24 240",
                    "space": None,
                    "space directions": None,
                    "space origin": None,
                    "kinds": None,
                    "spacings": "1 1",
                }
            )
        ),
    ),
    Case("nrrd-zero-axis", "FILE_UNREADABLE", "header", as_nrrd(nrrd({"sizes": "24 0 12"}))),
    Case("nrrd-huge", "TOO_LARGE", "at most", as_nrrd(nrrd({"sizes": "20000 20000 20000"}))),
    Case(
        "nrrd-no-spacing",
        "NO_GEOMETRY",
        "no spacing",
        as_nrrd(nrrd({"space": None, "space directions": None, "space origin": None})),
    ),
    Case(
        "nrrd-zero-direction",
        "BAD_GEOMETRY",
        "",
        as_nrrd(nrrd({"space directions": "(0,0,0) (0,2.5,0) (0,0,4)"})),
    ),
    Case(
        "nrrd-parallel",
        "BAD_GEOMETRY",
        "",
        as_nrrd(nrrd({"space directions": "(2.5,0,0) (2.5,0,0) (0,0,4)"})),
    ),
    Case("nrrd-metres", "BAD_GEOMETRY", "mm", as_nrrd(nrrd({"space units": '"m" "m" "m"'}))),
    Case(
        "nrrd-nan",
        "NAN_VOXELS",
        "1 voxels",
        as_nrrd(nrrd({"type": "float"}, with_voxel(np.nan).tobytes())),
    ),
    Case("nrrd-mr", "HU_UNKNOWN", "HU", as_nrrd(nrrd(voxels=MR))),
    Case(
        "nhdr-alone",
        "FILE_MISSING",
        "no such file",
        beside("scan.nhdr", nrrd({"data file": "scan.raw"}, b""), None),
    ),
    Case(
        "nhdr-elsewhere",
        "UNSAFE_PATH",
        "beside",
        beside("scan.nhdr", nrrd({"data file": "../../scan.raw"}, b""), "scan.raw"),
    ),
    odd("nrrd-gz", as_nrrd(nrrd(GZ, PACKED))),
    odd("nrrd-ras", as_nrrd(nrrd({"space": "right-anterior-superior"}))),
    odd("nhdr-raw", beside("scan.nhdr", nrrd({"data file": "scan.raw"}, b""), "scan.raw")),
]

META_CASES = [
    Case("mha-text", "FILE_UNREADABLE", "neither", as_meta(TEXT)),
    Case("mha-half-header", "FILE_TRUNCATED", "header", as_meta(meta()[:90])),
    Case("mha-voxels-cut", "FILE_TRUNCATED", "cut short", as_meta(meta()[:-100])),
    Case("mha-packed-cut", "FILE_TRUNCATED", "cut short", as_meta(meta(DEFLATE, DEFLATED[:-300]))),
    Case(
        "mha-packed-flipped",
        "FILE_UNREADABLE",
        "damaged",
        as_meta(meta(DEFLATE, flipped(DEFLATED, 2000))),
    ),
    Case("mha-as-text", "FILE_UNREADABLE", "text", as_meta(meta({"BinaryData": "False"}))),
    Case("mha-type", "NOT_SCALAR", "of type", as_meta(meta({"ElementType": "MET_ODD"}))),
    Case(
        "mha-colours",
        "NOT_SCALAR",
        "3 values per voxel",
        as_meta(meta({"ElementNumberOfChannels": "3"}, VOXELS * 3)),
    ),
    Case("mha-huge", "TOO_LARGE", "at most", as_meta(meta({"DimSize": "20000 20000 20000"}))),
    Case("mha-zero-axis", "FILE_UNREADABLE", "", as_meta(meta({"DimSize": "24 0 12"}))),
    Case("mha-no-spacing", "NO_GEOMETRY", "no spacing", as_meta(meta({"ElementSpacing": None}))),
    Case("mha-zero-spacing", "BAD_GEOMETRY", "", as_meta(meta({"ElementSpacing": "0 2.5 4"}))),
    Case("mha-nan-spacing", "BAD_GEOMETRY", "", as_meta(meta({"ElementSpacing": "nan 2.5 4"}))),
    Case("mha-vast-spacing", "BAD_GEOMETRY", "", as_meta(meta({"ElementSpacing": "2500 2500 4"}))),
    Case(
        "mha-parallel", "BAD_GEOMETRY", "", as_meta(meta({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}))
    ),
    Case(
        "mhd-alone",
        "FILE_MISSING",
        "no such file",
        beside("scan.mhd", meta({"ElementDataFile": "scan.raw"}, b""), None),
    ),
    Case(
        "mhd-list",
        "FILE_UNREADABLE",
        "one file",
        beside("scan.mhd", meta({"ElementDataFile": "LIST"}, b"a.raw\n"), None),
    ),
    odd("mha-packed", as_meta(meta(DEFLATE, DEFLATED))),
    odd("mhd-raw", beside("scan.mhd", meta({"ElementDataFile": "scan.raw"}, b""), "scan.raw")),
]

ITK_CASES = [*NRRD_CASES, *META_CASES]
