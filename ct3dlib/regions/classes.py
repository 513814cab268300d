"""Classes of a mask in which regions and drawn lesions stand together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct3dlib.cohort.location import Location
from ct3dlib.cohort.store import StoredVolume, stored_volumes
from ct3dlib.config.finetune import MaskKind
from ct3dlib.errors import StoreError
from ct3dlib.regions.label_map import REGIONS

BACKGROUND, LESION = "background", "lesion"


def class_names(kinds: Sequence[MaskKind]) -> tuple[str, ...]:
    """Return the names of the classes, index = id: background, regions, then lesions as one."""
    regions = REGIONS[1:] if "regions" in kinds else ()
    return (BACKGROUND, *regions, *((LESION,) if "lesions" in kinds else ()))


@dataclass(frozen=True, eq=False)
class MaskedVolume:
    """A stored volume with its masks.

    Args:
        volume: The scan.
        masks: On its grid: ids of regions, ids of lesions, or both.
    """

    volume: StoredVolume
    masks: Mapping[MaskKind, StoredVolume]

    def read_classes(self) -> NDArray[np.uint8]:
        """Return the class of each voxel, D H W, as `class_names`; a lesion hides its region."""
        if "regions" not in self.masks:
            return (self.read_lesions() > 0).astype(np.uint8)
        classes = np.array(self.masks["regions"].read(), np.uint8)
        if "lesions" in self.masks:
            classes[self.read_lesions() > 0] = len(REGIONS)
        return classes

    def read_lesions(self) -> NDArray[np.uint8]:
        """Return the ids of lesions, D H W.

        Raises:
            StoreError: They are known of the key slice alone.
        """
        stored = self.masks["lesions"]
        if stored.array.attributes["ct3d"].get("key_slice_alone"):
            raise StoreError(
                f"{stored.array.place}: lesions of the key slice alone; leave lesions out of "
                f"`masks`, or give the volume a mask of all its slices"
            )
        return np.asarray(stored.read(), np.uint8)


def stored_masks(
    kinds: Sequence[MaskKind], *, regions: Sequence[Location], lesions: Sequence[Location]
) -> dict[MaskKind, list[StoredVolume]]:
    """Return the masks of the kinds that are wanted, from status tables of both stores."""
    tables: dict[MaskKind, Sequence[Location]] = {"regions": regions, "lesions": lesions}
    return {kind: stored_volumes(tables[kind]) for kind in kinds}


def with_masks(
    volumes: Sequence[StoredVolume], masks: Mapping[MaskKind, Sequence[StoredVolume]]
) -> list[MaskedVolume]:
    """Return the volumes that have a mask of each kind, with them.

    Args:
        volumes: Of one store.
        masks: Volumes of the region store, of the lesion store, or of both; of any splits.

    Raises:
        StoreError: A mask lies on another grid than its volume.
    """
    named: dict[MaskKind, dict[str, StoredVolume]] = {
        kind: {mask.volume: mask for mask in stored} for kind, stored in masks.items()
    }
    masked = []
    for volume in volumes:
        found: dict[MaskKind, StoredVolume] = {
            kind: of[volume.volume] for kind, of in named.items() if volume.volume in of
        }
        for kind, mask in found.items():
            if mask.shape != volume.shape:
                raise StoreError(
                    f"{volume.volume}: its {kind} have shape {mask.shape}, the volume "
                    f"{volume.shape}; run the rule {kind} again"
                )
        if len(found) == len(masks):
            masked.append(MaskedVolume(volume, found))
    return masked
