"""Slices and masks of OmniAbnorm-CT-14K: which pictures below the root belong together."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ct3dlib.datasets.files import relative
from ct3dlib.errors import VolumeError
from ct3dlib.scan.slices import read_slices_shape

ENDINGS = (".jpg", ".jpeg")
_OFFSET = re.compile(r"-?\d+")
_MASK = re.compile(r"(?:^|[_-])(?:masks?|segs?|segmentations?)$", re.IGNORECASE)
# Headers wait for the disk or the network, not for the processor.
_THREADS = 16


@dataclass(frozen=True)
class Pictures:
    """The slices of a case, or its masks.

    Args:
        name: Id of the case.
        place: Folder, or file without ending, relative to the raw root.
        files: Slices by their number, masks by their name.
    """

    name: str
    place: str
    files: tuple[Path, ...]

    @property
    def offsets(self) -> list[int]:
        """Number of each slice, counted from the key slice; one picture is the key slice."""
        numbers = [path.stem for path in self.files]
        return [int(n) for n in numbers] if all(map(_OFFSET.fullmatch, numbers)) else [0]


def group_pictures(
    paths: Sequence[Path], root: Path, names: Collection[str]
) -> tuple[dict[str, list[Pictures]], dict[str, list[Pictures]]]:
    """Return slices and masks by the id of their case.

    Args:
        paths: JPEG files.
        root: Folder that they lie below.
        names: Ids of the cases that are known.
    """
    groups: dict[tuple[bool, str, str], list[Path]] = defaultdict(list)
    for path in paths:
        place = PurePosixPath(relative(path, root))
        folders = [part for part in place.parts[:-1] if not _MASK.search(part)]
        stem = _MASK.sub("", place.stem)
        drawn = stem != place.stem or len(folders) < len(place.parts) - 1
        folder = folders[-1] if folders else ""
        # Numbers may be the slices of a folder's case, or cases that are called by numbers.
        together = folder in names or (_OFFSET.fullmatch(stem) and stem not in names and folder)
        name = folder if together else stem
        groups[drawn, name, str(place.parent if together else place.with_suffix(""))].append(path)
    sorted_groups: tuple[dict[str, list[Pictures]], ...] = ({}, {})
    for (drawn, name, place), files in groups.items():
        files.sort(key=lambda path: (_number(path.stem), path.name))
        sorted_groups[drawn].setdefault(name, []).append(Pictures(name, place, tuple(files)))
    images, masks = sorted_groups
    return images, masks


def _number(stem: str) -> int:
    """Return the number that a file is called by, 0 where it is called otherwise."""
    return int(stem) if _OFFSET.fullmatch(stem) else 0


def choose(groups: Mapping[str, list[Pictures]], name: str, stated: str) -> Pictures | None:
    """Return the pictures of a case: of those of its name, what is most like the stated path.

    The path may be one of another machine: its last parts count.
    """
    path = PurePosixPath(stated.replace("\\", "/"))
    if path.suffix.lower() in ENDINGS:
        path = path.parent if _OFFSET.fullmatch(path.stem) else path.with_suffix("")
    among = groups.get(path.name) or groups.get(name) or []
    return max(among, key=lambda one: _alike(one.place, path), default=None)


def _alike(place: str, path: PurePosixPath) -> int:
    """Return how many of the last parts of two paths are equal."""
    pairs = zip(reversed(PurePosixPath(place).parts), reversed(path.parts), strict=False)
    equal = [one == other for one, other in pairs]
    return [*equal, False].index(False)


def read_shapes(pictures: Sequence[Pictures | None]) -> list[tuple[int, int, int] | None]:
    """Return (slices, rows, columns) by the header of each first picture, None where not known."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_shape, pictures))


def _shape(pictures: Pictures | None) -> tuple[int, int, int] | None:
    """Return (slices, rows, columns) without decoding."""
    if pictures is None:
        return None
    try:
        return read_slices_shape(pictures.files)
    except VolumeError:  # comes again, as the row's problem, when the pictures are stored
        return None
