"""BraTS: MR of brain tumours, four modalities of a patient on one grid (arXiv:2107.02314).

A folder a patient, anywhere below the root: `{patient}_{t1,t1ce,t2,flair,seg}.nii.gz`, or with the
names of 2023 and later, `{patient}-{t1n,t1c,t2w,t2f,seg}.nii.gz`.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from ct3dlib.cohort.catalog import Row
from ct3dlib.cohort.names import safe_name
from ct3dlib.datasets.files import Header, is_nifti, relative, stem
from ct3dlib.datasets.listing import Found, Problem, duplicate, list_nifti, unique_names
from ct3dlib.errors import DatasetError
from ct3dlib.scan.tree import walk

MODALITIES = ("t1", "t1ce", "t2", "flair")
_MASK = "seg"
# Name of a file after its patient -> what it is.
_PARTS = {
    **{name: name for name in (*MODALITIES, _MASK)},
    "t1n": "t1",
    "t1c": "t1ce",
    "t1gd": "t1ce",
    "t2w": "t2",
    "t2f": "flair",
}
# Since 2023 the last number of a folder's name is the visit, not the patient.
_VISIT = re.compile(r"(?P<patient>BraTS-[A-Za-z]+-\d{5})-\d{3}")
_SAME_PLACE = 0.1  # mm


@dataclass(frozen=True)
class _File:
    """A NIfTI file of a patient's folder.

    Args:
        found: The file.
        part: A modality, "seg", or "" where its name says neither.
        mask: The patient's mask of the tumour.
        missing: Modalities that the patient lacks.
        problem: Why it cannot be used.
    """

    found: Found
    part: str
    mask: str | None = None
    missing: tuple[str, ...] = ()
    problem: Problem | None = None

    @property
    def case(self) -> str:
        """Name of the folder."""
        return _case(self.found)

    @property
    def name(self) -> str:
        """The id it should have."""
        last = stem(self.found.files[0].name)
        return safe_name(f"{self.case}_{self.part}" if self.part else f"{self.case}_{last}")


def read_brats(root: Path) -> Iterator[Row]:
    """Yield a row for every modality of every patient, its name in `label`.

    A file whose name states no modality, a mask without a modality, and what lies on another grid
    than the rest of its patient are rows with a problem.

    Raises:
        DatasetError: No file of a patient and a modality is there.
    """
    found = list_nifti([path for path in walk(root) if is_nifti(path)], root)
    folders = groupby(found, key=lambda one: one.files[0].parent)
    files = [file for _, mine in folders for file in _read_folder(list(mine), root)]
    if not any(file.part in MODALITIES for file in files):
        raise DatasetError(
            f"{root}: no file PATIENT/PATIENT_{{{','.join(MODALITIES)}}}.nii.gz; set raw_root (or "
            f"CT3D_RAW) to a BraTS download, or use catalog.dataset: folder"
        )
    unique = unique_names([file.name for file in files])
    for file, (volume, first) in zip(files, unique, strict=True):
        again = None if first is None else duplicate(file.name, files[first].found)
        yield _row(file, root, volume=volume, problem=file.problem or again)


def _read_folder(found: Sequence[Found], root: Path) -> list[_File]:
    """Return the files of one folder that become rows; its mask stands in those of the others."""
    parts = [(_part(one), one) for one in found]
    scans = [(part, one) for part, one in parts if part in MODALITIES]
    masks = [one for part, one in parts if part == _MASK]
    grid = _common_grid([one.header for part in MODALITIES for p, one in scans if p == part])
    missing = tuple(part for part in MODALITIES if part not in dict(scans))
    fitting = [one for one in masks if scans and _same_grid(one.header, grid)]
    mask = relative(fitting[0].files[0], root) if fitting else None
    files = []
    for part, one in parts:
        if part not in MODALITIES and one in fitting[:1]:
            continue
        problem = _problem(one, part, grid=grid, alone=not scans)
        if part == _MASK and problem is None:
            problem = duplicate(_case(one), fitting[0])
        files.append(_File(one, part, mask=mask, missing=missing, problem=problem))
    return files


def _part(one: Found) -> str:
    """Return what a file is by its name after that of its folder, "" where it does not say."""
    last, case = stem(one.files[0].name).lower(), _case(one).lower()
    return (
        _PARTS.get(last[len(case) + 1 :], "") if last.startswith((f"{case}_", f"{case}-")) else ""
    )


def _case(one: Found) -> str:
    """Return the name of a file's folder."""
    return one.files[0].parent.name


def _problem(one: Found, part: str, *, grid: Header, alone: bool) -> Problem | None:
    """Return why a file cannot be used."""
    if one.problem is not None:
        return one.problem
    if not part:
        wanted = f"{_case(one)}_{{{','.join((*MODALITIES, _MASK))}}}.nii.gz"
        return "UNKNOWN_MODALITY", f"{one.place}: the name is not {wanted}; rename or remove it"
    if part == _MASK and alone:
        return "UNKNOWN_MODALITY", f"{one.place}: a mask without a volume; fetch the patient again"
    if not _same_grid(one.header, grid):
        return (
            "MIXED_GRID",
            f"{one.place}: {_text(one.header)}, the patient's other files have {_text(grid)}; "
            f"fetch it again, or resample it to their grid",
        )
    return None


def _common_grid(headers: Sequence[Header]) -> Header:
    """Return the grid that most headers have, of equals the first; unknown where none has one."""
    known = [header for header in headers if header.shape is not None]
    count = [sum(_same_grid(other, header) for other in known) for header in known]
    return known[int(np.argmax(count))] if known else Header(None, None)


def _same_grid(one: Header, other: Header) -> bool:
    """Return whether two grids have the same voxels; one that is not known is no contradiction."""
    if one.shape is None or other.shape is None:
        return True
    if one.corners is None or other.corners is None:
        return one.shape == other.shape
    near = np.allclose(one.corners, other.corners, rtol=0, atol=_SAME_PLACE)
    return one.shape == other.shape and near


def _text(header: Header) -> str:
    """Return a grid for people."""
    if header.spacing is None or header.corners is None:
        return f"shape {header.shape}"
    spacing, origin = ([round(n, 3) for n in many] for many in (header.spacing, header.corners[0]))
    return f"shape {header.shape}, spacing {spacing} mm, first voxel at {origin} mm (RAS)"


def _row(file: _File, root: Path, *, volume: str, problem: Problem | None) -> Row:
    """Return the catalog row of one file."""
    one = file.found
    size, mtime_ns = one.size_and_mtime()
    visit = _VISIT.fullmatch(file.case)
    missing = {"missing_modalities": list(file.missing)} if file.missing else {}
    return Row(
        volume=volume,
        dataset="brats",
        patient=safe_name(visit["patient"] if visit else file.case),
        study=safe_name(file.case),
        kind="nifti",
        domain="mr",
        sources=one.sources(root),
        size=size,
        mtime_ns=mtime_ns,
        spacing=one.header.spacing,
        shape=one.header.shape,
        metadata=json.dumps(missing),
        label=file.part if file.part in MODALITIES else None,
        lesion_mask=file.mask,
        problem=problem and problem[0],
        problem_message=problem and problem[1],
    )
