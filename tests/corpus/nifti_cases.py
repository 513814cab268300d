"""NIfTI files, one for each way to be bad that a header, its voxels or its gzip stream have."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray

from tests.corpus.case import Case, body, odd

HU = body()
VOXELS = HU.astype("<i2").tobytes()
HEADER = 352


def nifti(voxels: bytes = VOXELS, **fields: Any) -> bytes:
    """Return a NIfTI-1 file of 24 x 20 x 12 voxels whose header fields are replaced unchecked."""
    header = Nifti1Header(endianness="<")
    header["dim"] = [3, 24, 20, 12, 1, 1, 1, 1]
    header["pixdim"] = [1, 2.5, 2.5, 4, 0, 0, 0, 0]
    header["datatype"], header["bitpix"] = 4, 16
    header["sform_code"], header["qform_code"] = 1, 0
    header["srow_x"], header["srow_y"] = [-2.5, 0, 0, 30], [0, -2.5, 0, 40]
    header["srow_z"] = [0, 0, 4, -100]
    header["scl_slope"] = header["scl_inter"] = np.nan
    header["magic"], header["vox_offset"] = b"n+1", HEADER
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4) + voxels


def floats(values: NDArray[Any], **fields: Any) -> bytes:
    """Return a NIfTI file of float32 voxels."""
    return nifti(values.astype("<f4").tobytes(), datatype=16, bitpix=32, **fields)


def plain(content: bytes) -> Callable[[Path], object]:
    """Return a writer of an uncompressed file."""
    return lambda folder: (folder / "scan.nii").write_bytes(content)


def zipped(content: bytes) -> Callable[[Path], object]:
    """Return a writer of a file in a gzip stream."""
    return as_gz(gzip.compress(content, mtime=0))


def as_gz(content: bytes) -> Callable[[Path], object]:
    """Return a writer of bytes into a file whose name says gzip."""
    return lambda folder: (folder / "scan.nii.gz").write_bytes(content)


def flipped(content: bytes, place: int) -> bytes:
    """Return bytes of which one is inverted."""
    damaged = bytearray(content)
    damaged[place] ^= 0xFF
    return bytes(damaged)


def with_voxel(value: float) -> NDArray[np.float32]:
    """Return HU of which one voxel is replaced."""
    values = HU.astype(np.float32)
    values[5, 6, 7] = value
    return values


def same_names(folder: Path) -> None:
    """Write two files whose names differ in their ending only."""
    plain(nifti())(folder)
    zipped(nifti())(folder)


def from_elsewhere(folder: Path) -> None:
    """Write a link that leads nowhere."""
    (folder / "scan.nii.gz").symlink_to(folder / "gone.nii.gz")


GZ = gzip.compress(nifti(), mtime=0)
TEXT = b"the server is down, please try again later\n" * 40
BLANK = {"sform_code": 0, "qform_code": 0}
LABELS = (HU > -500).astype(np.int16) * 3

FILES = [
    Case("empty", "FILE_TRUNCATED", "ends within the header", plain(b"")),
    Case("empty-gz", "FILE_TRUNCATED", "ends within the header", as_gz(b"")),
    Case("empty-in-gz", "FILE_TRUNCATED", "ends within the header", zipped(b"")),
    Case("text", "FILE_UNREADABLE", "not a NIfTI file", plain(TEXT)),
    Case("text-gz", "FILE_UNREADABLE", "not a NIfTI file", as_gz(TEXT)),
    Case("text-in-gz", "FILE_UNREADABLE", "not a NIfTI file", zipped(TEXT)),
    Case("no-gz-in-gz", "FILE_UNREADABLE", "not a NIfTI file", as_gz(nifti())),
    Case("gz-named-nii", "FILE_UNREADABLE", "not a NIfTI file", plain(GZ)),
    Case("half-header", "FILE_TRUNCATED", "ends within the header", plain(nifti()[:200])),
    Case("header-only", "FILE_TRUNCATED", "cannot hold", plain(nifti()[:HEADER])),
    Case("voxels-cut", "FILE_TRUNCATED", "cannot hold", plain(nifti()[:-100])),
    Case("voxels-cut-in-gz", "FILE_TRUNCATED", "bytes of voxels", zipped(nifti()[:-100])),
    Case("gz-cut", "FILE_TRUNCATED", "gzip stream ends early", as_gz(GZ[: len(GZ) // 2])),
    Case("gz-trailer-cut", "FILE_TRUNCATED", "gzip stream ends early", as_gz(GZ[:-8])),
    Case("gz-flipped", "FILE_UNREADABLE", "damaged", as_gz(flipped(GZ, len(GZ) // 2))),
    Case("gz-checksum", "FILE_UNREADABLE", "damaged", as_gz(flipped(GZ, -6))),
    Case("gz-length", "FILE_UNREADABLE", "damaged", as_gz(flipped(GZ, -2))),
    Case("link-to-nowhere", "FILE_MISSING", "no such file", from_elsewhere),
    Case("same-names", "DUPLICATE_NAME", "has this name too", same_names, stored=1),
]

HEADERS = [
    Case("magic", "FILE_UNREADABLE", "not a NIfTI file", plain(nifti(magic=b"abc"))),
    Case("offset-in-header", "FILE_UNREADABLE", "NIfTI|offset", plain(nifti(vox_offset=16))),
    Case("offset-nan", "FILE_UNREADABLE", "NIfTI", plain(nifti(vox_offset=np.nan))),
    Case("offset-beyond", "FILE_TRUNCATED", "cannot hold", plain(nifti(vox_offset=90_000))),
    Case(
        "no-axes", "FILE_UNREADABLE", "shape|NIfTI", plain(nifti(dim=[0, 24, 20, 12, 1, 1, 1, 1]))
    ),
    Case("nine-axes", "FILE_UNREADABLE", "NIfTI", plain(nifti(dim=[9, 24, 20, 12, 1, 1, 1, 1]))),
    Case("zero-axis", "FILE_UNREADABLE", "shape", plain(nifti(dim=[3, 24, 0, 12, 1, 1, 1, 1]))),
    Case(
        "negative-axis", "FILE_UNREADABLE", "shape", plain(nifti(dim=[3, 24, -20, 12, 1, 1, 1, 1]))
    ),
    Case("huge-axes", "TOO_LARGE", "at most", plain(nifti(dim=[3, *[20_000] * 3, 1, 1, 1, 1]))),
    Case("large-axes", "FILE_TRUNCATED", "hold", zipped(nifti(dim=[3, *[1_200] * 3, 1, 1, 1, 1]))),
    Case("2d", "NOT_3D", "2 axes", plain(nifti(dim=[2, 24, 240, 1, 1, 1, 1, 1]))),
    Case("4d", "NOT_3D", "4 axes", plain(nifti(dim=[4, 24, 20, 6, 2, 1, 1, 1]))),
    Case("5d", "NOT_3D", "5 axes", plain(nifti(dim=[5, 24, 20, 6, 1, 2, 1, 1]))),
    Case("rgb", "NOT_SCALAR", "one number", plain(nifti(VOXELS * 2, datatype=128, bitpix=24))),
    Case("complex", "NOT_SCALAR", "one number", plain(nifti(VOXELS * 4, datatype=32, bitpix=64))),
    Case("datatype", "FILE_UNREADABLE", "NIfTI", plain(nifti(datatype=1234))),
    Case("one-slice", "SINGLE_SLICE", "single slice", plain(nifti(dim=[3, 24, 20, 1, 1, 1, 1, 1]))),
    Case("few-slices", "TOO_FEW_SLICES", "3 slices", plain(nifti(dim=[3, 24, 20, 3, 1, 1, 1, 1]))),
]

GEOMETRY = [
    Case("affine-nan", "BAD_GEOMETRY", "not finite", plain(nifti(srow_x=[np.nan] * 4))),
    Case("affine-inf", "BAD_GEOMETRY", "not finite", plain(nifti(srow_z=[0, 0, np.inf, 0]))),
    Case("affine-zero", "BAD_GEOMETRY", "singular", plain(nifti(srow_z=[0, 0, 0, 0]))),
    Case(
        "affine-parallel",
        "BAD_GEOMETRY",
        "singular",
        plain(nifti(srow_x=[-2.5, -2.5, 0, 30], srow_y=[0, -0.02, 0, 40])),
    ),
    Case(
        "quaternion-nan",
        "BAD_GEOMETRY",
        "not finite",
        plain(nifti(sform_code=0, qform_code=1, quatern_b=np.nan)),
    ),
    Case(
        "spacing-zero",
        "BAD_GEOMETRY",
        "spacing",
        plain(nifti(sform_code=0, qform_code=1, pixdim=[1, 0, 2.5, 4, 0, 0, 0, 0])),
    ),
    Case(
        "spacing-tiny",
        "BAD_GEOMETRY",
        "0.01 to 100 mm",
        plain(nifti(srow_x=[-1e-3, 0, 0, 0], srow_y=[0, -1e-3, 0, 0])),
    ),
    Case("spacing-vast", "BAD_GEOMETRY", "0.01 to 100 mm", plain(nifti(srow_z=[0, 0, 4000, 0]))),
    Case(
        "upright-vast",
        "TOO_LARGE",
        "recipe's grid",
        plain(nifti(srow_x=[-0.02, 0, 50, 0], srow_y=[0, -0.02, 50, 0], srow_z=[0, 0, 50, 0])),
    ),
    Case(
        "recipe-vast",
        "TOO_LARGE",
        "recipe's grid",
        zipped(
            nifti(
                np.tile(HU, (1, 12, 10)).tobytes(),
                dim=[3, 240, 240, 12, 1, 1, 1, 1],
                srow_x=[-99, 0, 0, 0],
                srow_y=[0, -99, 0, 0],
                srow_z=[0, 0, 99, 0],
            )
        ),
    ),
    Case("blank", "NO_GEOMETRY", "states no geometry", plain(nifti(pixdim=[1] * 8, **BLANK))),
]

VALUES = [
    Case("nan", "NAN_VOXELS", "1 voxels are not finite", zipped(floats(with_voxel(np.nan)))),
    Case("inf", "NAN_VOXELS", "1 voxels are not finite", zipped(floats(with_voxel(-np.inf)))),
    Case("scale-overflow", "NAN_VOXELS", "not finite", zipped(nifti(scl_slope=1e38, scl_inter=0))),
    Case("scale-half", "FILE_UNREADABLE", "NIfTI", zipped(nifti(scl_slope=2))),
    Case("mr", "HU_UNKNOWN", "do not look like HU", zipped(nifti((HU + 1100).tobytes()))),
    Case("unit-range", "HU_UNKNOWN", "HU", zipped(floats((HU + 1024) / 4096))),
    Case("attenuation", "HU_UNKNOWN", "HU", zipped(floats(HU / 1000))),
    Case("labels", "HU_UNKNOWN", "HU", zipped(nifti(LABELS.tobytes()))),
    Case("negated", "HU_UNKNOWN", "HU", zipped(nifti((-HU).tobytes()))),
    Case("all-tissue", "HU_UNKNOWN", "no gas", zipped(nifti((HU // 100 + 40).tobytes()))),
    Case(
        "constant",
        "NO_CONTRAST",
        "all its voxels are 7",
        zipped(nifti(np.full_like(HU, 7).tobytes())),
    ),
    Case("all-air", "HU_UNKNOWN", "0% soft", zipped(nifti((HU % 9 - 1000).tobytes()))),
    Case(
        "8-bit",
        "HU_UNKNOWN",
        "HU",
        zipped(nifti(((HU + 1100) // 8).astype("u1").tobytes(), datatype=2, bitpix=8)),
    ),
]

ODD = [
    odd("slope-zero-means-none", plain(nifti(scl_slope=0, scl_inter=5))),
    odd("magic-of-a-pair", plain(nifti(magic=b"ni1"))),
    odd("header-length", plain(nifti(sizeof_hdr=77))),
    odd("negative-pixdim", plain(nifti(pixdim=[1, -2.5, 2.5, 4, 0, 0, 0, 0]))),
    odd("qform-disagrees", plain(nifti(qform_code=1, pixdim=[1, 1, 1, 1, 0, 0, 0, 0]))),
    odd("sheared", plain(nifti(srow_y=[0, -2.5, 1.2, 40]))),
    odd("no-code-but-spacing", plain(nifti(**BLANK))),
    odd("fourth-axis-of-one", plain(nifti(dim=[4, 24, 20, 12, 1, 1, 1, 1]))),
    odd("more-bytes-than-voxels", zipped(nifti(VOXELS + b"end of file"))),
    odd(
        "two-gzip-members",
        as_gz(gzip.compress(nifti()[:999], mtime=0) + gzip.compress(nifti()[999:], mtime=0)),
    ),
    odd("padded-below-air", zipped(nifti(np.where(HU < -990, -3024, HU).astype("<i2").tobytes()))),
    odd(
        "metres",
        zipped(
            nifti(
                xyzt_units=1,
                srow_x=[-25e-4, 0, 0, 0],
                srow_y=[0, -25e-4, 0, 0],
                srow_z=[0, 0, 4e-3, 0],
            )
        ),
    ),
]

NIFTI_CASES = [*FILES, *HEADERS, *GEOMETRY, *VALUES, *ODD]
