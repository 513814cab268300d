"""NIfTI files: read fast and checked, write whole or not at all."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from isal import igzip
from isal.igzip_lib import IsalError
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Image
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from ct3dlib.config import Triple
from ct3dlib.errors import VolumeError
from ct3dlib.scan.geometry import check_grid, shear
from ct3dlib.scan.nifti_classes import classes_extension
from ct3dlib.scan.reading import (
    JSON,
    MAX_DEFLATE,
    Reading,
    check_finite,
    check_size,
    cut_short,
    file_sha256,
    narrow,
)
from ct3dlib.scan.volume import Volume

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_HEADER_BYTES = 352
_SAME_PLACE = 0.1  # mm; a qform has its angles in float32
_UNIT_MM = {1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units of the header: metre, mm, micrometre
_WRITES = (np.int16, np.uint8, np.float32)
# The stubs of isal call this class an instance.
_DAMAGED: tuple[type[Exception], ...] = (OSError, zlib.error, IsalError)  # pyright: ignore[reportAssignmentType]
_BROKEN = (*_DAMAGED, ImageFileError, HeaderDataError, EOFError, ValueError, OverflowError)


def read_nifti(path: Path, *, spacing: Triple | None = None) -> Reading:
    """Read a NIfTI-1 or -2 file.

    The array is D H W = file axes k, j, i; the header's scale is applied. A header that states no
    geometry is filled from `spacing`, its axes taken as LPS (CT-RATE's first release); a header
    that does state one is believed, and a spacing that differs by more than 1 % is noted.

    Args:
        path: A .nii or .nii.gz file.
        spacing: (D, H, W) from a table beside the file, mm.

    Raises:
        VolumeError: `FILE_MISSING`, `FILE_TRUNCATED`, `FILE_UNREADABLE`, `NOT_SCALAR`,
            `TOO_LARGE`, `NOT_3D`, `NAN_VOXELS`, `BAD_GEOMETRY` or `NO_GEOMETRY`.
    """
    image = _open(path)
    shape = _shape(path, image)
    affine, facts = _geometry(path, image, spacing)
    array, scale = _values(path, image, shape)
    facts |= {"format": "nifti", "stored_dtype": str(image.get_data_dtype())}
    return Reading(
        volume=Volume(array, affine),
        slope=scale[0] if scale else None,
        intercept=scale[1] if scale else None,
        hu=None,
        sha256=file_sha256(path),
        facts=facts,
        source=str(path),
    )


def _open(path: Path) -> Any:
    """Parse the header; no voxel is read."""
    try:
        if not path.is_file():
            raise VolumeError("FILE_MISSING", f"{path}: no such file; correct the catalog")
        with path.open("rb"):  # nibabel names other reasons for a file that may not be read
            pass
        image = nibabel.load(path)
    except PermissionError as error:
        raise VolumeError(
            "FILE_UNREADABLE", f"{path}: no permission to read it; grant it to this user"
        ) from error
    except _BROKEN as error:
        if _header_is_cut(path):
            raise cut_short(path, "it ends within the header") from error
        if "w2 should be positive" in str(error):  # nibabel's check of a quaternion
            raise VolumeError(
                "BAD_GEOMETRY",
                f"{path}: the qform's quaternion (quatern_b, c, d) is longer than 1; write the "
                f"header anew",
            ) from error
        raise VolumeError(
            "FILE_UNREADABLE", f"{path}: not a NIfTI file ({error}); fetch it again"
        ) from error
    if not isinstance(image, Nifti1Image):
        raise VolumeError(
            "FILE_UNREADABLE",
            f"{path}: a {type(image).__name__}, wanted one NIfTI file; convert it",
        )
    return image


def _header_is_cut(path: Path) -> bool:
    """Return whether a file ends before a NIfTI-1 header does."""
    try:
        with _stream(path) as stream:
            return len(stream.read(_HEADER_BYTES)) < _HEADER_BYTES
    except EOFError:
        return True
    except _DAMAGED:
        return path.stat().st_size == 0


def _shape(path: Path, image: Any) -> tuple[int, int, int]:
    """Return the file's (k, j, i) lengths after they were checked against its size."""
    lengths = tuple(int(n) for n in image.shape)
    check_size(path, lengths or (0,))
    while len(lengths) > 3 and lengths[-1] == 1:
        lengths = lengths[:-1]
    if len(lengths) != 3:
        raise VolumeError(
            "NOT_3D",
            f"{path}: {len(lengths)} axes {lengths}, wanted 3; split it into one file per volume",
        )
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise VolumeError(
            "NOT_SCALAR", f"{path}: voxels of type {dtype}, wanted one number per voxel; convert it"
        )
    needed = image.dataobj.offset + int(np.prod(lengths, dtype=np.int64)) * dtype.itemsize
    size = path.stat().st_size
    if needed > size * (MAX_DEFLATE if _zipped(path) else 1):
        raise cut_short(path, f"{size} bytes cannot hold the {needed} that its header states")
    i, j, k = lengths
    return k, j, i


def _zipped(path: Path) -> bool:
    """Return whether a file's name says gzip, as nibabel reads it."""
    return path.name.lower().endswith(".gz")


def _geometry(
    path: Path, image: Any, spacing: Triple | None
) -> tuple[NDArray[np.float64], dict[str, JSON]]:
    """Return the affine, D H W to LPS mm, and what was odd about it."""
    header = image.header
    coded = int(header["qform_code"]) > 0 or int(header["sform_code"]) > 0
    zooms = _stated_spacing(path, image)
    if spacing is not None and (not coded or np.array_equal(image.affine, np.eye(4))):
        affine = np.zeros((4, 4))
        affine[[2, 1, 0, 3], [0, 1, 2, 3]] = *spacing, 1
        return affine, {"blank_header": True}
    if not coded and np.all(zooms == 1):
        raise VolumeError(
            "NO_GEOMETRY",
            f"{path}: the header states no geometry and no spacing is known; add it to the "
            f"metadata or write the header anew",
        )
    # Without an sform nibabel puts 1 mm in the place of a spacing of 0: that is no geometry.
    if int(header["sform_code"]) <= 0 and not np.all(zooms > 0):
        raise VolumeError(
            "BAD_GEOMETRY",
            f"{path}: spacing {zooms.tolist()} mm, wanted positive numbers; write the header anew",
        )
    with np.errstate(invalid="ignore"):  # 0 * infinity
        affine = _RAS_TO_LPS @ np.asarray(image.affine, dtype=np.float64)[:, [2, 1, 0, 3]]
    unit = unit_mm(header)
    affine[:3] *= unit
    zooms *= unit
    check_grid(path, affine)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    facts = _qform_facts(image, unit)
    if unit != 1:
        facts["header_unit_mm"] = unit
    if not coded:
        facts["assumed_orientation"] = True
    if not np.allclose(lengths, zooms[::-1], rtol=0.01):
        facts["header_spacing_differs"] = zooms[::-1].tolist()
    if spacing is not None and not np.allclose(lengths, spacing, rtol=0.01):
        facts["metadata_spacing_differs"] = list(spacing)
    return affine, facts


def _qform_facts(image: Any, unit: float) -> dict[str, JSON]:
    """Return what is odd about a qform beside an sform, which is what counts.

    Noted is how far apart the two put a corner of the grid, mm.
    """
    sform, _ = image.get_sform(coded=True)
    if sform is None or int(image.header["qform_code"]) <= 0:
        return {}
    try:
        qform, _ = image.get_qform(coded=True)
    except ValueError:
        return {"bad_qform": True}
    if not np.isfinite(qform).all():
        return {"bad_qform": True}
    far = np.subtract(image.shape[:3], 1)
    corners = np.array([(*(far * at), 1) for at in np.ndindex(2, 2, 2)], dtype=np.float64)
    away = float(np.linalg.norm(corners @ (sform - qform).T, axis=1).max()) * unit
    return {"qform_differs_mm": round(away, 3)} if away > _SAME_PLACE else {}


def unit_mm(header: Any) -> float:
    """Return the length of a NIfTI header's unit, mm; millimetres where it states none."""
    return _UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)


