"""Where the sentences of a report end, and the steps of a written reasoning."""

import re
from collections.abc import Iterator

# Words whose full stop ends no sentence; those of the second list only before a number.
_ABBREVIATED = {"e.g", "i.e", "eg", "ie", "vs", "cf", "approx", "ca", "resp", "incl", "dr", "prof"}
_NUMBERED = {"fig", "figs", "no", "nr", "im", "img", "ser", "se", "seg", "vol", "tab", "st"}
_UNITS = {"mm", "cm", "dm", "m", "ml", "cc", "hu", "kg", "mg"}
_END = re.compile(r"""[.!?]+["')\]]*(?=\s|$)|(?<=[a-z0-9)%])\.(?=[A-Z][a-z])""")
_LAST_WORD = re.compile(r"[\w.]*$")
_BULLET = re.compile(
    r"^\s*(?:[-*•\u2013]\s+|\(?\d{1,2}[.)]\s+(?=\D)|step\s+\d{1,2}\s*[:.)]\s*)", re.I
)
_ITEM = re.compile(r"(?:^|(?<=[.!?;:]))\s*(?:step\s+(\d{1,2})\s*[:.)]|\(?(\d{1,2})[.)])\s+", re.I)


def split_sentences(text: str) -> tuple[str, ...]:
    """Return the sentences of a text in order, without the marks of lists.

    A line ends a sentence. A full stop does not within a number ("3.5 mm"), after an abbreviation
    ("e.g.", "Fig. 2") or the number of an item, nor after a unit where the sentence goes on in
    lower case ("2 cm. in size").
    """
    lines = (line for part in text.splitlines() for line in _items(part))
    sentences = (one for line in lines for one in _sentences(line))
    return tuple(bare for one in sentences if (bare := _bare(one)))


def split_steps(text: str) -> tuple[str, ...]:
    """Return the steps of a reasoning as they are written: lines, or numbered parts.

    A text that has neither is one of sentences.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    parts = lines if len(lines) > 1 else _items(text)
    if len(parts) < 2:
        return split_sentences(text)
    return tuple(bare for part in parts if (bare := _bare(part)))


def _bare(text: str) -> str:
    """Return a sentence without the mark of a list before it; "" where no word is left."""
    bare = " ".join(_BULLET.sub("", text).split())
    return bare if any(letter.isalnum() for letter in bare) else ""


def _items(line: str) -> list[str]:
    """Return the parts of a line that numbers 1, 2, ... mark; the line where they do not."""
    starts: list[int] = []
    for mark in _ITEM.finditer(line):
        if int(mark[1] or mark[2]) == len(starts) + 1:
            starts.append(mark.start())
    if len(starts) < 2:
        return [line]
    before = [line[: starts[0]]] if line[: starts[0]].strip() else []
    ends = [*starts[1:], len(line)]
    return before + [line[start:end] for start, end in zip(starts, ends, strict=True)]


def _sentences(line: str) -> Iterator[str]:
    """Yield the sentences of a line."""
    start = 0
    for end in _END.finditer(line):
        if _ends(line[start : end.start()], line[end.end() :].lstrip(), mark=end[0]):
            yield line[start : end.end()]
            start = end.end()
    yield line[start:]


def _ends(before: str, after: str, *, mark: str) -> bool:
    """Return whether a sentence ends between two parts of a line."""
    if not after or not mark.startswith("."):
        return True
    last = _LAST_WORD.search(before)
    word = last[0].lower() if last else ""
    if word in _ABBREVIATED or (word in _NUMBERED and after[0].isdigit()):
        return False
    if before.strip("( ").lower() == word and (word.isdigit() or len(word) == 1):
        return False  # "1." and "a." before the first word number it
    return not (after[0].islower() and (word in _UNITS or len(word) == 1))
