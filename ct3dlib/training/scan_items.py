"""Whole stored volumes as training items, in the numbers of the store."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ct3dlib.cohort.store import StoredVolume, key_of
from ct3dlib.config import RecipeSpec, Shape
from ct3dlib.errors import StoreError
from ct3dlib.scan.axes import swapped, to_model
from ct3dlib.training.loader import Items


class ScanItems(Items):
    """Whole volumes: `values` 1 D H W as stored, `window` 2: the values that models see.

    Two bytes a voxel go to the device; `ct3dlib.nn.intensity.windowed` makes floats of them there.

    Args:
        volumes: Of one recipe and shape; MR keeps the windows of its volumes.
        recipe: Theirs.

    Raises:
        StoreError: The shapes of the volumes differ.
    """

    def __init__(self, volumes: Sequence[StoredVolume], recipe: RecipeSpec) -> None:
        for volume in volumes:
            if volume.shape != volumes[0].shape:
                raise StoreError(
                    f"whole volumes need one shape: {volumes[0].volume} has {volumes[0].shape}, "
                    f"{volume.volume} has {volume.shape}; give their recipe a `shape`"
                )
        self.volumes = volumes
        self._recipe = recipe

    def __len__(self) -> int:
        """Return the number of volumes."""
        return len(self.volumes)

    @property
    def shape(self) -> Shape:
        """Voxels of a volume, as models see its axes.

        Raises:
            StoreError: There is no volume.
        """
        if not self.volumes:
            raise StoreError("no volume of the train split is stored; see its status tables")
        return swapped(self.volumes[0].shape, self._recipe.axes)

    @property
    def key(self) -> str:
        """A hash of the volumes' contents and the recipe."""
        contents = [volume.sha256 for volume in self.volumes]
        return key_of("scan", contents, self._recipe.model_dump(mode="json"))

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return one volume; nothing is drawn."""
        del rng
        volume = self.volumes[index]
        values = to_model(volume.read(), self._recipe.axes)
        return {
            "values": torch.from_numpy(np.ascontiguousarray(values))[None],
            "window": torch.tensor(volume.own_window or self._recipe.window),
        }
