"""Any folder of PNG and JPEG pictures: every one is a volume of one slice, for models in 2D."""

from collections.abc import Iterator
from pathlib import Path

from ct3dlib.cohort.catalog import Row
from ct3dlib.cohort.pseudonyms import UNKEYED, Pseudonyms
from ct3dlib.datasets.listing import duplicate, list_pictures, unique_names
from ct3dlib.datasets.patients import recognise
from ct3dlib.scan.picture import is_picture
from ct3dlib.scan.tree import walk


def read_pictures(root: Path, names: Pseudonyms = UNKEYED) -> Iterator[Row]:
    """Yield a row for every picture below a folder.

    Recipes of such volumes have `domain: window8`, `min_slices: 1` and one slice.

    Args:
        root: Any tree.
        names: Stand for names of patients, as in any folder.
    """
    found = list_pictures([path for path in walk(root) if is_picture(path)], root)
    unique = unique_names([one.place for one in found])
    patients = recognise(found, names)
    for one, patient, (volume, first) in zip(found, patients, unique, strict=True):
        problem = one.problem or (None if first is None else duplicate(one.place, found[first]))
        size, mtime_ns = one.size_and_mtime()
        yield Row(
            volume=volume,
            dataset="pictures",
            patient=patient,
            study=volume,
            kind=one.kind,
            domain="window8",
            sources=one.sources(root),
            size=size,
            mtime_ns=mtime_ns,
            shape=one.header.shape,
            metadata=one.settings,
            problem=problem and problem[0],
            problem_message=problem and problem[1],
        )
