"""Who each series of a folder is of, by its headers and by what its files are called."""

import logging
import re
from collections import Counter
from collections.abc import Sequence

from ct3dlib.cohort.names import safe_name
from ct3dlib.cohort.pseudonyms import UNKEYED, Pseudonyms
from ct3dlib.datasets.files import stem
from ct3dlib.datasets.listing import Found

logger = logging.getLogger(__name__)

_CT_RATE_NAME = re.compile(r"(?:train|valid(?:ation)?)_\d+(?![^_])")
_BIDS_SUBJECT = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)(?![A-Za-z0-9])")
# Folders called after what they hold, or after a part, a site or a visit: never after a person.
_NO_PERSON = re.compile(
    r"(?:images?|imgs?|labels?|masks?|segs?|segmentations?|annotations?|ground[-_ ]?truth|gt"
    r"|volumes?|vols?|scans?|series|cts?|mri?s?|pets?|data(?:sets?)?|raw|nii|nifti|dicom|dcm|nrrd"
    r"|jpe?g|train(?:ing)?|val(?:id(?:ation)?)?|tune|test(?:ing)?|baseline|follow[-_ ]?up)"
    r"(?:tr|ts|val)?"
    r"|(?:site|cent(?:er|re)|hospital|batch|fold|visit|session|ses)[-_ ]?(?:[a-z]|\d+)?",
    re.IGNORECASE,
)
# nnU-Net numbers the modalities of a case, case_001_0000, and does not number its labels.
_CHANNELS = re.compile(r"images(?:tr|ts|val)", re.IGNORECASE)
_CHANNEL = re.compile(r"(.*\d.*)_\d{4}")
_FEW = 4

Sign = tuple[str, str]


def recognise(found: Sequence[Found], names: Pseudonyms = UNKEYED) -> list[str]:
    """Return who each series is of; the same person has one name, whatever the format.

    The first that there is: a PatientID (under a pseudonym), a name of CT-RATE, a BIDS subject, a
    name that begins with a PatientID of the tree, the first folder that may be called after a
    person, the file's name. When in doubt two people become one: then neither is in two splits.
    """
    known = {one.patient for one in found if one.patient}
    signs = [_sign(one, known, names) for one in found]
    places = [tuple(stem(one.place).split("/")) for one in found]
    outer = _common_folders(places)
    unsigned = [place for place, sign in zip(places, signs, strict=True) if sign is None]
    by_place = iter(_by_place([place[outer:] for place in unsigned]))
    whole = [next(by_place) if sign is None else sign for sign in signs]
    counts = Counter(how for how, _ in whole)
    logger.info(
        "%s patients from %s series, recognised by %s",
        len({name for _, name in whole}),
        len(found),
        ", ".join(f"{how} ({number})" for how, number in sorted(counts.items())),
    )
    return [name for _, name in whole]


def _sign(one: Found, known: set[str], names: Pseudonyms) -> Sign | None:
    """Return how a series says by itself who it is of, and who that is."""
    if one.patient:
        return "PatientID", names.of("patient", one.patient)
    parts = stem(one.place).split("/")
    if ct_rate := _CT_RATE_NAME.match(parts[-1]):
        return "CT-RATE name", ct_rate[0].replace("validation_", "valid_")
    if subject := _BIDS_SUBJECT.search(one.place):
        return "BIDS subject", subject[1]
    for part in reversed(parts):
        if identity := _known_prefix(part, known):
            return "PatientID in the name", names.of("patient", identity)
    return None


def _known_prefix(text: str, known: set[str]) -> str | None:
    """Return the longest of the known PatientIDs that a text starts with as a whole word."""
    ends = [place for place in range(1, len(text)) if not text[place].isalnum()]
    return next((text[:end] for end in (len(text), *reversed(ends)) if text[:end] in known), None)


def _common_folders(places: Sequence[tuple[str, ...]]) -> int:
    """Return how many folders stand around all series: they tell nobody apart."""
    levels = list(zip(*{place[:-1] for place in places}, strict=False))
    return next((n for n, level in enumerate(levels) if len(set(level)) > 1), len(levels))


def _by_place(places: Sequence[tuple[str, ...]]) -> list[Sign]:
    """Return who series are of by their folders and names.

    Args:
        places: The parts of each path, the last without its ending.
    """
    if _alike(places):
        return [("file name", safe_name(place[-1])) for place in places]
    return [_first_person(place) for place in places]


def _alike(places: Sequence[tuple[str, ...]]) -> bool:
    """Return whether few folders hold many files called alike: one file of a patient in each."""
    if any(len(place) != 2 for place in places):
        return False
    folders: dict[str, set[str]] = {}
    for folder, name in places:
        folders.setdefault(folder, set()).add(name)
    if not 2 <= len(folders) <= _FEW:
        return False
    shared = set.intersection(*folders.values())
    every = set.union(*folders.values())
    return len(shared) >= 2 * len(folders) and 2 * len(shared) >= len(every)


def _first_person(place: tuple[str, ...]) -> Sign:
    """Return the first folder that may be called after a person, else the last name."""
    *folders, name = place
    if person := next((part for part in folders if not _NO_PERSON.fullmatch(part)), None):
        return "folder", safe_name(person)
    if any(map(_CHANNELS.fullmatch, folders)) and (case := _CHANNEL.fullmatch(name)):
        name = case[1]
    return "file name", safe_name(name)
