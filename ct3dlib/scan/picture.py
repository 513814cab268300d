"""Stacks of grey pictures: a PNG or JPEG, a folder of them, or an MP4.

Nothing in them says HU or mm: a stack is no `Volume`. D is the order of the pictures.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from ct3dlib.errors import ConfigError, VolumeError
from ct3dlib.scan.grey import read_grey
from ct3dlib.scan.mp4 import read_mp4, write_mp4
from ct3dlib.scan.reading import check_size

_PICTURES = (".png", ".jpg", ".jpeg")
_MOVIES = (".mp4",)
_QUALITY = 95
_DIGITS = re.compile(r"([0-9]+)")


@dataclass(frozen=True, eq=False)
class GreyStack:
    """Grey pictures of one size, and what is needed to write others in their place.

    Args:
        array: 0 black to 255 white.
        kind: What they were read from.
        names: Of the files of a folder, in the order of D; else of the one file.
        fps: Frames per second of a movie; 0 for pictures.
    """

    array: UInt8[np.ndarray, "D H W"]
    kind: Literal["picture", "folder", "movie"]
    names: tuple[str, ...]
    fps: float = 0.0


def is_picture(path: Path) -> bool:
    """Return whether a file is a PNG or JPEG by its name."""
    return path.suffix.lower() in _PICTURES


def is_movie(path: Path) -> bool:
    """Return whether a file is an MP4 by its name."""
    return path.suffix.lower() in _MOVIES


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures right in a folder as people count: slice_2 comes before slice_10."""
    found = (path for path in folder.iterdir() if is_picture(path) and path.is_file())
    return sorted((path for path in found if not path.name.startswith(".")), key=_counted)


def _counted(path: Path) -> tuple[list[str | int], str]:
    """Return what pictures are sorted by: text and numbers in turn, then the name as it is."""
    parts = _DIGITS.split(path.name.lower())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], path.name


def read_stack(path: Path) -> GreyStack:
    """Read a picture, a folder of pictures or a movie as grey slices.

    Colour becomes luminance and EXIF orientation is not applied (`read_grey`).

    Raises:
        VolumeError: As `read_grey`, or `MIXED_SERIES` where pictures differ in size.
        FileNotFoundError: A movie, and there is no ffmpeg.
    """
    if is_movie(path):
        movie = read_mp4(path)
        return GreyStack(movie.frames, "movie", (path.name,), movie.fps)
    if not path.is_dir():
        return GreyStack(_read_pictures([path]), "picture", (path.name,))
    files = picture_files(path)
    if not files:
        raise VolumeError(
            "FILE_MISSING", f"{path}: no pictures, wanted files {', '.join(_PICTURES)} right in it"
        )
    return GreyStack(_read_pictures(files), "folder", tuple(file.name for file in files))


def check_target(path: Path, stack: GreyStack) -> None:
    """Refuse a name that is of another kind than a stack, before anything is computed.

    Raises:
        ConfigError: The name's ending is another.
        FileExistsError: A folder is wanted and there is something.
    """
    match stack.kind:
        case "folder":
            if path.is_file() or (path.is_dir() and any(path.iterdir())):
                raise FileExistsError(
                    f"{path}: is there already; pictures go to a folder that is new or empty"
                )
            wanted: tuple[str, ...] = ()
        case "picture":
            wanted = _PICTURES
        case "movie":
            wanted = _MOVIES
    if wanted and path.suffix.lower() not in wanted:
        raise ConfigError(
            f"{path}: the name must end with {' or '.join(wanted)}, as {stack.names[0]} is a "
            f"{stack.kind}"
        )


def write_stack(path: Path, stack: GreyStack) -> None:
    """Write a stack as what it was read from; it appears whole or not at all.

    PNG is lossless; JPEG has quality 95; for MP4 see `write_mp4`.

    Raises:
        ConfigError: The name is of another kind.
        FileExistsError: The folder is not empty.
        OSError: ffmpeg is missing or fails.
    """
    check_target(path, stack)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    match stack.kind:
        case "movie":
            write_mp4(path, stack.array, fps=stack.fps)
        case "picture":
            _write_picture(partial, stack.array[0], like=path.name)
            partial.replace(path)
        case "folder":
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            for name, plane in zip(stack.names, stack.array, strict=True):
                _write_picture(partial / name, plane, like=name)
            if path.is_dir():
                path.rmdir()
            partial.replace(path)


def _read_pictures(paths: Sequence[Path]) -> UInt8[np.ndarray, "D H W"]:
    """Read pictures of one size."""
    first = read_grey(paths[0])
    check_size(paths[0], (len(paths), *first.shape))
    stack = np.empty((len(paths), *first.shape), np.uint8)
    stack[0] = first
    for plane, path in zip(stack[1:], paths[1:], strict=True):
        grey = read_grey(path)
        if grey.shape != first.shape:
            raise VolumeError(
                "MIXED_SERIES",
                f"{path}: {grey.shape[0]} x {grey.shape[1]} pixels, wanted the {first.shape[0]} x "
                f"{first.shape[1]} of {paths[0].name}; give pictures of one size",
            )
        plane[:] = grey
    return stack


def _write_picture(path: Path, plane: NDArray[np.uint8], *, like: str) -> None:
    """Write a grey picture in the format that a name says."""
    picture = Image.fromarray(np.ascontiguousarray(plane))
    if like.lower().endswith(".png"):
        picture.save(path, format="PNG")
    else:
        picture.save(path, format="JPEG", quality=_QUALITY)
