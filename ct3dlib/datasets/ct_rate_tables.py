"""What stands beside the scans of CT-RATE: metadata, reports, labels, questions, exclusions."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ct3dlib.cohort.labels import LABELS
from ct3dlib.datasets.exclusions import read_exclusions
from ct3dlib.datasets.files import is_nifti, relative
from ct3dlib.datasets.tables import (
    GEOMETRY,
    RESCALE,
    Metadata,
    read_metadata,
    read_rows,
    volume_key,
)
from ct3dlib.errors import DatasetError
from ct3dlib.scan.tree import walk
from ct3dlib.text.reports import Report, sections, stated_pair

logger = logging.getLogger(__name__)

Part = Literal["train", "valid"]
# The tables call the part `valid` by either name.
_TABLE_NAMES: dict[Part, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("validation", "valid"),
}
_VOLUME_COLUMNS = ("volumename", "VolumeName", "image")
# Volumes, and of one scan all, with voxels that are not finite or without a spacing of slices.
_BROKEN = (
    *("train_1267_a_4", "train_11755_a_2", "train_11755_a_3", "train_11755_a_4"),
    *("train_3821_a_5", "train_9792_a"),
)
_BITS = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}


@dataclass(frozen=True)
class Tables:
    """The tables of one part, by volume key; empty where a file is absent.

    Args:
        metadata: Geometry and rescale.
        reports: Sections of the report.
        labels: 0 or 1 for each of `LABELS`; None where a cell is neither.
        pairs: A question and its answer.
        excluded: Volume, scan or patient -> why it is left out; "" takes a volume or scan in again.
        regions: File of the true regions, relative to the raw root.
        lesions: File of the drawn lesions, relative to the raw root.
    """

    metadata: Mapping[str, Metadata]
    reports: Mapping[str, Report]
    labels: Mapping[str, tuple[int, ...] | None]
    pairs: Mapping[str, tuple[str, str]]
    excluded: Mapping[str, str]
    regions: Mapping[str, str]
    lesions: Mapping[str, str]


def read_tables(base: Path, root: Path, *, part: Part) -> Tables:
    """Return the tables of one part.

    Args:
        base: The folder `dataset`.
        root: Folder that the paths in the tables are relative to.
        part: Which of the two.

    Raises:
        DatasetError: A table cannot be read or lacks a column, or version 1 is there without its
            metadata.
    """
    metadata = _find(base / "metadata", "metadata.csv", part)
    if metadata is None and any(map(is_nifti, walk(base / part))):
        wanted = base / "metadata" / f"{_TABLE_NAMES[part][0]}_metadata.csv"
        raise DatasetError(
            f"{wanted}: missing, and the volumes of {part}/ have no geometry without it; "
            f"download it, or use {part}_fixed/ instead"
        )
    reports = _find(base / "radiology_text_reports", "reports.csv", part)
    labels = _find(base / "multi_abnormality_labels", "predicted_labels.csv", part)
    pairs = _find(base / "vqa", "vqa.json", part)
    return Tables(
        metadata=read_metadata(metadata, (*RESCALE, *GEOMETRY)) if metadata else {},
        reports=_read_reports(reports) if reports else {},
        labels=_read_labels(labels) if labels else {},
        pairs=_read_pairs(pairs) if pairs else {},
        excluded=_read_excluded(base, root, part),
        regions=_list_masks(base / "regions" / part, root),
        lesions=_list_masks(base / "lesions" / part, root),
    )


def _list_masks(folder: Path, root: Path) -> dict[str, str]:
    """Return the NIfTI files below a folder by the key of their volume."""
    masks = [path for path in walk(folder) if is_nifti(path)]
    return {volume_key(path.name): relative(path, root) for path in masks}


def _find(folder: Path, ending: str, part: Part) -> Path | None:
    """Return the table of a part under any of its names, None where there is none."""
    paths = [folder / f"{name}_{ending}" for name in _TABLE_NAMES[part]]
    return next((path for path in paths if path.exists()), None)


def _read_reports(path: Path) -> dict[str, Report]:
    """Return the reports of a part."""
    columns = ("Findings_EN", "Impressions_EN")
    return {key: sections(cells) for key, cells in read_rows(path, columns)}


def _read_labels(path: Path) -> dict[str, tuple[int, ...] | None]:
    """Return the labels of a part."""
    found: dict[str, tuple[int, ...] | None] = {}
    for key, cells in read_rows(path, LABELS):
        bits = [_BITS[text] for label in LABELS if (text := cells[label].strip()) in _BITS]
        found[key] = tuple(bits) if len(bits) == len(LABELS) else None
    if wrong := [key for key, bits in found.items() if bits is None]:
        logger.warning(
            "%s: %s rows have a cell that is neither 0 nor 1, the first is %s; these volumes have "
            "no labels",
            path,
            len(wrong),
            wrong[0],
        )
    return found


def _read_pairs(path: Path) -> dict[str, tuple[str, str]]:
    """Return the first question and answer of every volume."""
    try:
        records: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); restore or remove it") from error
    if not isinstance(records, list) or not all(isinstance(one, dict) for one in records):
        raise DatasetError(f"{path}: not a list of questions; restore or remove it")
    found: dict[str, tuple[str, str]] = {}
    for record in records:
        name = next((record[column] for column in _VOLUME_COLUMNS if column in record), "")
        pair = stated_pair(record)
        if any(pair):
            found.setdefault(volume_key(str(name)), pair)
    return found


def _read_excluded(base: Path, root: Path, part: Part) -> dict[str, str]:
    """Return what exclude.txt, no_chest_{part}.txt and the list of broken volumes leave out."""
    excluded: dict[str, str] = {}
    for name in ("exclude.txt", f"no_chest_{part}.txt"):
        for path in (base / name, base / "metadata" / name):
            listed = read_exclusions(path) if path.exists() else {}
            why = f"listed in {relative(path, root)}; take the line out to use it"
            for key, out in listed.items():
                excluded.setdefault(key, why if out else "")
    for key in _BROKEN:
        place = relative(base / "exclude.txt", root)
        why = f"known to be broken; add the line !{key} to {place} to use it all the same"
        excluded.setdefault(key, why)
    return excluded