def _stated_spacing(path: Path, image: Any) -> NDArray[np.float64]:
    """Return the header's (i, j, k) spacing in mm as it is written, before nibabel mends it."""
    try:
        with _stream(path) as stream:
            header = type(image.header).from_fileobj(stream, check=False)
    except EOFError as error:  # a buffer read ahead, beyond where a short file was cut
        raise cut_short(path, "the gzip stream ends early") from error
    return np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))


def _values(
    path: Path, image: Any, shape: tuple[int, int, int]
) -> tuple[NDArray[np.generic], tuple[float, float] | None]:
    """Return the scaled voxels, int16 or float32, and the scale where the header has one."""
    raw = np.empty(shape, dtype=image.get_data_dtype())
    try:
        with _stream(path) as stream:
            stream.seek(image.dataobj.offset)
            _fill(path, stream, raw)
            stream.read(1)  # past the last voxel: has the gzip trailer checked
    except EOFError as error:
        raise cut_short(path, "the gzip stream ends early") from error
    except _DAMAGED as error:
        raise VolumeError(
            "FILE_UNREADABLE", f"{path}: damaged ({error}); fetch it again"
        ) from error
    slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    scaled = (slope, intercept) != (1.0, 0.0)
    array = _compact(raw, slope, intercept) if scaled else narrow(raw)
    check_finite(array, path)
    return array, (slope, intercept) if scaled else None


