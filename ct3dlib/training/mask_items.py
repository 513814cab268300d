"""Whole stored volumes with the class of each voxel, as training items."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ct3dlib.cohort.store import key_of
from ct3dlib.config import RecipeSpec
from ct3dlib.regions.classes import MaskedVolume
from ct3dlib.scan.axes import to_model
from ct3dlib.training.scan_items import ScanItems


class MaskItems(ScanItems):
    """Whole volumes as `ScanItems` has them, and `mask` 1 D H W uint8: the class of each voxel.

    Args:
        masked: Volumes of one recipe and shape with masks of the same kinds.
        recipe: Theirs.

    Raises:
        StoreError: The shapes of the volumes differ.
    """

    def __init__(self, masked: Sequence[MaskedVolume], recipe: RecipeSpec) -> None:
        super().__init__([one.volume for one in masked], recipe)
        self.masked = masked

    @property
    def key(self) -> str:
        """A hash of the volumes' and masks' contents and the recipe."""
        contents = [
            sorted((k, mask.sha256) for k, mask in one.masks.items()) for one in self.masked
        ]
        return key_of("mask", super().key, contents)

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return one volume and its classes; nothing is drawn."""
        classes = to_model(self.masked[index].read_classes(), self._recipe.axes)
        mask = torch.from_numpy(np.ascontiguousarray(classes))[None]
        return {**super().item(index, rng), "mask": mask}
