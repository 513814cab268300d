"""Any folder of NIfTI and DICOM: every series in it is a volume."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ct3dlib.cohort.catalog import Row, safe_name
from ct3dlib.datasets.files import is_nifti, may_be_dicom, stem, walk
from ct3dlib.datasets.listing import Found, duplicate, list_dicom, list_nifti, unique_names
from ct3dlib.datasets.tables import Metadata, join_names, read_metadata

_CT_RATE_NAME = re.compile(r"(?:train|valid(?:ation)?)_\d+(?![^_])")
_BIDS_SUBJECT = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)(?![A-Za-z0-9])")


def read_folder(root: Path) -> Iterator[Row]:
    """Yield a row for every NIfTI file and DICOM series below a folder.

    An optional `metadata.csv` at the root (`VolumeName` and any of `RescaleSlope`,
    `RescaleIntercept`, `XYSpacing`, `ZSpacing`) is joined by path or file name; what it states
    counts more than a NIfTI header.

    Raises:
        DatasetError: metadata.csv cannot be read.
    """
    paths = list(walk(root))
    dicom = list_dicom(root, root) if any(map(may_be_dicom, paths)) else []
    found = list_nifti([path for path in paths if is_nifti(path)], root) + dicom
    found.sort(key=lambda one: one.rank)
    table = root / "metadata.csv"
    metadata = read_metadata(table) if table.exists() else {}
    patients = _patients(found)
    unique = unique_names([_name(one) for one in found])
    for one, patient, (volume, first) in zip(found, patients, unique, strict=True):
        again = None if first is None else duplicate(volume, found[first])
        problem = one.problem or again
        size, mtime_ns = one.size_and_mtime()
        stated = _stated(one, volume, metadata)
        yield Row(
            volume=volume,
            dataset="folder",
            patient=patient,
            study=volume,
            kind=one.kind,
            sources=one.sources(root),
            size=size,
            mtime_ns=mtime_ns,
            spacing=(stated and stated.spacing) or one.header.spacing,
            shape=one.header.shape,
            slope=stated and stated.slope,
            intercept=stated and stated.intercept,
            metadata=stated.text if stated else "{}",
            problem=problem and problem[0],
            problem_message=problem and problem[1],
        )


def _stated(one: Found, volume: str, metadata: Mapping[str, Metadata]) -> Metadata | None:
    """Return the row of metadata.csv that names a NIfTI file; DICOM speaks for itself."""
    if one.kind == "dicom":
        return None
    names = join_names(one.place, volume)
    return next((metadata[name] for name in names if name in metadata), None)


def _name(one: Found) -> str:
    """Return the id a series should have: its path, and for DICOM a hash of its UID.

    A damaged file has no UID and is told apart by its name.
    """
    if one.kind == "nifti":
        return safe_name(stem(one.place))
    folder = "" if one.place == "." else f"{one.place}_"
    return safe_name(f"{folder}{_short_hash(one.uid or one.files[0].name)[:8]}")


def _patients(found: Sequence[Found]) -> list[str]:
    """Return who each series is of; the same person has one name, of NIfTI and DICOM alike."""
    known = {one.patient for one in found if one.patient}
    places = {(_parent(one.place), _last(one.place)) for one in found if one.kind == "nifti"}
    alike = Counter(last for _, last in places)
    # Files called alike in many folders (s0001/ct.nii.gz) are told apart by the folder.
    shared = {folder for folder, last in places if alike[last] > 1}
    return [_patient(one, known, shared) for one in found]


def _patient(one: Found, known: set[str], shared: set[str]) -> str:
    """Return who a series is of: the first of the signs below that it has."""
    if one.patient:
        return _short_hash(one.patient)
    if one.kind == "nifti":
        last = _last(one.place)
        if ct_rate := _CT_RATE_NAME.match(last):
            return ct_rate[0].replace("validation_", "valid_")
        if subject := _BIDS_SUBJECT.search(one.place):
            return subject[1]
        for part in reversed(stem(one.place).split("/")):
            if identity := _known_prefix(part, known):
                return _short_hash(identity)
        if _parent(one.place) not in shared:
            return safe_name(last)
        return safe_name(_parent(one.place) or last)
    return safe_name(one.place)


def _known_prefix(text: str, known: set[str]) -> str | None:
    """Return the longest of the known PatientIDs that a text starts with as a whole word."""
    ends = [place for place in range(1, len(text)) if not text[place].isalnum()]
    return next((text[:end] for end in (len(text), *reversed(ends)) if text[:end] in known), None)


def _short_hash(text: str) -> str:
    """Return a name that does not tell what it stands for."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _last(place: str) -> str:
    """Return the last name of a path, without the ending of NIfTI."""
    return stem(place.rpartition("/")[2])


def _parent(place: str) -> str:
    """Return a path without its last name; "" at the root."""
    return place.rpartition("/")[0]
