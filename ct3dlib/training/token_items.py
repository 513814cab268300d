"""Encoded volumes as training items of the token transformer."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from ct3dlib.cohort.catalog import read_catalog
from ct3dlib.cohort.hashes import array_sha256
from ct3dlib.cohort.labels import label_names, label_vectors
from ct3dlib.cohort.store import StoredArray, key_of, read_status, records
from ct3dlib.config import Shape, SlabSpec, Split, TransformerSpec
from ct3dlib.errors import StoreError
from ct3dlib.inference.encode import read_indices
from ct3dlib.text.embeddings import read_embeddings
from ct3dlib.training.loader import Items

logger = logging.getLogger(__name__)


def split_items(tokens: Path, split: Split, catalog: Path, spec: TransformerSpec) -> "TokenItems":
    """Return the encoded volumes of a split with all that a transformer is to see of them.

    Args:
        tokens: Folder of the joined token tables.
        split: Which of them.
        catalog: The catalog of all splits.
        spec: Of the transformer.

    Raises:
        StoreError: A table is missing, grids differ, or the texts cannot be read.
    """
    return TokenItems(
        [tokens / f"{split}.parquet"],
        read_catalog(catalog),
        sources=spec.source is not None,
        slab=spec.slab,
        texts=None if spec.text is None else read_embeddings(Path(spec.text.embeddings)),
    )


@dataclass(frozen=True, eq=False)
class _Encoded:
    """An encoded volume with what the catalog and the texts say of it; None: nothing."""

    volume: str
    study: str
    array: StoredArray
    grid: Shape
    labels: list[int] | None
    text: NDArray[np.float32] | None


class TokenItems(Items):
    """Token indices of encoded volumes with the labels of their catalog rows.

    An item holds `indices` (d h w, int64), `labels` (0 or 1 for each of `names`) and
    `label_present` (bool: the catalog has labels for it). All items share one grid.

    With sources it also holds `source_indices`, `source_labels` and `source_present` of another
    volume of its study, drawn among those with other labels and the same grid.

    With slabs an item is a window of a volume's token slices, and `start` (int64) is the first of
    them, drawn uniformly; the source is seen in the same window. Volumes may differ in length;
    those shorter than a slab are left out, which the log says.

    With texts it also holds `text` (e, float32) and `text_present`.

    Args:
        tables: Joined token tables of splits, `tokens/{split}.parquet`.
        catalog: The catalog of all splits, which holds labels and studies.
        sources: Whether items have sources.
        slab: The windows; None: items are whole volumes.
        texts: What an encoder made of the text of each volume, by its id; None: no texts.

    Raises:
        StoreError: The grids of the volumes differ, or all are shorter than a slab.
    """

    def __init__(
        self,
        tables: Sequence[Path],
        catalog: pd.DataFrame,
        *,
        sources: bool = False,
        slab: SlabSpec | None = None,
        texts: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        self.names = label_names(catalog)
        self.text_size = 0 if texts is None else len(next(iter(texts.values())))
        self._slab = slab
        studies = dict(zip(catalog["volume"], catalog["study"], strict=True))
        labels = label_vectors(catalog)
        self._volumes: list[_Encoded] = []
        for table in tables:
            for row in records(read_status(table)):
                if row["status"] != "encoded":
                    continue
                volume, (depth, height, width) = row["volume"], row["shape"]
                store = table.with_suffix("") / f"{row['shard']:04d}.zarr"
                self._volumes.append(
                    _Encoded(
                        volume=volume,
                        study=studies[volume],
                        array=StoredArray(store, row["node"]),
                        grid=(depth, height, width),
                        labels=labels[volume],
                        text=(texts or {}).get(volume),
                    )
                )
        if slab is not None:
            self._leave_out_shorter(slab)
        self._check_grids()
        self._sources = self._others() if sources else None

    def __len__(self) -> int:
        """Return the number of encoded volumes."""
        return len(self._volumes)

    @property
    def key(self) -> str:
        """A hash of the volumes' indices, labels and texts, and of how they are cut."""
        contents = [
            (v.array.node, v.labels, None if v.text is None else array_sha256(v.text))
            for v in self._volumes
        ]
        return key_of(self.names, contents, self._sources, self._slab and self._slab.size)

    @property
    def grid(self) -> Shape:
        """Tokens along (D, H, W), of the first volume where slabs let them differ along D.

        Raises:
            StoreError: No volume is encoded.
        """
        if not self._volumes:
            raise StoreError("no volume of these splits is encoded; see their token tables")
        return self._volumes[0].grid

    @property
    def has_sources(self) -> bool:
        """Whether any item has a source."""
        return any(self._sources or ())

    @property
    def has_texts(self) -> bool:
        """Whether any item has a text."""
        return any(volume.text is not None for volume in self._volumes)

    @property
    def first(self) -> StoredArray:
        """The first volume's tokens, whose attributes describe its grid."""
        return self._volumes[0].array

    def indices(self, index: int) -> Int64[Tensor, "D H W"]:
        """Return all indices of one volume, however items are cut."""
        return torch.from_numpy(read_indices(self._volumes[index].array))

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return one volume's indices and labels; its source and its window are drawn."""
        volume, others = self._volumes[index], self._sources[index] if self._sources else []
        source = self._volumes[others[rng.integers(len(others))]] if others else None
        window = self._window(volume, rng)
        item = self._described(volume, window)
        item["label_present"] = torch.tensor(volume.labels is not None)
        if self._slab is not None:
            item["start"] = torch.tensor(window.start)
        if self.text_size:
            empty = np.zeros(self.text_size, np.float32)
            item["text"] = torch.tensor(empty if volume.text is None else volume.text)
            item["text_present"] = torch.tensor(volume.text is not None)
        if self._sources is not None:
            seen = self._described(source or volume, window)
            item |= {f"source_{name}": value for name, value in seen.items()}
            item["source_present"] = torch.tensor(source is not None)
        return item

    def _window(self, volume: _Encoded, rng: np.random.Generator) -> slice:
        """Return the token slices of an item, drawn where they are not all."""
        depth = volume.grid[0]
        if self._slab is None:
            return slice(0, depth)
        start = int(rng.integers(depth - self._slab.size + 1))
        return slice(start, start + self._slab.size)

    def _described(self, volume: _Encoded, window: slice) -> dict[str, Tensor]:
        """Return indices and labels of a volume, zeros where it has no labels."""
        labels = volume.labels or [0] * len(self.names)
        return {
            "indices": torch.from_numpy(read_indices(volume.array)[window]),
            "labels": torch.tensor(labels, dtype=torch.float32),
        }

    def _leave_out_shorter(self, slab: SlabSpec) -> None:
        """Go on with the volumes that hold a slab.

        Raises:
            StoreError: None does.
        """
        shorter = [v for v in self._volumes if v.grid[0] < slab.size]
        if not shorter:
            return
        found = f"{shorter[0].volume}: {shorter[0].grid[0]} token slices, a slab has {slab.size}"
        if len(shorter) == len(self._volumes):
            raise StoreError(f"{found}, no volume is longer; lower transformer.slab.size")
        self._volumes = [v for v in self._volumes if v.grid[0] >= slab.size]
        logger.warning(
            "%s; it and %d more are left out, %d volumes are used",
            found,
            len(shorter) - 1,
            len(self._volumes),
        )

    def _check_grids(self) -> None:
        """Raise unless items have one shape."""
        for volume in self._volumes:
            first, cut = self._volumes[0], 0 if self._slab is None else 1
            if volume.grid[cut:] != first.grid[cut:]:
                raise StoreError(
                    f"token grids differ: {first.volume} has {first.grid}, {volume.volume} has "
                    f"{volume.grid}; give the tokenizer's recipe a `shape`, so that every volume "
                    f"has the same"
                )

    def _others(self) -> list[list[int]]:
        """Return the volumes that each may be translated from: of its study, of other labels."""
        members: dict[str, list[int]] = defaultdict(list)
        for index, volume in enumerate(self._volumes):
            members[volume.study].append(index)
        return [
            [
                other
                for other in members[volume.study]
                if self._volumes[other].labels != volume.labels
                and self._volumes[other].grid == volume.grid
            ]
            for volume in self._volumes
        ]
