"""Cases of OmniAbnorm-CT-14K as its JSON files describe them.

Two kinds of entry are read and joined by their id: those of the data set (`image`, `mask`,
`abnormality`: id, description, category) and those of reasoning written for it (`case_id`,
`region`, `category`, `cot_reasoning`: steps). A file is one entry, a list of them, or a dict from
id to entry.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ct3dlib.datasets.files import relative
from ct3dlib.errors import DatasetError
from ct3dlib.text.reports import clean, stated_pair

logger = logging.getLogger(__name__)

_MARKS = ("case_id", "image", "image_path", "abnormality", "cot_reasoning")
_QUESTION = "What does this CT image show?"


@dataclass(frozen=True)
class Abnormality:
    """A finding that is drawn in the key slice; "" where a part is not stated."""

    name: str
    text: str = ""
    category: str = ""


@dataclass(frozen=True)
class Case:
    """What the JSON files say of one key slice.

    Args:
        name: Its id.
        place: The file of its first entry, relative to the raw root.
        image: Where its slices are, as the entry has it; "" where it does not say.
        mask: Where its masks are, as the entry has it; "" where it does not say.
        region: Part of the body.
        abnormalities: In the order of the entry.
        steps: Of the reasoning.
        pair: A question and its answer, empty where there is no text.
        stated: Whether the pair is one of the entry.
        faults: What was not understood, for people.
    """

    name: str
    place: str
    image: str
    mask: str
    region: str
    abnormalities: tuple[Abnormality, ...]
    steps: tuple[str, ...]
    pair: tuple[str, str]
    stated: bool
    faults: tuple[str, ...]

    @property
    def findings(self) -> str:
        """The texts of all abnormalities, each once."""
        return _findings(self.abnormalities)

    @property
    def categories(self) -> tuple[str, ...]:
        """The kinds of abnormality, each once."""
        return tuple(dict.fromkeys(one.category for one in self.abnormalities if one.category))


def read_cases(paths: Sequence[Path], root: Path) -> dict[str, Case]:
    """Return the cases of JSON files by id; of entries that differ in a field the first counts.

    Entries without an id, and what is no entry, are counted in a warning.

    Raises:
        DatasetError: A file cannot be read.
    """
    entries: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in paths:
        place = relative(path, root)
        malformed = differing = 0
        for name, record in _load(path):
            if not name:
                malformed += 1
                continue
            _, known = entries.setdefault(name, (place, {}))
            differing += any(known.get(key, value) != value for key, value in record.items())
            known |= {key: value for key, value in record.items() if key not in known}
        if malformed:
            logger.warning("%s: %s parts are no entry of a case and left out", place, malformed)
        if differing:
            logger.warning("%s: %s entries repeat a case; the first counts", place, differing)
    return {name: _case(name, place, record) for name, (place, record) in entries.items()}


def _load(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return id and entry for every part of a file; ("", {}) for what is none."""
    try:
        return list(_entries(json.loads(path.read_text(encoding="utf-8")), ""))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); restore or remove it") from error


def _entries(value: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the entries in a JSON value that stands under a key."""
    if isinstance(value, dict) and any(mark in value for mark in _MARKS):
        stated = value.get("case_id", key)
        name = str(stated).strip() if isinstance(stated, str | int) else ""
        yield name, value if name else {}
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _entries(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from _entries(part, "")
    else:
        yield "", {}


def _case(name: str, place: str, record: Mapping[str, Any]) -> Case:
    """Return what the joined entries of a case say."""
    faults: list[str] = []
    category = _text(record, "category")
    abnormalities = tuple(
        Abnormality(
            name=str(one.get("id", number)),
            text=_text(one, "description", "label"),
            category=_text(one, "category"),
        )
        for number, one in enumerate(_parts(record, "abnormality", faults))
        if isinstance(one, dict)
    )
    if category and not any(one.category == category for one in abnormalities):
        abnormalities += (Abnormality("", category=category),)
    steps = _parts(record, "cot_reasoning", faults)
    texts = [_text(step, "text") if isinstance(step, dict) else clean(step) for step in steps]
    stated = stated_pair(record)
    answer = " ".join(filter(None, texts)) or _findings(abnormalities)
    return Case(
        name=name,
        place=place,
        image=_text(record, "image", "image_path"),
        mask=_text(record, "mask", "mask_path"),
        region=_text(record, "region"),
        abnormalities=abnormalities,
        steps=tuple(text for text in texts if text),
        pair=stated if any(stated) else (_QUESTION, answer) if answer else ("", ""),
        stated=any(stated),
        faults=tuple(faults),
    )


def _findings(abnormalities: Sequence[Abnormality]) -> str:
    """Return the texts of abnormalities, each once."""
    return " ".join(dict.fromkeys(one.text for one in abnormalities if one.text))


def _parts(record: Mapping[str, Any], key: str, faults: list[str]) -> list[Any]:
    """Return a list of an entry without the parts that are of no use, which go to `faults`."""
    value = record.get(key) or []
    if not isinstance(value, list):
        faults.append(f"{key} is no list")
        return []
    kinds = (dict,) if key == "abnormality" else (dict, str)
    kept = [one for one in value if isinstance(one, kinds)]
    if len(kept) < len(value):
        faults.append(f"{key} has {len(value) - len(kept)} parts that are no entry")
    return kept


def _text(record: Mapping[str, Any], *keys: str) -> str:
    """Return the first text that an entry has under one of some keys; lists are joined."""
    for key in keys:
        value = record.get(key)
        parts = value if isinstance(value, list) else [value]
        if text := clean(" / ".join(part for part in parts if isinstance(part, str))):
            return text
    return ""
