"""Series under a raw root, before the tables of a data set are joined to them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ct3dlib.datasets.files import Header, read_headers, relative, size_and_mtime
from ct3dlib.scan.dicom import list_series

Problem = tuple[str, str]


@dataclass(frozen=True)
class Found:
    """One series: a NIfTI file, or the DICOM files of a series.

    Args:
        kind: What the files are.
        files: Absolute or relative to the working directory.
        place: The file, or the folder that holds all files, as a POSIX path relative to the root.
        header: Geometry as the headers state it; DICOM: (slices, rows, columns).
        uid: SeriesInstanceUID, "" for NIfTI.
        patient: DICOM PatientID, "" where there is none; never leaves the readers as it is.
        problem: Code and message where the headers rule the series out.
    """

    kind: Literal["nifti", "dicom"]
    files: tuple[Path, ...]
    place: str
    header: Header
    uid: str = ""
    patient: str = ""
    problem: Problem | None = None

    @property
    def rank(self) -> tuple[str, bool, str, tuple[Path, ...]]:
        """What series are sorted by; in one place the sound ones first: they keep the name."""
        return self.place, self.problem is not None, self.uid, self.files

    def sources(self, root: Path) -> tuple[str, ...]:
        """Return the files as POSIX paths relative to the root."""
        return tuple(relative(path, root) for path in self.files)

    def size_and_mtime(self) -> tuple[int, int]:
        """Return the bytes of all files and their latest change, ns since 1970."""
        return size_and_mtime(self.files)


def list_nifti(paths: Sequence[Path], root: Path) -> list[Found]:
    """Return NIfTI files with their headers, in their order."""
    return [
        Found("nifti", (path,), relative(path, root), header)
        for path, header in zip(paths, read_headers(paths), strict=True)
    ]


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
                problem=series.problem,
            )
        )
    return found


def unique_names(names: Sequence[str]) -> list[tuple[str, int | None]]:
    """Return names that differ, each with the place of the first of the same name.

    The first keeps its name, with None; later ones get `-2`, `-3` and so on.
    """
    first: dict[str, int] = {}
    taken = set(names)
    unique: list[tuple[str, int | None]] = []
    for place, name in enumerate(names):
        if name not in first:
            first[name] = place
            unique.append((name, None))
            continue
        number = 2
        while f"{name}-{number}" in taken:
            number += 1
        taken.add(f"{name}-{number}")
        unique.append((f"{name}-{number}", first[name]))
    return unique


def duplicate(name: str, first: Found) -> Problem:
    """Return the problem of a series whose name another one has."""
    return "DUPLICATE_NAME", f"{name}: {first.place} has this name too; rename or remove one"