def _stream(path: Path) -> Any:
    """Open a file for its bytes after decompression."""
    return igzip.open(path, "rb") if _zipped(path) else path.open("rb")


def _fill(path: Path, stream: Any, array: NDArray[np.generic]) -> None:
    """Read exactly an array's bytes."""
    view = array.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        count = stream.readinto(view[done:])
        if not count:
            raise cut_short(path, f"{done} of {len(view)} bytes of voxels are there")
        done += count


def _compact(raw: NDArray[np.generic], slope: float, intercept: float) -> NDArray[np.float32]:
    """Return scaled values as float32; what overflows becomes infinite and is refused later."""
    with np.errstate(over="ignore", invalid="ignore"):
        return raw.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def write_nifti(path: Path, volume: Volume, *, classes: Mapping[int, str] | None = None) -> None:
    """Write a volume as NIfTI-1; the file appears whole or not at all.

    File axes i, j, k are W, H, D. The sform holds the affine; the qform too, unless the grid is
    sheared, which a qform cannot say. The same volume gives the same bytes.

    Args:
        path: Ends in .nii or .nii.gz.
        volume: int16, uint8 or float32.
        classes: Names of the numbers in a label map, put into the header's extension.

    Raises:
        ValueError: Another dtype or another ending.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: a NIfTI file ends in .nii or .nii.gz")
    if volume.array.dtype not in _WRITES:
        raise ValueError(f"{path}: dtype {volume.array.dtype}, wanted int16, uint8 or float32")
    affine = _RAS_TO_LPS @ volume.affine[:, [2, 1, 0, 3]]
    image = Nifti1Image(volume.array.transpose(2, 1, 0), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1 if shear(volume.affine) < 1e-4 else 0)
    image.header.set_xyzt_units("mm")
    if classes is not None:
        image.header.extensions.append(classes_extension(classes))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as raw:
        if _zipped(path):
            with igzip.IGzipFile("", "wb", fileobj=raw, mtime=0) as zipped:
                image.to_stream(zipped)
        else:
            image.to_stream(raw)
    partial.replace(path)
