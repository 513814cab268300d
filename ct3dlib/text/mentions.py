"""Which regions a sentence mentions, in which of its clauses, and whether it calls them normal.

The words are data, mentions.yaml; the rules are here. A clause is normal where it negates or calls
something normal, else abnormal: what a report names without either is a finding.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from ct3dlib.regions.label_map import NUM_REGIONS

Span = tuple[int, int]


@dataclass(frozen=True)
class Mention:
    """A region in a clause.

    Args:
        region: Id of the label map, 1 to 20.
        start: First character of the clause.
        end: One past its last character.
        abnormal: Whether the clause says that something is there, and not that all is well.
    """

    region: int
    start: int
    end: int
    abnormal: bool


def find_mentions(sentence: str) -> tuple[Mention, ...]:
    """Return what a sentence says of regions, by clauses in order, then by region.

    A side counts for the lobes after it in its clause ("right upper and middle lobe"); lobes
    without a side are those of both. Where a clause says that nobody could look, it says nothing.
    """
    lexicon = _lexicon()
    found: list[Mention] = []
    for start, end in lexicon.clauses(sentence):
        clause = sentence[start:end]
        if regions := lexicon.regions(clause):
            abnormal = lexicon.polarity(clause)
            if abnormal is not None:
                found += [Mention(one, start, end, abnormal) for one in sorted(regions)]
    return tuple(found)


def lexicon_version() -> str:
    """Return the version of the lexicon with a hash of what it says."""
    return _lexicon().version


@dataclass(frozen=True)
class _Cue:
    """What one group of cues says."""

    regions: tuple[int, ...]
    kind: str
    weak: str


class Lexicon:
    """The lexicon, compiled.

    Raises:
        ValueError: A cue is no regular expression, names a region that there is none of, or a
            region has no cue.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        said = json.dumps(document, sort_keys=True, ensure_ascii=False)
        self.version = f"{document['version']}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
        self._joints = _words(document["joints"])
        self._leading = _words(document["leading"])
        self._unassessed = _words(document["unassessed"])
        self._pseudo = _words(document["pseudo"])
        self._negated = _words(document["negations"])
        self._normal = _words(document["normal"])
        self._findings = _compile("|".join(document["findings"]))
        self._sides = {side: _compile(rf"\b(?:{w})\b") for side, w in document["sides"].items()}
        self._side = _compile(rf"\b(?:{'|'.join(document['sides'].values())})\b")
        self._zones = document["zones"]
        self._zone = _zone_pattern(self._zones)
        self._lungs = document["lungs"]
        self._cues = tuple(
            _Cue(tuple(one["regions"]), one.get("kind", ""), one.get("weak", ""))
            for one in document["cues"]
        )
        self._cue = _cue_pattern(document)
        self._check()

    def _check(self) -> None:
        """Refuse a lexicon whose regions are not those of the label map."""
        zones = {zone[side] for zone in self._zones.values() for side in ("left", "right")}
        known = zones.union(*(cue.regions for cue in self._cues))
        if known != set(range(1, NUM_REGIONS + 1)):
            raise ValueError(
                f"mentions.yaml: cues of regions {sorted(known)}, wanted 1 to {NUM_REGIONS}"
            )

    # ---- clauses ----

    def clauses(self, sentence: str) -> Iterator[Span]:
        """Yield the clauses of a sentence, without blanks and commas around them."""
        start, led = 0, False
        for joint in [*self._joints.finditer(sentence), None]:
            end = joint.start() if joint else len(sentence)
            comma = sentence.find(",", start, end) if led else -1
            for first, last in ((start, comma), (comma + 1, end)) if comma > 0 else ((start, end),):
                yield from self._split(sentence, first, last)
            if joint:
                start, led = joint.end(), self._leading.fullmatch(joint[0]) is not None

    def _split(self, sentence: str, start: int, end: int) -> Iterator[Span]:
        """Yield a part of a sentence in two or more where it turns from normal to abnormal."""
        for soft in _SOFT.finditer(sentence, start, end):
            if self._turns(sentence[start : soft.start()], sentence[soft.start() : end]):
                yield from _strip(sentence, start, soft.start())
                start = soft.start()
        yield from _strip(sentence, start, end)

    def _turns(self, before: str, after: str) -> bool:
        """Return whether two parts differ in polarity, each said in full."""
        denied = self._negated.search(before) is not None
        well = self._normal.search(before) is not None
        if denied or well:
            said = _VERB.search(before if denied else after) is not None or well
            return said and self._findings.search(after) is not None and bool(self.polarity(after))
        if self._findings.search(before) is None:
            return False
        if _WITHOUT.match(after):  # "a nodule without calcium in a lobe" is one clause
            return bool(self.regions(before))
        if _VERB.search(before) is None:  # "a cyst of the liver, the spleen is normal"
            whole = _VERB.search(after) and self._normal.search(after)
            return whole is not None and bool(self.regions(before))
        return _NO.match(after) is not None or self._normal.search(after) is not None

    def polarity(self, clause: str) -> bool | None:
        """Return whether a clause tells of something abnormal; None where nobody looked."""
        if self._unassessed.search(clause):
            return None
        plain = self._pseudo.sub(" ", clause)
        late = _WITHOUT.search(plain)
        if late and self._findings.search(plain, 0, late.start()):
            plain = plain[: late.start()]  # what a finding lacks does not undo it
        return not (self._negated.search(plain) or self._normal.search(plain))

    # ---- regions ----

    def regions(self, clause: str) -> set[int]:
        """Return the regions that a clause names."""
        found: list[_Cue] = []
        for match in self._cue.finditer(clause):
            group = match.lastgroup or ""
            if group == "lung":
                found.append(_Cue(self._lobes(clause, match), "lung", ""))
            else:
                found.append(self._cues[int(group[1:])])
        kinds = {cue.kind for cue in found}
        return {r for cue in found if not cue.weak or cue.weak not in kinds for r in cue.regions}

    def _lobes(self, clause: str, match: re.Match[str]) -> tuple[int, ...]:
        """Return the lobes that a phrase names, with the sides that it or its clause states."""
        phrase = match[0]
        if not (zones := list(self._zone.finditer(phrase))):  # whole lungs
            sides = self._stated(phrase, 0, len(phrase)) or ("left", "right")
            return tuple(r for side in dict.fromkeys(sides) for r in self._lungs[side])
        after = self._stated(phrase, zones[-1].end(), len(phrase))
        sides = after or self._last(clause[: match.start()])
        regions: list[int] = []
        begin = 0
        for zone in zones:
            sides = self._stated(phrase, begin, zone.end()) or sides
            begin = zone.end()
            given = self._zones[zone.lastgroup or ""]
            regions += [given[side] for side in sides or ("left", "right")]
        return tuple(dict.fromkeys(regions))

    def _stated(self, text: str, start: int, end: int) -> tuple[str, ...]:
        """Return the sides that a part of a text states."""
        sides: list[str] = []
        for word in self._side.finditer(text, start, end):
            side = next(name for name, one in self._sides.items() if one.fullmatch(word[0]))
            sides += ("left", "right") if side == "both" else (side,)
        if not sides and _PAIRED.search(text, start, end):
            return "left", "right"
        return tuple(sides)

    def _last(self, before: str) -> tuple[str, ...]:
        """Return the last side that stands before a phrase."""
        words = [word.span() for word in self._side.finditer(before)]
        return self._stated(before, *words[-1]) if words else ()


