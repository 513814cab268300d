"""Slices as PNG or JPEG: windowed grey values of 8 bits, without a place in the patient."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ct3dlib.config import Triple
from ct3dlib.errors import VolumeError
from ct3dlib.scan.grey import open_picture, read_grey
from ct3dlib.scan.reading import JSON, Reading, check_size, file_sha256, files_sha256
from ct3dlib.scan.volume import Volume

_UNKNOWN_SPACING = (1.0, 1.0, 1.0)
_LESION_ABOVE = 127
_MASK_QUALITY = 95


def read_slices(paths: Sequence[Path], *, spacing: Triple | None = None) -> Reading:
    """Read pictures of slices as one volume of domain "window8".

    Colour becomes luminance and EXIF orientation is not applied (`read_grey`). The axes are taken
    as LPS, which no picture says; a spacing that is not given is 1 mm, and the facts say so.

    Args:
        paths: One file per slice, in the order of D.
        spacing: (D, H, W) from elsewhere, mm.

    Returns:
        uint8, 0 to 255, D H W.

    Raises:
        VolumeError: As `read_grey`, or `MIXED_SERIES` where the slices differ in size.
        ValueError: No files.
    """
    shape = read_slices_shape(paths)
    array = np.empty(shape, dtype=np.uint8)
    for plane, path in zip(array, paths, strict=True):
        grey = read_grey(path)
        if grey.shape != shape[1:]:
            raise VolumeError(
                "MIXED_SERIES",
                f"{path}: {grey.shape[0]} x {grey.shape[1]} pixels, wanted the {shape[1]} x "
                f"{shape[2]} of {paths[0].name}; give the slices of one series",
            )
        plane[:] = grey
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = *(spacing or _UNKNOWN_SPACING), 1
    facts: dict[str, JSON] = {
        "format": "pictures",
        "files": len(paths),
        "assumed_orientation": True,
    }
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


def read_key_slices(paths: Sequence[Path], count: int, *, spacing: Triple | None = None) -> Reading:
    """Read a key slice with its neighbours as one volume of domain "window8".

    Of 4 slices those are called -1, 0 (the key slice), 1 and 2. The key slice stands in for those
    that are missing; the facts' `z_real` says which are not. A picture alone is the key slice.

    Args:
        paths: Files called by their numbers, or one of any name.
        count: Slices wanted.
        spacing: (D, H, W) from elsewhere, mm.

    Returns:
        As `read_slices`.

    Raises:
        VolumeError: As `read_slices`, or `FILE_MISSING` where none is the key slice.
        ValueError: No files.
    """
    if not paths:
        raise ValueError("a stack has at least one slice")
    named = {path.stem: path for path in paths}
    key = paths[0] if len(paths) == 1 else named.get("0")
    if key is None:
        raise VolumeError(
            "FILE_MISSING",
            f"{paths[0]}: none of these {len(paths)} pictures is the key slice 0; fetch it, or "
            f"set the recipe's slices to null",
        )
    numbers = [n - key_place(count) for n in range(count)]
    wanted = [named.get(str(n)) if n else key for n in numbers]
    reading = read_slices([path or key for path in wanted], spacing=spacing)
    facts = {**reading.facts, "z_real": [path is not None for path in wanted]}
    return replace(reading, facts=facts)


def key_place(count: int) -> int:
    """Return where the key slice stands among so many: in the middle, or just before it."""
    return (count - 1) // 2


def read_slices_shape(paths: Sequence[Path]) -> tuple[int, int, int]:
    """Return slices, rows and columns of a stack, from the header of its first picture.

    Raises:
        VolumeError: As `read_slices`, for that picture.
        ValueError: No files.
    """
    if not paths:
        raise ValueError("a stack has at least one slice")
    with open_picture(paths[0]) as picture:
        shape = len(paths), picture.height, picture.width
    check_size(paths[0], shape)
    return shape


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Return where a mask picture is set, H W.

    A pixel counts above 127: JPEG leaves a seam of small values around what was drawn in 255.

    Raises:
        VolumeError: As `read_grey`.
    """
    return read_grey(path) > _LESION_ABOVE


def write_mask(path: Path, mask: NDArray[np.bool_]) -> None:
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
