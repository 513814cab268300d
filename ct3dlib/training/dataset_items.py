"""Any map-style PyTorch data set as training items."""

import hashlib
from collections.abc import Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ct3dlib.cohort.store import key_of
from ct3dlib.training.loader import Items


class DatasetItems(Items):
    """The samples of a data set as the one training loop takes them.

    A sample is a tensor, or a mapping of tensors, arrays and numbers of which `volume` is the
    volume: floating point, D H W or 1 D H W, all of one shape, already in the range that the model
    sees. An item holds `volume` as 1 D H W float32 and the other entries as they are.

    What a sample draws from torch's generator is seeded by its position in the run, so that a
    resume and any number of workers give the same. Draws from elsewhere (`random`, NumPy's global
    generator) are not.

    Args:
        dataset: Has a length and an index. It goes to loader processes by pickle.
        volume: Key of the volume in a mapping.

    Raises:
        ValueError: The data set is iterable or has no length, or its first sample does not fit.
    """

    def __init__(self, dataset: Dataset[Any], *, volume: str = "volume") -> None:
        name = type(dataset).__name__
        if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
            raise ValueError(
                f"{name}: iterable, or without a length; a run is resumed by the index of its "
                f"items: give a data set with __len__ and __getitem__, or store the volumes first"
            )
        self._dataset = dataset
        self._name = name
        self._volume = volume
        self._length = len(dataset)
        self._shape: torch.Size | None = None
        self._contents = ""
        if self._length:
            first = self.item(0, np.random.default_rng(0))["volume"]
            self._shape = first.shape
            self._contents = hashlib.sha256(first.contiguous().numpy().data).hexdigest()

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._length

    @property
    def key(self) -> str:
        """A hash of the class, the number of samples and the first one: all are too many to read.

        A run resumes on a data set whose later samples were changed.
        """
        shape = list(self._shape or ())
        return key_of("dataset", self._name, self._volume, self._length, shape, self._contents)

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return one sample, its draws seeded from `rng`.

        Raises:
            ValueError: It is no tensor or mapping, or its volume is missing, of another shape than
                the first one's or not floating point.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63 - 1)))
            sample = self._dataset[index]
        where = f"{self._name}[{index}]"
        entries = self._entries(sample, where)
        values = {name: _tensor(value, f"{where}: {name!r}") for name, value in entries.items()}
        volume = self._checked(values.pop(self._volume), where)
        return {**values, "volume": volume}

    def _entries(self, sample: object, where: str) -> dict[str, object]:
        """Return a sample's entries by name."""
        if isinstance(sample, Tensor):
            return {self._volume: sample}
        if not isinstance(sample, Mapping):
            raise ValueError(
                f"{where}: a {type(sample).__name__}; return a tensor, or a mapping of tensors "
                f"that says what each is"
            )
        entries = {str(name): value for name, value in sample.items()}
        if self._volume not in entries:
            raise ValueError(
                f"{where}: no {self._volume!r}, only {', '.join(sorted(entries))}; name the volume "
                f"so, or say DatasetItems(dataset, volume=...)"
            )
        return entries

    def _checked(self, volume: Tensor, where: str) -> Tensor:
        """Return a volume as 1 D H W float32."""
        if not volume.is_floating_point():
            raise ValueError(
                f"{where}: the volume is {volume.dtype}, wanted floating point in the range that "
                f"the model sees; ct3dlib.scan.intensity.apply_window makes it from HU"
            )
        shape = tuple(volume.shape)
        if volume.ndim == 3:
            volume = volume[None]
        if volume.ndim != 4 or len(volume) != 1:
            raise ValueError(f"{where}: the volume has shape {shape}, wanted D H W or 1 D H W")
        if self._shape is not None and volume.shape != self._shape:
            raise ValueError(
                f"{where}: the volume has shape {shape}, the first one {tuple(self._shape)}; crop "
                f"or pad them to one shape"
            )
        return volume.to(torch.float32)


def _tensor(value: object, what: str) -> Tensor:
    """Return a number, array or tensor as a tensor."""
    if isinstance(value, Tensor | np.ndarray | np.generic | bool | int | float):
        return torch.as_tensor(value)
    raise ValueError(
        f"{what} is a {type(value).__name__}, which no batch holds; return tensors, arrays and "
        f"numbers"
    )
