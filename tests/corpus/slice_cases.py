"""Folders of picture slices, one for each way to be bad; they belong to a recipe of 8 bits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.corpus.case import Case, body, odd
from tests.corpus.nifti_cases import TEXT

PLANES = ((body() + 1024) // 8).clip(0, 255).astype(np.uint8)


def slices(
    folder: Path, planes: NDArray[np.uint8] = PLANES, *, mode: str = "L", form: str = "JPEG"
) -> list[Path]:
    """Write planes as numbered pictures."""
    paths = []
    for number, plane in enumerate(planes):
        paths.append(folder / f"{number:02}.jpg")
        Image.fromarray(plane).convert(mode).save(paths[-1], format=form)
    return paths


def but_one(content: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Return a writer of slices of which one file's bytes are replaced."""

    def write(folder: Path) -> None:
        path = slices(folder)[4]
        path.write_bytes(content(path.read_bytes()))

    return write


def another_size(folder: Path) -> None:
    """Write slices of which one is narrower."""
    path = slices(folder)[4]
    Image.fromarray(PLANES[4, :, 2:]).save(path)


def same_number(folder: Path) -> None:
    """Write two slices of one number."""
    slices(folder)[4].rename(folder / "5.jpg")


SLICE_CASES = [
    Case("jpg-empty", "FILE_TRUNCATED", "cut short", but_one(lambda _: b"")),
    Case("jpg-text", "FILE_UNREADABLE", "no PNG or JPEG", but_one(lambda _: TEXT)),
    Case("jpg-cut", "FILE_TRUNCATED", "cut short", but_one(lambda whole: whole[:-90])),
    Case("jpg-gif", "FILE_UNREADABLE", "no PNG or JPEG", lambda at: slices(at, form="GIF")),
    Case("jpg-cmyk", "NOT_SCALAR", "mode CMYK", lambda at: slices(at, mode="CMYK")),
    Case("jpg-another-size", "MIXED_SERIES", "24|22", another_size),
    Case("jpg-same-number", "DUPLICATE_POSITIONS", "same number", same_number),
    Case("jpg-one-slice", "SINGLE_SLICE", "single slice", lambda at: slices(at, PLANES[:1])),
    Case("jpg-few-slices", "TOO_FEW_SLICES", "3 slices", lambda at: slices(at, PLANES[:3])),
    odd("jpg-that-is-png", lambda at: slices(at, form="PNG")),
    odd("jpg-colour", lambda at: slices(at, mode="RGB")),
]
