"""Label maps on disk: NIfTI files of TotalSegmentator's kind, or of numbered objects."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ct3dlib.config import Numbering, Triple
from ct3dlib.errors import VolumeError
from ct3dlib.regions.label_map import DERIVED, REGIONS, TOTALSEGMENTATOR, region_of_class
from ct3dlib.scan.nifti import read_nifti
from ct3dlib.scan.nifti_classes import read_classes
from ct3dlib.scan.volume import Volume

NIFTI = (".nii.gz", ".nii")
_LARGEST = 1000  # class numbers beyond are none; a scan is not a label map


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A label map as region ids, on the grid of its file.

    Args:
        volume: Ids 0-20, uint8.
        known: Ids that its classes make up, whether or not they have a voxel.
        empty: Whether it holds no class at all, of a region or not.
    """

    volume: Volume
    known: frozenset[int]
    empty: bool = False


def read_label_map(
    path: Path, *, numbering: Numbering | None = None, spacing: Triple | None = None
) -> LabelMap:
    """Read a label map.

    Args:
        path: A NIfTI file with a number per class, or a folder with a file per class, named so.
        numbering: What the numbers mean where the file does not name its classes.
        spacing: (D, H, W) of the scan, mm, for a file whose header is blank.

    Raises:
        VolumeError: What `read_nifti` raises; `BAD_LABELS`, values that are no class, files of one
            folder on different grids; `UNKNOWN_CLASSES`, no class is part of a region that is
            looked for, or nothing says what the numbers mean.
    """
    if path.is_dir():
        return _read_folder(path, spacing)
    volume = read_nifti(path, spacing=spacing).volume
    classes = read_classes(path) or _numbered(path, numbering)
    return LabelMap(
        Volume(_regions(path, volume.array, classes), volume.affine, "uint8"),
        _known(path, classes.values()),
        empty=not volume.array.any(),
    )


def read_ids(path: Path, *, spacing: Triple | None = None) -> Volume:
    """Read a mask of numbered objects, such as lesions: uint8, 0 is none.

    Args:
        path: A NIfTI file of whole numbers up to 255.
        spacing: (D, H, W) of the scan, mm, for a file whose header is blank.

    Raises:
        VolumeError: What `read_nifti` raises; `BAD_LABELS`, other values.
    """
    volume = read_nifti(path, spacing=spacing).volume
    ids = _whole_numbers(path, volume.array, largest=255, wanted="0 and ids up to 255")
    return Volume(ids.astype(np.uint8), volume.affine, "uint8")


def _numbered(path: Path, numbering: Numbering | None) -> dict[int, str]:
    """Return the classes of a file that does not name them."""
    match numbering:
        case "totalsegmentator_v2":
            return dict(enumerate(TOTALSEGMENTATOR, start=1))
        case "regions":
            return dict(enumerate(REGIONS))
        case None:
            raise VolumeError(
                "UNKNOWN_CLASSES",
                f"{path}: its header does not name its classes, and numbers differ between "
                f"versions of TotalSegmentator; state numbering: totalsegmentator_v2 or regions",
            )


def _known(path: Path, names: Collection[str]) -> frozenset[int]:
    """Return the regions that classes make up."""
    regions = [region_of_class(name) for name in names]
    found = frozenset(region for region in regions if region)
    if not found - DERIVED:
        some = ", ".join(sorted(names)[:5]) or "no file"
        raise VolumeError(
            "UNKNOWN_CLASSES",
            f"{path}: none of its classes ({some}) is part of a region that is looked for; give "
            f"label maps of TotalSegmentator's task total, or with the names of label_map.yaml",
        )
    return found


def _regions(
    path: Path, labels: NDArray[np.generic], classes: Mapping[int, str]
) -> NDArray[np.uint8]:
    """Return region ids for class numbers."""
    numbers = _whole_numbers(path, labels, largest=_LARGEST, wanted="numbers of classes")
    high = int(numbers.max())
    counts = sum(np.bincount(plane.ravel(), minlength=high + 1) for plane in numbers)
    used = np.flatnonzero(counts).tolist()
    if strange := [number for number in used if number and number not in classes]:
        raise VolumeError(
            "BAD_LABELS",
            f"{path}: {strange[:5]} are none of its {len(classes)} classes; is it of another task "
            f"or version?",
        )
    table = np.zeros(high + 1, np.uint8)
    for number in used:
        table[number] = region_of_class(classes.get(number, "other")) or 0
    return table[numbers]


def _whole_numbers(
    path: Path, labels: NDArray[np.generic], *, largest: int, wanted: str
) -> NDArray[np.uint16]:
    """Return labels as integers from 0 to `largest`."""
    low, high = float(labels.min()), float(labels.max())
    if low < 0 or high > largest:
        raise VolumeError("BAD_LABELS", f"{path}: values from {low:g} to {high:g}, wanted {wanted}")
    numbers = labels.astype(np.uint16)
    if not np.issubdtype(labels.dtype, np.integer) and not np.array_equal(numbers, labels):
        raise VolumeError("BAD_LABELS", f"{path}: values between whole numbers; no label map")
    return numbers


def _read_folder(folder: Path, spacing: Triple | None) -> LabelMap:
    """Read a folder with one file per class; where two claim a voxel, the first by name has it."""
    names = {p: p.name.split(".nii")[0] for p in sorted(folder.iterdir()) if p.name.endswith(NIFTI)}
    known = _known(folder, names.values())
    regions = {path: region for path, name in names.items() if (region := region_of_class(name))}
    grid = read_nifti(next(iter(regions)), spacing=spacing).volume
    joined = np.zeros(grid.shape, np.uint8)
    for path, region in regions.items():
        volume = read_nifti(path, spacing=spacing).volume
        if volume.shape != grid.shape or not np.allclose(volume.affine, grid.affine, atol=1e-3):
            raise VolumeError("BAD_LABELS", f"{path}: not on the grid of the files beside it")
        mask = volume.array.astype(bool)
        if not np.array_equal(volume.array, mask * volume.array.max()):
            raise VolumeError("BAD_LABELS", f"{path}: several values, wanted a mask of one class")
        joined[mask & (joined == 0)] = region
    return LabelMap(Volume(joined, grid.affine, "uint8"), known)
