"""Radiology reports: their sections, cleaned, and a question with its answer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_EMPTY = {"", "not given", "nan", "none", "null"}
_TAG = re.compile(r"<[A-Za-z_]+>")
_WRAPPED = re.compile(r"""^\[?\s*(['"]?)(.*)\1\s*\]?$""", re.DOTALL)
_QUESTION = "What does this chest CT show?"


@dataclass(frozen=True)
class Report:
    """The sections of one report; "" where one is missing."""

    findings: str = ""
    impressions: str = ""


def clean(text: str) -> str:
    """Return a section without wrapping quotes or brackets and with single spaces.

    What stands for an empty section ("Not given.") becomes "".
    """
    text = " ".join(text.replace('"', " ").split())
    if wrapped := _WRAPPED.match(text):
        inner = wrapped[2].strip()
        text = inner if text.startswith(("[", "'")) else text
    return "" if text.rstrip(". ").lower() in _EMPTY else text


def sections(cells: Mapping[str, str]) -> Report:
    """Return the sections of a row of CT-RATE's report table."""
    return Report(clean(cells.get("Findings_EN", "")), clean(cells.get("Impressions_EN", "")))


def template_pair(report: Report) -> tuple[str, str]:
    """Return a question and the whole report as its answer; empty for an empty report."""
    answer = " ".join(part for part in (report.findings, report.impressions) if part)
    return (_QUESTION, answer) if answer else ("", "")


def stated_pair(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return the question and answer of a record of CT-RATE's question file; else empty ones.

    The pair stands under `question` and `answer`, or as the first two turns of `conversations`;
    marks such as `<image>` are left out.
    """
    match record:
        case {"question": str(question), "answer": str(answer)}:
            pair = question, answer
        case {"conversations": [{"value": str(question)}, {"value": str(answer)}, *_]}:
            pair = question, answer
        case _:
            return "", ""
    question, answer = (clean(_TAG.sub(" ", text)) for text in pair)
    return (question, answer) if question and answer else ("", "")
