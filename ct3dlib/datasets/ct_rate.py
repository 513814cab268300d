"""CT-RATE, versions 1 and 2 (`*_fixed`), as its download lays it out (arXiv:2403.17834).

Version 1 holds stored values under a blank header: geometry and rescale stand in the metadata
table only. Version 2 holds HU with geometry in the header.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ct3dlib.cohort.catalog import Row
from ct3dlib.cohort.names import safe_name
from ct3dlib.config import Triple
from ct3dlib.datasets.ct_rate_tables import Part, Tables, read_tables
from ct3dlib.datasets.files import is_nifti
from ct3dlib.datasets.listing import (
    Found,
    Problem,
    duplicate,
    list_dicom,
    list_nifti,
    unique_names,
)
from ct3dlib.datasets.tables import Metadata, volume_key
from ct3dlib.errors import DatasetError
from ct3dlib.scan.tree import may_be_dicom, walk
from ct3dlib.text.reports import Report, template_pair

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(?P<study>(?P<patient>(?:train|valid)_\d+)_[A-Za-z]+)_\d+")
# Tree -> its part; version 2 first: of a volume that is there twice, it keeps the name.
_TREES: dict[str, Part] = {
    "train_fixed": "train",
    "train": "train",
    "valid_fixed": "valid",
    "valid": "valid",
}


@dataclass(frozen=True)
class _Scan:
    """A series of one of the trees.

    Args:
        found: Its files.
        part: Which tables speak of it.
        key: The name by which they do.
        blank: Whether its geometry and rescale stand in the metadata only.
    """

    found: Found
    part: Part
    key: str
    blank: bool


def read_ct_rate(root: Path) -> Iterator[Row]:
    """Yield a row for every series of a CT-RATE tree.

    Args:
        root: The folder that holds `dataset/`, or `dataset` itself.

    Raises:
        DatasetError: No part of the data set is there, a table lacks a column, or version 1 is
            there without its metadata.
    """
    base = root / "dataset" if (root / "dataset").is_dir() else root
    trees = [tree for tree in _TREES if (base / tree).is_dir()]
    if not trees:
        raise DatasetError(
            f"{base}: no folder {', '.join(_TREES)}; set raw_root (or CT3D_RAW) to a CT-RATE "
            f"download, or use catalog.dataset: folder"
        )
    tables: dict[Part, Tables] = {}
    for tree in trees:
        if (part := _TREES[tree]) not in tables:
            tables[part] = read_tables(base, root, part=part)
    scans = [scan for tree in trees for scan in _list(base / tree, root)]
    names = unique_names([scan.key for scan in scans])
    for scan, (volume, first) in zip(scans, names, strict=True):
        mine = tables[scan.part]
        again = None if first is None else duplicate(scan.key, scans[first].found)
        problem = scan.found.problem or again or _problem(scan, mine)
        yield _row(scan, root, volume=volume, tables=mine, problem=problem)
    for part, mine in tables.items():
        _log_unmatched(part, mine, [scan.key for scan in scans if scan.part == part])


def _log_unmatched(part: Part, tables: Tables, keys: Sequence[str]) -> None:
    """Log a warning for rows without a file, and for files without a row where there is a table."""
    wanted = {"metadata": tables.metadata, "report": tables.reports, "labels": tables.labels}
    for what, rows in (("metadata", tables.metadata), ("labels", tables.labels)):
        if missing := len(set(rows).difference(keys)):
            logger.warning("CT-RATE %s: %s rows of the %s have no file", part, missing, what)
    for what, rows in wanted.items():
        if rows and (number := sum(rows.get(key) is None for key in keys)):
            logger.warning("CT-RATE %s: %s of %s files have no %s", part, number, len(keys), what)


def _list(tree: Path, root: Path) -> list[_Scan]:
    """Return the series of one tree, sorted by place."""
    paths = list(walk(tree))
    # Only folders with files that may be DICOM are searched: most trees have none.
    folders: list[Path] = []
    for folder in sorted({path.parent for path in paths if may_be_dicom(path)}):
        if not folders or not folder.is_relative_to(folders[-1]):
            folders.append(folder)
    found = list_nifti([path for path in paths if is_nifti(path)], root)
    found += [one for folder in folders for one in list_dicom(folder, root)]
    found.sort(key=lambda one: one.rank)
    blank = not tree.name.endswith("_fixed")
    part = _TREES[tree.name]
    return [_Scan(one, part, _key(one), blank and one.kind == "nifti") for one in found]


def _key(one: Found) -> str:
    """Return the name by which the tables know a series: that of its file or folder."""
    names = [volume_key(name) for name in reversed(one.place.split("/"))]
    if one.kind == "dicom":
        return next((name for name in names if _NAME.fullmatch(name)), names[0])
    return names[0]


def _row(scan: _Scan, root: Path, *, volume: str, tables: Tables, problem: Problem | None) -> Row:
    """Return the catalog row of one series."""
    one = scan.found
    name = _NAME.fullmatch(scan.key)
    size, mtime_ns = one.size_and_mtime()
    stated = tables.metadata.get(scan.key)
    # DICOM states its own rescale, slice by slice.
    rescale = stated if one.kind == "nifti" else None
    report = tables.reports.get(scan.key, Report())
    pair = tables.pairs.get(scan.key)
    question, answer = pair or template_pair(report)
    return Row(
        volume=volume,
        dataset="ct_rate",
        patient=name["patient"] if name else safe_name(scan.key),
        study=name["study"] if name else safe_name(scan.key),
        split=scan.part,
        kind=one.kind,
        sources=one.sources(root),
        size=size,
        mtime_ns=mtime_ns,
        spacing=_spacing(scan, stated),
        shape=one.header.shape,
        slope=rescale and rescale.slope,
        intercept=rescale and rescale.intercept,
        metadata=stated.text if stated else one.settings,
        labels=tables.labels.get(scan.key),
        findings=report.findings,
        impressions=report.impressions,
        question=question,
        answer=answer,
        qa_source="vqa" if pair else "template" if question else None,
        regions_truth=tables.regions.get(scan.key),
        lesion_mask=tables.lesions.get(scan.key),
        problem=problem and problem[0],
        problem_message=problem and problem[1],
    )


def _spacing(scan: _Scan, stated: Metadata | None) -> Triple | None:
    """Return the table's spacing of a NIfTI file, else that of its header, mm.

    A header of version 2 that states a geometry is believed all the same, and a table that differs
    is noted when the volume is stored; a blank one has its spacing from the table alone.
    """
    if scan.found.kind == "nifti" and stated is not None and stated.spacing is not None:
        return stated.spacing
    return None if scan.blank and stated is not None else scan.found.header.spacing


def _problem(scan: _Scan, tables: Tables) -> Problem | None:
    """Return why the tables rule a series out."""
    place = scan.found.place
    name = _NAME.fullmatch(scan.key)
    names = (scan.key, *((name["study"], name["patient"]) if name else ()))
    # The nearest name counts: a volume may be taken in of a scan that is left out.
    if why := next((tables.excluded[one] for one in names if one in tables.excluded), ""):
        return "EXCLUDED", f"{place}: {why}"
    if not scan.blank:
        return None
    stated = tables.metadata.get(scan.key)
    if stated is None:
        return (
            "NO_METADATA",
            f"{place}: no row in the metadata table, which alone knows its geometry and rescale; "
            f"add the row, or use version 2 of the volume",
        )
    if stated.faults:
        faults = ", ".join(stated.faults)
        return "BAD_METADATA", f"{place}: {faults}; correct the row of the metadata table"
    return None
