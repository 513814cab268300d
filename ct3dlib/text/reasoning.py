"""What was written of a volume, in steps: the text that a scan is compared with.

Of a catalog's row only the texts are read, never the names of volume, study or patient.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ct3dlib.text.reports import Report, clean, template_pair
from ct3dlib.text.sentences import split_sentences, split_steps

# Reports of no more tokens are left out of contrastive training, as RadFinder does.
LEAST_TOKENS = 10
_TOKEN = re.compile(r"\w+|[^\w\s]")
# Names of files and of CT-RATE's volumes, which would tell which scan a text is of.
_NAME = re.compile(
    r"\S+\.nii(?:\.gz)?\b|\b(?:train|valid)_\d+(?:_[a-z](?:_\d+)?)?\b", re.IGNORECASE
)

Source = Literal["vqa", "template", "report"]


@dataclass(frozen=True)
class Reasoning:
    """The text of one volume.

    Args:
        question: Asked of the scan; "" where there is none.
        steps: Sentences, or the steps of a reasoning, in order; none where nothing is written.
        source: Where the question is from: "vqa" (the data set), "template" (made up for the
            text, the same for all), "report" (there is none).
    """

    question: str
    steps: tuple[str, ...]
    source: Source

    @property
    def tokens(self) -> int:
        """Words and punctuation marks of the steps."""
        return sum(len(_TOKEN.findall(step)) for step in self.steps)

    @property
    def too_short(self) -> bool:
        """Whether there is too little text to tell one scan from others: at most 10 tokens."""
        return self.tokens <= LEAST_TOKENS


def read_reasoning(row: Mapping[str, Any]) -> Reasoning:
    """Return the text of a catalog's row.

    The report where there is one: findings, then impressions, by sentences. Else the answer to the
    question, and also where a reasoning was written for the case beside its findings, as for
    OmniAbnorm-CT-14K: its steps as they are where lines or numbers tell them apart, else sentences.

    Args:
        row: Columns findings, impressions, question, answer, qa_source; nulls are "". Others are
            not looked at.
    """
    report = Report(_text(row, "findings"), _text(row, "impressions"))
    question, answer = _text(row, "question"), _text(row, "answer")
    source = row.get("qa_source")
    made_up = source == "template"
    whole = " ".join(template_pair(report)[1].split())
    # A made-up pair answers with the report, unless the case has a reasoning.
    reasoned = made_up and " ".join(answer.split()) not in ("", whole)
    if whole and not reasoned:
        steps = split_sentences(report.findings) + split_sentences(report.impressions)
    else:
        steps = split_steps(answer)
    if not question:
        return Reasoning("", steps, "report")
    return Reasoning(question, steps, "template" if made_up else "vqa")


def _text(row: Mapping[str, Any], column: str) -> str:
    """Return a text with its lines, cleaned and without names of volumes; "" for a null."""
    value = row.get(column)
    if not isinstance(value, str):
        return ""
    whole = value.encode("utf-8", "ignore").decode()  # half characters, which JSON can hold
    lines = _NAME.sub(" ", whole).splitlines()
    return "\n".join(line for line in map(clean, lines) if line)
