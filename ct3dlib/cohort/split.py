"""Which patients train, choose checkpoints and are reported.

The draw is a hash of the patient, so nobody moves when others are added; a split that would stay
without a patient takes the one with the smallest draw from another.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ct3dlib.cohort.durable import publish
from ct3dlib.config import SPLITS, CatalogSpec, Split
from ct3dlib.errors import DatasetError, StoreError

logger = logging.getLogger(__name__)

# What the data set says of its patients -> the splits to fill from them, the needier first; the
# last one only where there are patients enough.
_FILLED: tuple[tuple[Split | None, tuple[Split, ...]], ...] = (
    (None, ("train", "valid", "tune")),
    ("train", ("train", "tune")),
)
_DRAWN_WITH = ("seed", "tune", "valid")


@dataclass(frozen=True)
class Patient:
    """What decides the split of one patient.

    Args:
        name: Unique.
        origin: What the data set says: "train" leaves `tune` open, unless the data set has a
            `tune` of its own; None leaves all open.
        given: What the user's table says.
        whole: Whether a volume of the patient promises to be usable.
    """

    name: str
    origin: Split | None = None
    given: Split | None = None
    whole: bool = True


def draw(name: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on a patient's name and the seed only."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    # 53 bits fill a float exactly: more would round up to 1.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def assign_splits(
    patients: Sequence[Patient], spec: CatalogSpec, *, previous: Mapping[str, Split]
) -> dict[str, Split]:
    """Return the split of every patient.

    In this order: the user's table, the data set's own `tune` or `valid`, an earlier catalog, the
    draw. Patients that are open to all splits fill `train` and `valid` with one at least, and
    `tune` from three on; patients of the data set's `train` fill `train`, and `tune` from two on,
    but where the data set has a `tune` of its own nobody is drawn out of its `train`. Whole
    patients go first.

    Raises:
        DatasetError: A split that needs a patient has none and none may move to it.
    """
    splits: dict[str, Split] = {}
    drawn: set[str] = set()
    num_kept = 0
    own_tune = _has_own_tune(patients)
    for patient in patients:
        fixed = _fixed(patient, own_tune=own_tune)
        kept = previous.get(patient.name) if fixed is None else None
        splits[patient.name] = fixed or kept or _drawn_split(patient, spec)
        num_kept += kept is not None
        if fixed is None and kept is None:
            drawn.add(patient.name)
    if num_kept:
        logger.info("%s of %s patients keep their earlier split", num_kept, len(patients))
    stated = any(patient.given for patient in patients)
    for origin, order in _FILLED[:1] if own_tune else _FILLED:
        group = {patient.name: patient for patient in patients if patient.origin == origin}
        whole = {name for name, patient in group.items() if patient.whole}
        needed = order if len(group) >= len(order) else order[:-1]
        movable = sorted(drawn & set(group), key=lambda n: (n in whole, draw(n, spec.seed)))
        for among in (whole, set(group)):
            _fill(splits, needed, movable=movable, among=among)
        if group and not stated:
            _check_filled(splits, needed, sorted(group))
    return splits


def check_patients(splits: Iterable[tuple[str, str | None]]) -> None:
    """Raise where a patient is in two splits.

    Args:
        splits: Patient and split of every volume.

    Raises:
        DatasetError: A patient is in two splits.
    """
    seen: dict[str, str | None] = {}
    for patient, split in splits:
        if (first := seen.setdefault(patient, split)) != split:
            raise DatasetError(
                f"patient {patient} is in {first} and in {split}: a model would be judged by whom "
                f"it was trained on; build the catalog again"
            )


def _has_own_tune(patients: Sequence[Patient]) -> bool:
    """Return whether the data set states who is in `tune`."""
    return any(patient.origin == "tune" for patient in patients)


def _fixed(patient: Patient, *, own_tune: bool) -> Split | None:
    """Return the split of a patient that is stated, None where it is drawn."""
    drawable = patient.origin == "train" and not own_tune
    return patient.given or (None if drawable else patient.origin)


def _drawn_split(patient: Patient, spec: CatalogSpec) -> Split:
    """Return the split that a patient's draw falls in."""
    number = draw(patient.name, spec.seed)
    if number < spec.tune:
        return "tune"
    if patient.origin is None and number < spec.tune + spec.valid:
        return "valid"
    return "train"


def _fill(
    splits: dict[str, Split],
    needed: Sequence[Split],
    *,
    movable: Sequence[str],
    among: set[str],
) -> None:
    """Move one of `movable` to each needed split that has none of `among`.

    A needed split gives up its last one only to a split that stands before it.
    """
    for place, split in enumerate(needed):
        held = [splits[name] for name in among]
        if split in held:
            continue
        keepers = needed[:place]
        donors = [
            name
            for name in movable
            if name in among and (splits[name] not in keepers or held.count(splits[name]) > 1)
        ]
        if donors:
            splits[donors[0]] = split


