"""Any folder of NIfTI, DICOM, NRRD, MetaImage and picture slices: every series is a volume."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ct3dlib.cohort.catalog import Row
from ct3dlib.cohort.pseudonyms import UNKEYED, Pseudonyms
from ct3dlib.datasets.files import (
    is_itk,
    is_nifti,
    slice_folders,
    stem,
)
from ct3dlib.datasets.listing import (
    Found,
    Problem,
    duplicate,
    list_dicom,
    list_itk,
    list_nifti,
    list_slices,
    unique_names,
)
from ct3dlib.datasets.patients import recognise
from ct3dlib.datasets.tables import (
    GEOMETRY,
    RESCALE,
    Metadata,
    join_names,
    read_columns,
    read_metadata,
)
from ct3dlib.scan.tree import may_be_dicom, walk

logger = logging.getLogger(__name__)


def read_folder(root: Path, names: Pseudonyms = UNKEYED) -> Iterator[Row]:
    """Yield a row for every NIfTI, NRRD and MetaImage file and DICOM series below a folder.

    A folder that holds PNG or JPEG slices called by their number, and no other file, is one too.
    An optional `metadata.csv` at the root (`VolumeName` and any of `RescaleSlope`,
    `RescaleIntercept`, `XYSpacing`, `ZSpacing`) is joined by path or file name; what it states
    counts more than a header.

    Args:
        root: Any tree.
        names: Stand for PatientIDs and series UIDs, which never leave the reader as they are.

    Raises:
        DatasetError: metadata.csv cannot be read.
    """
    paths = list(walk(root))
    dicom = list_dicom(root, root) if any(map(may_be_dicom, paths)) else []
    found = list_nifti([path for path in paths if is_nifti(path)], root) + dicom
    found += list_itk([path for path in paths if is_itk(path)], root)
    found += list_slices(slice_folders(paths), root)
    found.sort(key=lambda one: one.rank)
    table = root / "metadata.csv"
    metadata = read_metadata(table) if table.exists() else {}
    patients = recognise(found, names)
    unique = unique_names([_key(one, names) for one in found])
    if table.exists():
        volumes = [volume for volume, _ in unique]
        _log_table(table, metadata, found=found, volumes=volumes)
    for one, patient, (volume, first) in zip(found, patients, unique, strict=True):
        again = None if first is None else duplicate(one.place, found[first])
        stated = _stated(one, volume, metadata)
        problem = one.problem or again or _misstated(one, stated)
        size, mtime_ns = one.size_and_mtime()
        yield Row(
            volume=volume,
            dataset="folder",
            patient=patient,
            study=volume,
            kind=one.kind,
            domain="window8" if one.kind == "pictures" else "hu",
            sources=one.sources(root),
            size=size,
            mtime_ns=mtime_ns,
            spacing=(stated and stated.spacing) or one.header.spacing,
            shape=one.header.shape,
            slope=stated and stated.slope,
            intercept=stated and stated.intercept,
            metadata=stated.text if stated else one.settings,
            problem=problem and problem[0],
            problem_message=problem and problem[1],
        )


def _log_table(
    table: Path,
    metadata: Mapping[str, Metadata],
    *,
    found: Sequence[Found],
    volumes: Sequence[str],
) -> None:
    """Log a warning for columns that are not in metadata.csv and for rows that name no file."""
    columns = read_columns(table)
    if missing := [name for name in (*RESCALE, *GEOMETRY) if name not in columns]:
        logger.warning("%s: no %s; columns are %s", table, ", ".join(missing), ", ".join(columns))
    pairs = zip(found, volumes, strict=True)
    names = {name for one, volume in pairs for name in join_names(one.place, volume)}
    if unmatched := sorted(set(metadata) - names):
        logger.warning(
            "%s: %s of %s rows name no file below the root, the first is %r",
            table,
            len(unmatched),
            len(metadata),
            unmatched[0],
        )


def _stated(one: Found, volume: str, metadata: Mapping[str, Metadata]) -> Metadata | None:
    """Return the row of metadata.csv that names a series; DICOM speaks for itself."""
    if one.kind == "dicom":
        return None
    names = join_names(one.place, volume)
    return next((metadata[name] for name in names if name in metadata), None)


def _misstated(one: Found, stated: Metadata | None) -> Problem | None:
    """Return the problem of a blank file whose row of metadata.csv has cells of no use."""
    if stated is None or one.header.shape is None or one.header.spacing is not None:
        return None
    wrong = [fault for fault in stated.faults if not fault.endswith("is ''")]
    if not wrong:
        return None
    message = f"{one.place}: {', '.join(wrong)}; correct the row of metadata.csv"
    return "BAD_METADATA", message


def _key(one: Found, names: Pseudonyms) -> str:
    """Return what tells a series from the others: its path, and for DICOM a name for its UID.

    A damaged file has no UID and is told apart by its name.
    """
    if one.kind != "dicom":
        return stem(one.place)
    folder = "" if one.place == "." else f"{one.place}_"
    # Two people may share a UID by mistake; they are two series all the same.
    told_by = f"{one.uid} {one.patient}" if one.uid else one.files[0].name
    return f"{folder}{names.of('series', told_by)}"
