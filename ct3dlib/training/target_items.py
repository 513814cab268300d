"""Whole stored volumes with what is to be learnt of them, as training items."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ct3dlib.cohort.store import StoredVolume, key_of
from ct3dlib.config import RecipeSpec
from ct3dlib.datasets.targets import Targets
from ct3dlib.training.loader import Items
from ct3dlib.training.scan_items import ScanItems


class TargetItems(Items):
    """Whole volumes as `ScanItems` and `targets` K; volumes without targets are left out.

    Args:
        volumes: Of one recipe and shape.
        targets: By volume; NaN where one of several is not known.
        recipe: Theirs.

    Raises:
        StoreError: The shapes of the volumes differ.
    """

    def __init__(
        self, volumes: Sequence[StoredVolume], targets: Targets, *, recipe: RecipeSpec
    ) -> None:
        known = [volume for volume in volumes if volume.volume in targets.values]
        self.scans = ScanItems(known, recipe)
        self.names = targets.names
        found = np.array([targets.values[volume.volume] for volume in known], dtype=np.float32)
        self.targets: Float[Tensor, "N K"] = torch.from_numpy(
            found.reshape(len(known), len(self.names))
        )

    def __len__(self) -> int:
        """Return the number of volumes with targets."""
        return len(self.scans)

    @property
    def key(self) -> str:
        """A hash of the volumes' contents and targets."""
        return key_of(self.scans.key, self.names, self.targets.tolist())

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return one volume and its targets; nothing is drawn."""
        return {**self.scans.item(index, rng), "targets": self.targets[index]}