# Where a clause may turn: a comma, "and", "with".
_SOFT = re.compile(r",? (?:and|with|without) |, ", re.IGNORECASE)
_NO = re.compile(r"[, ]*(?:and )?(?:there (?:is|are) )?no\b", re.IGNORECASE)
_WITHOUT = re.compile(r"[, ]+(?:with no|without)\b", re.IGNORECASE)
_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|shows?|seen|observed|present|detected|measur\w+)\b",
    re.IGNORECASE,
)
_PAIRED = re.compile(r"\bbi(?:apical|basal|basilar)\b", re.IGNORECASE)


def _strip(sentence: str, start: int, end: int) -> Iterator[Span]:
    """Yield a span without blanks and commas around it, nothing where it has no letter."""
    text = sentence[start:end]
    left = len(text) - len(text.lstrip(" ,:"))
    if bare := text.strip(" ,:"):
        yield start + left, start + left + len(bare)


def _compile(pattern: str) -> re.Pattern[str]:
    """Return a pattern in which a blank is also a hyphen and no bracket captures."""
    spaced = re.sub(r"(?<!\[) ", "[ -]", re.sub(r"(?<!\\)\((?!\?)", "(?:", pattern))
    try:
        return re.compile(spaced, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"mentions.yaml: {pattern!r} is no regular expression ({error})") from None


