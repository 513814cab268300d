"""Lesions drawn as pictures of a key slice: what is known of one slice, and of no other."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct3dlib.cohort.store import StoredVolume
from ct3dlib.errors import VolumeError
from ct3dlib.regions.drawn import scan_record
from ct3dlib.scan.resample import resample_to
from ct3dlib.scan.slices import key_place, read_mask
from ct3dlib.scan.volume import Volume

# No picture has this id; it stands in the slices that nobody drew in.
UNKNOWN_LESION = 255


def real_slices(volume: StoredVolume) -> list[bool]:
    """Return which slices are no stand-in of a key slice; empty where there is no such slice."""
    return volume.array.attributes["ct3d"].get("facts", {}).get("z_real", [])


def named_masks(row: Mapping[str, Any]) -> list[str]:
    """Return the masks that a catalog row names, one of each finding, `lesion_mask` first."""
    others = json.loads(row["metadata"]).get("masks", {})
    return [*dict.fromkeys([row["lesion_mask"], *others.values()])]


def read_key_lesions(paths: Sequence[Path], volume: StoredVolume) -> NDArray[np.uint8]:
    """Return drawn findings on the grid of a stored volume, D H W, nearest.

    The key slice and its stand-ins hold the number of the first mask that is set there, from 1, or
    0; its real neighbours 255. What the recipe padded is 0.

    Args:
        paths: Masks of the key slice, at most 254.
        volume: Of a recipe with `slices`.

    Raises:
        VolumeError: `LABEL_MAP_ELSEWHERE`, a mask has another shape than the slice; what
            `read_mask` raises.
        StoreError: The store has no record of the scan.
    """
    record = scan_record(volume)
    unknown = np.array(real_slices(volume))
    unknown[key_place(len(unknown))] = False
    _, *pixels = record.source_shape
    plane = np.zeros(pixels, np.uint8)
    for number, path in enumerate(paths, 1):
        drawn = read_mask(path)
        if drawn.shape != plane.shape:
            raise VolumeError(
                "LABEL_MAP_ELSEWHERE",
                f"{path}: shape {drawn.shape} is not that of its slice, {plane.shape}; give the "
                f"mask of this slice",
            )
        plane[drawn & (plane == 0)] = number
    stack = np.where(unknown[:, None, None], np.uint8(UNKNOWN_LESION), plane)
    placed = Volume(stack, np.array(record.source_affine), "uint8")
    found = resample_to(placed, affine=volume.affine, shape=volume.shape, fill=0, nearest=True)
    return np.asarray(found.array, np.uint8)
