"""Slices as JPEG pictures: windowed grey values of 8 bits, without a place in the patient."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ct3dlib.config import Triple
from ct3dlib.errors import VolumeError
from ct3dlib.scan.reading import JSON, Reading, check_size, cut_short, file_sha256, files_sha256
from ct3dlib.scan.volume import Volume

_UNKNOWN_SPACING = (1.0, 1.0, 1.0)
_LESION_ABOVE = 127
_MASK_QUALITY = 95


def read_jpeg(paths: Sequence[Path], *, spacing: Triple | None = None) -> Reading:
    """Read pictures of slices as one volume of domain "window8".

    Colour becomes luminance (ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B). EXIF orientation is not
    applied: the rows of the file are the rows of the volume. The axes are taken as LPS, which no
    JPEG says; a spacing that is not given is 1 mm, and the facts say so.

    Args:
        paths: One file per slice, in the order of D.
        spacing: (D, H, W) from elsewhere, mm.

    Returns:
        uint8, 0 to 255, D H W.

    Raises:
        VolumeError: `FILE_MISSING`, `FILE_TRUNCATED`, `FILE_UNREADABLE`, `TOO_LARGE`, or
            `MIXED_SERIES` where the slices differ in size.
        ValueError: No files.
    """
    shape = read_jpeg_shape(paths)
    array = np.empty(shape, dtype=np.uint8)
    for plane, path in zip(array, paths, strict=True):
        grey = _luminance(path)
        if grey.shape != shape[1:]:
            raise VolumeError(
                "MIXED_SERIES",
                f"{path}: {grey.shape[0]} x {grey.shape[1]} pixels, wanted the {shape[1]} x "
                f"{shape[2]} of {paths[0].name}; give the slices of one series",
            )
        plane[:] = grey
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = *(spacing or _UNKNOWN_SPACING), 1
    facts: dict[str, JSON] = {"format": "jpeg", "files": len(paths), "assumed_orientation": True}
    if spacing is None:
        facts["assumed_spacing"] = True
    return Reading(
        volume=Volume(array, affine, "window8"),
        slope=None,
        intercept=None,
        hu=False,
        sha256=file_sha256(paths[0]) if len(paths) == 1 else files_sha256(paths),
        facts=facts,
        source=f"{paths[0]} ({len(paths)} files)" if len(paths) > 1 else str(paths[0]),
    )


def read_jpeg_shape(paths: Sequence[Path]) -> tuple[int, int, int]:
    """Return slices, rows and columns of a stack, from the header of its first picture.

    Raises:
        VolumeError: As `read_jpeg`, for that picture.
        ValueError: No files.
    """
    if not paths:
        raise ValueError("a stack has at least one slice")
    with _open(paths[0]) as picture:
        shape = len(paths), picture.height, picture.width
    check_size(paths[0], shape)
    return shape


def read_jpeg_mask(path: Path) -> NDArray[np.bool_]:
    """Return where a mask picture is set, H W.

    A pixel counts above 127: JPEG leaves a seam of small values around what was drawn in 255.

    Raises:
        VolumeError: `FILE_MISSING`, `FILE_TRUNCATED` or `FILE_UNREADABLE`.
    """
    return _luminance(path) > _LESION_ABOVE


def write_jpeg_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    """Write a mask, H W, as a grey JPEG of 0 and 255; the file appears whole or not at all.

    Raises:
        ValueError: The mask has another number of axes than two.
    """
    if mask.ndim != 2:
        raise ValueError(f"{path}: a mask picture has 2 axes (H, W), not {mask.ndim}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(
        partial, format="JPEG", quality=_MASK_QUALITY
    )
    partial.replace(path)


def _open(path: Path) -> Image.Image:
    """Open a picture; its header is read, no pixel."""
    if not path.is_file():
        raise VolumeError("FILE_MISSING", f"{path}: no such file; correct the catalog")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(path, formats=("JPEG",))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise VolumeError(
            "TOO_LARGE", f"{path}: more pixels than any slice has ({error}); drop it"
        ) from error
    except (OSError, SyntaxError) as error:  # no picture at all is an OSError too
        raise _damaged(path, error) from error
    if picture.mode not in ("L", "RGB"):
        mode = picture.mode
        picture.close()
        raise VolumeError(
            "NOT_SCALAR", f"{path}: pixels of mode {mode}, wanted grey or RGB; convert it"
        )
    return picture


def _luminance(path: Path) -> NDArray[np.uint8]:
    """Return a picture's luminance, H W."""
    with _open(path) as picture:
        try:
            return np.asarray(picture.convert("L"))
        except (OSError, SyntaxError) as error:
            raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> VolumeError:
    """Return the error of a picture that cannot be decoded; Pillow tells a cut only in words."""
    if path.stat().st_size == 0 or "truncated" in str(error).lower():
        return cut_short(path, "it ends within the picture")
    return VolumeError(
        "FILE_UNREADABLE", f"{path}: no JPEG picture, or damaged ({error}); fetch it again"
    )