def _words(patterns: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern of whole words."""
    return _compile("|".join(p if p == ";" else rf"\b(?:{p})\b" for p in patterns))


def _zone_pattern(zones: dict[str, Any]) -> re.Pattern[str]:
    """Return a pattern with a group for each zone."""
    return _compile("|".join(rf"(?P<{name}>\b(?:{z['words']})\b)" for name, z in zones.items()))


def _cue_pattern(document: dict[str, Any]) -> re.Pattern[str]:
    """Return one pattern of all cues: the group's name tells which; `lung` is a phrase of lobes."""
    left = r"\b" + "".join(f"(?<!{prefix}-)" for prefix in document["prefixes"])
    groups: list[str] = []
    for number, one in enumerate(document["cues"]):
        right = "" if one.get("ends") is False else r"\b"
        groups.append(f"(?P<c{number}>(?:{'|'.join(one['cues'])}){right})")
    first = next(i for i, one in enumerate(document["cues"]) if one["regions"] == [1])
    groups.insert(first, f"(?P<lung>{_lung_phrase(document)})")
    return _compile(f"{left}(?:{'|'.join(groups)})")


def _lung_phrase(document: dict[str, Any]) -> str:
    """Return a pattern of lobes ("right upper and middle lobe of ...") and of whole lungs."""
    side = f"(?:{'|'.join(document['sides'].values())})"
    zones = document["zones"]
    zone = "(?:" + "|".join(zones[name]["words"] for name in ("upper", "middle", "lower")) + ")"
    pole = "(?:" + "|".join(zones[name]["words"] for name in ("top", "bottom")) + ")"
    of = rf"(?:,? (?:of|in|on) (?:the )?{side}(?: lungs?| sides?)?)?"
    own = rf"(?:(?:the )?{side},?(?: lungs?'?)?(?: parenchyma)?,? )?(?:(?:in |at )?the )?"
    lobes = rf"{own}{zone}(?:(?:, | and | or |/|, and ){own}{zone})*(?: lungs?)?"
    lobes += rf" (?:lobes?|zones?|lungs?|fields?|lobar)\b{of}"
    poles = rf"(?:{side} )?(?:lungs? |pulmonary )?{pole}\b(?! segment| ganglia| cistern){of}"
    lungs = rf"(?:{side} (?:and|or) )?{side} lungs?\b(?! window)|lungs bilaterally\b"
    return f"{lobes}|{poles}|{lungs}"


def read_lexicon() -> dict[str, Any]:
    """Return the words of this package."""
    text = resources.files("ct3dlib.text").joinpath("mentions.yaml").read_text("utf-8")
    return yaml.safe_load(text)


@functools.cache
def _lexicon() -> Lexicon:
    """Return the words of this package, compiled."""
    return Lexicon(read_lexicon())