def _check_filled(
    splits: Mapping[str, Split], needed: Sequence[Split], names: Sequence[str]
) -> None:
    """Raise unless every needed split has a patient."""
    held = {splits[name] for name in names}
    if missing := [split for split in needed if split not in held]:
        raise DatasetError(
            f"no patient for {missing[0]}: {len(names)} found ({', '.join(names[:3])}), at least "
            f"{len(needed)} that are not yet in another split are needed; add scans of other "
            f"patients, state splits and patients in catalog.split_csv, or delete the saved "
            f"assignments to draw anew"
        )


@dataclass(frozen=True)
class Assignments:
    """Splits of patients in earlier catalogs, and what they were drawn with.

    Args:
        patients: Split by patient.
        drawn: What they were drawn with, see `drawn_with`; empty where nobody was assigned yet.
        path: Where they are kept, for messages.
        key: Fingerprint of the key that patients are named with, where one was needed.
        pseudonymised: Whether the catalog named no file.
    """

    patients: Mapping[str, Split] = field(default_factory=dict)
    drawn: Mapping[str, int | float] = field(default_factory=dict)
    path: Path = Path("assignments.json")
    key: str | None = None
    pseudonymised: bool = False


def drawn_with(spec: CatalogSpec) -> dict[str, int | float]:
    """Return what decides the draw of a patient."""
    return {"seed": spec.seed, "tune": spec.tune, "valid": spec.valid}


def check_drawn(earlier: Assignments, patients: Sequence[Patient], spec: CatalogSpec) -> None:
    """Raise where patients keep a split that was drawn with another seed or other shares.

    Nor may `pseudonymise` change: what was made under real names would stay beside the rest.
    What decides nothing may change: all of it where the data set or the user's table states the
    splits, and `valid` where the data set states that one.

    Raises:
        DatasetError: The config says another seed or share than patients were drawn with, or
            another `pseudonymise`.
    """
    if earlier.patients and earlier.pseudonymised != spec.pseudonymise:
        raise DatasetError(
            f"{earlier.path}: was made with catalog.pseudonymise {earlier.pseudonymised}, the "
            f"config says {spec.pseudonymise}: names of both kinds would stand side by side; set "
            f"it back, or start in an empty folder (--directory)"
        )
    own_tune = _has_own_tune(patients)
    kept = [one for one in patients if _fixed(one, own_tune=own_tune) is None]
    kept = [one for one in kept if one.name in earlier.patients]
    wanted = drawn_with(spec)
    if all(one.origin is not None for one in kept):
        del wanted["valid"]
    was = {name: value for name, value in earlier.drawn.items() if name in wanted}
    if kept and was != wanted:
        old = ", ".join(f"{name} {value}" for name, value in was.items())
        new = ", ".join(f"{name} {value}" for name, value in wanted.items())
        raise DatasetError(
            f"patients were assigned with {old}; the config says {new}; set it back, or delete "
            f"{earlier.path} to draw anew"
        )


def load_assignments(path: Path) -> Assignments:
    """Return the splits of earlier catalogs; empty where there was none.

    Raises:
        StoreError: The file is damaged.
    """
    if not path.exists():
        return Assignments(path=path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path}: damaged ({error}); restore it, or delete it to draw anew"
        ) from error
    patients = found.get("patients") if isinstance(found, dict) else None
    if (
        not isinstance(patients, dict)
        or not all(split in SPLITS for split in patients.values())
        or not all(isinstance(found.get(name), int | float) for name in _DRAWN_WITH)
    ):
        raise StoreError(
            f"{path}: not seed, tune, valid and patients with {', '.join(SPLITS)}; restore it, or "
            f"delete it to draw anew"
        )
    drawn = {name: found[name] for name in _DRAWN_WITH}
    hidden = bool(found.get("pseudonymised"))
    return Assignments(patients, drawn, path, found.get("key"), hidden)


def save_assignments(
    path: Path, splits: Mapping[str, Split], *, spec: CatalogSpec, key: str | None = None
) -> None:
    """Write the splits of patients, what they were drawn with and the key's fingerprint.

    Patients of an earlier catalog that are gone keep their entry.
    """
    content = {
        **drawn_with(spec),
        **({"key": key} if key else {}),
        **({"pseudonymised": True} if spec.pseudonymise else {}),
        "patients": {**load_assignments(path).patients, **splits},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    publish(partial, path)
