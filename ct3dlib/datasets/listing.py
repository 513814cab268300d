"""Series under a raw root, before the tables of a data set are joined to them."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from ct3dlib.cohort.names import safe_name
from ct3dlib.datasets.files import (
    Header,
    at_once,
    is_utf8,
    read_headers,
    relative,
    size_and_mtime,
    slice_number,
)
from ct3dlib.errors import VolumeError
from ct3dlib.scan.dicom import list_series
from ct3dlib.scan.geometry import orientation
from ct3dlib.scan.itk_grid import read_grid
from ct3dlib.scan.itk_header import read_text_header
from ct3dlib.scan.slices import read_slices_shape

Problem = tuple[str, str]


@dataclass(frozen=True)
class Found:
    """One series: a NIfTI, NRRD or MetaImage file, a DICOM series, picture slices, or one picture.

    Args:
        kind: What the files are.
        files: Absolute or relative to the working directory.
        place: The file, or the folder that holds all files (DICOM, slices), as a POSIX path below
            the root.
        header: Geometry as the headers state it; DICOM and pictures: (slices, rows, columns).
        uid: SeriesInstanceUID, "" where the files are not DICOM.
        patient: DICOM PatientID, "" where there is none; never leaves the readers as it is.
        settings: The tags of a DICOM header that may be kept, as JSON.
        problem: Code and message where the headers rule the series out.
    """

    kind: Literal["nifti", "dicom", "itk", "pictures"]
    files: tuple[Path, ...]
    place: str
    header: Header
    uid: str = ""
    patient: str = ""
    settings: str = "{}"
    problem: Problem | None = None

    @property
    def rank(self) -> tuple[str, bool, str, tuple[Path, ...]]:
        """What series are sorted by; in one place the sound ones first: they keep the name."""
        return self.place, self.problem is not None, self.uid, self.files

    def sources(self, root: Path) -> tuple[str, ...]:
        """Return the files as POSIX paths relative to the root."""
        return tuple(relative(path, root) for path in self.files)

    def size_and_mtime(self) -> tuple[int, int]:
        """Return the bytes of all files and the sum of the times of their changes, ns."""
        return size_and_mtime(self.files)


def list_nifti(paths: Sequence[Path], root: Path) -> list[Found]:
    """Return NIfTI files with their headers, in their order."""
    return [
        _named(Found("nifti", (path,), relative(path, root), header))
        for path, header in zip(paths, read_headers(paths), strict=True)
    ]


def list_itk(paths: Sequence[Path], root: Path) -> list[Found]:
    """Return NRRD and MetaImage files with their headers and the files of their voxels."""
    return [_named(one) for one in at_once(lambda path: _itk(path, root), paths)]


def _itk(path: Path, root: Path) -> Found:
    """Describe an NRRD or MetaImage file; what is wrong with it shows when it is stored."""
    place = relative(path, root)
    try:
        text = read_text_header(path)
        grid = read_grid(text)
    except VolumeError:
        return Found("itk", (path,), place, Header(None, None))
    if grid.affine is None:
        return Found("itk", text.files, place, Header(None, grid.shape))
    depth, height, width = orientation(grid.affine).permutation
    shape = grid.shape[depth], grid.shape[height], grid.shape[width]
    steps = np.linalg.norm(grid.affine[:3, :3], axis=0)
    spacing = float(steps[depth]), float(steps[height]), float(steps[width])
    return Found("itk", text.files, place, Header(spacing, shape))


def list_slices(folders: Sequence[Sequence[Path]], root: Path) -> list[Found]:
    """Return folders of picture slices, each one series, with the size of the first slice."""
    return [_named(one) for one in at_once(lambda slices: _slices(slices, root), folders)]


def list_pictures(paths: Sequence[Path], root: Path) -> list[Found]:
    """Return pictures, each a series of one slice, in their order."""
    found = at_once(lambda path: _slices([path], root), paths)
    return [_named(replace(one, place=relative(one.files[0], root))) for one in found]


def _slices(slices: Sequence[Path], root: Path) -> Found:
    """Describe the slices of a folder, which come sorted by number."""
    place = relative(slices[0].parent, root)
    problem = None
    for one, two in pairwise(slices):
        if slice_number(one) == slice_number(two):
            what = f"{relative(one, root)}: {two.name} has the same number; drop one of the two"
            problem = "DUPLICATE_POSITIONS", what
    try:
        header = Header(None, read_slices_shape(slices))
    except VolumeError:
        header = Header(None, None)
    return Found("pictures", tuple(slices), place, header, problem=problem)


def list_dicom(folder: Path, root: Path) -> list[Found]:
    """Return the DICOM series below a folder and its damaged files."""
    found = []
    for series in list_series(folder):
        place = Path(os.path.commonpath([path.parent for path in series.files]))
        shape = (series.num_slices, series.rows, series.columns)
        header = Header(series.spacing, shape if all(shape) else None)
        found.append(
            Found(
                "dicom",
                tuple(series.files),
                relative(place, root),
                header,
                uid=series.uid,
                patient=series.patient.strip(),
                settings=json.dumps(series.facts, sort_keys=True),
                problem=series.problem,
            )
        )
    return [_named(one) for one in found]


def _named(found: Found) -> Found:
    """Return a series, rejected where the catalog cannot hold the name of one of its files."""
    if all(map(is_utf8, found.files)):
        return found
    message = f"{found.place}: a name that is not UTF-8; rename the file or its folder"
    return replace(found, problem=("UNSAFE_NAME", message))


def unique_names(keys: Sequence[str]) -> list[tuple[str, int | None]]:
    """Return a volume id for each key, and the place of the first one of the same key.

    The first of a key comes with None; later ones are duplicates and get `-2`, `-3` and so on.
    Where different keys make the same id, later ones get a hash of their key.

    Args:
        keys: Paths without endings, or whatever tells series apart.
    """
    names = [safe_name(key) for key in keys]
    taken = set(names)
    first: dict[str, int] = {}
    owners: dict[str, str] = {}
    unique: list[tuple[str, int | None]] = []
    for place, (key, name) in enumerate(zip(keys, names, strict=True)):
        if key in first:
            base, number = unique[first[key]][0], 2
            while f"{base}-{number}" in taken:
                number += 1
            unique.append((f"{base}-{number}", first[key]))
        elif owners.setdefault(name, key) != key:
            unique.append((f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}", None))
        else:
            unique.append((name, None))
        first.setdefault(key, place)
        taken.add(unique[-1][0])
    return unique


def duplicate(name: str, first: Found) -> Problem:
    """Return the problem of a series whose name another one has."""
    return "DUPLICATE_NAME", f"{name}: {first.place} has this name too; rename or remove one"
