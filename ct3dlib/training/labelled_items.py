"""Whole stored volumes with the labels of their catalog rows, as training items."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ct3dlib.cohort.labels import label_names, label_vectors
from ct3dlib.cohort.store import StoredVolume, key_of
from ct3dlib.config import RecipeSpec
from ct3dlib.errors import StoreError
from ct3dlib.training.items import WholeItems
from ct3dlib.training.loader import Items

# A label that next to no volume has must not outweigh all others.
_LARGEST_WEIGHT = 20.0


class LabelledItems(Items):
    """Whole volumes that have labels: `volume` 1 D H W in the recipe's range, `labels` L.

    Axes are those of the store: labels do not depend on them.

    Args:
        volumes: Of one recipe and shape; those without labels are left out.
        catalog: Of all splits.
        recipe: Theirs.

    Raises:
        StoreError: The shapes of the volumes differ.
    """

    def __init__(
        self, volumes: Sequence[StoredVolume], catalog: pd.DataFrame, *, recipe: RecipeSpec
    ) -> None:
        self.names = label_names(catalog)
        vectors = label_vectors(catalog)
        labelled = [v for v in volumes if vectors[v.volume] is not None]
        try:
            self.volumes = WholeItems(labelled, window=recipe.window, range=recipe.range)
        except ValueError as error:
            raise StoreError(f"the classifier's {error}, or set classifier to null") from error
        found = [vectors[v.volume] for v in labelled]
        self.labels: Float[Tensor, "N L"] = torch.tensor(found, dtype=torch.float32).reshape(
            len(found), len(self.names)
        )

    def __len__(self) -> int:
        """Return the number of volumes with labels."""
        return len(self.volumes)

    @property
    def key(self) -> str:
        """A hash of the volumes' contents and labels."""
        return key_of(self.volumes.key, self.names, self.labels.tolist())

    @property
    def positive_weights(self) -> Float[Tensor, " L"]:
        """Absent over present volumes of each label, at most 20; 1 where no volume has it."""
        present = self.labels.sum(0)
        weights = (len(self.labels) - present) / present.clamp_min(1)
        return torch.where(present > 0, weights.clamp(1 / _LARGEST_WEIGHT, _LARGEST_WEIGHT), 1.0)

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return one volume and its labels; nothing is drawn."""
        return {**self.volumes.item(index, rng), "labels": self.labels[index]}
