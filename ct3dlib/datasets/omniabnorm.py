"""OmniAbnorm-CT-14K: key slices of CT with drawn and described findings (arXiv:2506.03238).

Two layouts are read. The data set's own has a folder a case, `image/{case}/{-1,0,1}.jpg` with the
key slice 0 and its neighbours, and one for its masks, `mask/{case}/{abnormality}.jpeg`. The other
has one picture and one mask a case, `{case}.jpg` and `mask/{case}.jpg` or `{case}_mask.jpg`.
JSON files describe the cases (`omniabnorm_cases`). Values are windowed 8-bit, not HU.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ct3dlib.cohort.catalog import Row
from ct3dlib.cohort.names import safe_name
from ct3dlib.datasets.files import relative, size_and_mtime
from ct3dlib.datasets.listing import Problem, unique_names
from ct3dlib.datasets.omniabnorm_cases import Case, read_cases
from ct3dlib.datasets.omniabnorm_pictures import (
    ENDINGS,
    Pictures,
    choose,
    group_pictures,
    read_shapes,
)
from ct3dlib.errors import DatasetError
from ct3dlib.scan.tree import walk

logger = logging.getLogger(__name__)

# {patient}_{study}_{series}_{slice}: several key slices are of one patient.
_NUMBERED = re.compile(r"(?P<patient>\d+)(?:_\d+)+")


@dataclass(frozen=True)
class _Item:
    """A case with its slices; one of the two may be missing."""

    case: Case | None
    slices: Pictures | None
    problem: Problem | None = None

    @property
    def name(self) -> str:
        """Id of the case."""
        return self.case.name if self.case else self.slices.name if self.slices else ""

    @property
    def place(self) -> str:
        """Where the slices are, or else the entry of the case."""
        return self.slices.place if self.slices else self.case.place if self.case else ""


def read_omniabnorm(root: Path) -> Iterator[Row]:
    """Yield a row for every case, and for every picture that no case names.

    A case without its picture is a row with a problem; masks that no case has are counted in a
    warning.

    Raises:
        DatasetError: There are no pictures or no cases, or a JSON file cannot be read.
    """
    paths = list(walk(root))
    cases = read_cases([path for path in paths if path.suffix.lower() == ".json"], root)
    pictures = [path for path in paths if path.suffix.lower() in ENDINGS]
    if not cases or not pictures:
        raise DatasetError(
            f"{root}: {len(pictures)} JPEG files and {len(cases)} cases in JSON files; set "
            f"raw_root (or CT3D_RAW) to an OmniAbnorm-CT download, or use catalog.dataset: folder"
        )
    images, masks = group_pictures(pictures, root, cases)
    items = _join(cases, images)
    unique = unique_names([safe_name(item.name) for item in items])
    used: set[str] = set()
    for item, (volume, first), shape in zip(
        items, unique, read_shapes([item.slices for item in items]), strict=True
    ):
        drawn = choose(masks, item.name, item.case.mask if item.case else "")
        used |= {drawn.place} if drawn else set()
        again = None if first is None else _again(volume, items[first].place)
        problem = item.problem or _problem(item) or again
        yield _row(item, root, volume=volume, shape=shape, masks=drawn, problem=problem)
    lone = sum(item.case is None for item in items)
    unused = sorted({one.place for many in masks.values() for one in many} - used)
    for number, what in ((lone, "pictures are of no case"), (len(unused), "masks are of no case")):
        if number:
            logger.warning("%s: %s %s", root, number, what)


def _join(cases: Mapping[str, Case], images: Mapping[str, list[Pictures]]) -> list[_Item]:
    """Return the cases with their slices, sorted by id, and after them the slices of no case."""
    taken: dict[str, str] = {}
    items = []
    for name, case in sorted(cases.items()):
        one = choose(images, name, case.image)
        if one is None:
            where = case.image or f"{name}.jpg"
            message = f"{case.place}: case {name}: no picture {where} below the root; fetch it"
            items.append(_Item(case, None, ("FILE_MISSING", message)))
        elif (other := taken.setdefault(one.place, name)) != name:
            message = f"{case.place}: case {name}: {one.place} is of case {other}; keep one of them"
            items.append(_Item(case, None, ("DUPLICATE_NAME", message)))
        else:
            items.append(_Item(case, one))
    lone = [one for many in images.values() for one in many if one.place not in taken]
    return items + [_Item(None, one) for one in sorted(lone, key=lambda one: one.place)]


def _again(name: str, place: str) -> Problem:
    """Return the problem of a case whose name another one has."""
    return "DUPLICATE_NAME", f"{name}: {place} has this name too; rename or remove one"


def _problem(item: _Item) -> Problem | None:
    """Return why a case cannot be used."""
    offsets = item.slices.offsets if item.slices else [0]
    if len(set(offsets)) < len(offsets):
        message = f"{item.place}: two pictures of one slice among {offsets}; remove one"
        return "DUPLICATE_POSITIONS", message
    if 0 not in offsets:
        return "FILE_MISSING", f"{item.place}: no key slice 0.jpg; fetch it again"
    if item.case and item.case.faults:
        faults = ", ".join(item.case.faults)
        return "BAD_METADATA", f"{item.case.place}: case {item.name}: {faults}; correct the entry"
    return None


def _row(
    item: _Item,
    root: Path,
    *,
    volume: str,
    shape: tuple[int, int, int] | None,
    masks: Pictures | None,
    problem: Problem | None,
) -> Row:
    """Return the catalog row of a case."""
    case = item.case
    files = item.slices.files if item.slices else (root / item.place,)
    size, mtime_ns = size_and_mtime(files)
    numbered = _NUMBERED.fullmatch(item.name)
    drawn = _masks(masks, case, root)
    categories = case.categories if case else ()
    question, answer = case.pair if case else ("", "")
    return Row(
        volume=volume,
        dataset="omniabnorm",
        patient=safe_name(numbered["patient"] if numbered else item.name),
        study=safe_name(item.name),
        kind="pictures",
        domain="window8",
        sources=tuple(relative(path, root) for path in files),
        size=size,
        mtime_ns=mtime_ns,
        shape=shape,
        metadata=_metadata(item, drawn),
        label=categories[0] if len(categories) == 1 else None,
        findings=case.findings if case else "",
        question=question,
        answer=answer,
        qa_source="vqa" if case and case.stated else "template" if question else None,
        lesion_mask=next(iter(drawn.values()), None),
        problem=problem and problem[0],
        problem_message=problem and problem[1],
    )


def _masks(masks: Pictures | None, case: Case | None, root: Path) -> dict[str, str]:
    """Return the masks of a case by their names, those of its abnormalities first, in order."""
    if masks is None:
        return {}
    paths = {path.stem: relative(path, root) for path in masks.files}
    first = [one.name for one in case.abnormalities if one.name in paths] if case else []
    return {name: paths[name] for name in (*first, *paths)}


def _metadata(item: _Item, masks: Mapping[str, str]) -> str:
    """Return what is known of a case beside its texts as JSON, blank parts left out."""
    case = item.case
    values: dict[str, Any] = {
        "offsets": item.slices.offsets if item.slices else [],
        "masks": dict(masks),
        "region": case.region if case else "",
        "abnormalities": [
            {
                "id": one.name,
                "text": one.text,
                "category": one.category,
                "mask": masks.get(one.name, ""),
            }
            for one in (case.abnormalities if case else ())
        ],
        "steps": list(case.steps) if case else [],
    }
    values["abnormalities"] = [
        {key: value for key, value in one.items() if value} for one in values["abnormalities"]
    ]
    kept = {key: value for key, value in values.items() if value}
    return json.dumps(kept, sort_keys=True, ensure_ascii=False)
