"""Encoded volumes as training items of the token transformer."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ct3dlib.cohort.labels import LABELS
from ct3dlib.cohort.store import StoredArray, key_of, read_status, records
from ct3dlib.config import Shape
from ct3dlib.errors import StoreError
from ct3dlib.inference.encode import read_indices
from ct3dlib.training.loader import Items


def label_names(catalog: pd.DataFrame) -> tuple[str, ...]:
    """Return what a catalog says of its volumes: findings, or else classes; none where neither.

    Findings are those of CT-RATE, of which a volume has any number; of the classes (`label`: an
    organ, a modality) it has one.
    """
    if catalog["labels"].notna().to_numpy().any():
        return LABELS
    return tuple(sorted(catalog["label"].dropna().unique()))


class TokenItems(Items):
    """Token indices of encoded volumes with the labels of their catalog rows.

    An item holds `indices` (d h w, int64), `labels` (0 or 1 for each of `names`) and
    `label_present` (bool: the catalog has labels for it). All items share one grid.

    With sources it also holds `source_indices`, `source_labels` and `source_present` of another
    volume of its study, drawn among those with other labels.

    Args:
        tables: Joined token tables of splits, `tokens/{split}.parquet`.
        catalog: The catalog of all splits, which holds labels and studies.
        sources: Whether items have sources.

    Raises:
        StoreError: The grids of the volumes differ.
    """

    def __init__(
        self, tables: Sequence[Path], catalog: pd.DataFrame, *, sources: bool = False
    ) -> None:
        self.names = label_names(catalog)
        rows = {row["volume"]: row for row in records(catalog)}
        labels = {name: self._vector(row) for name, row in rows.items()}
        studies: list[str] = []
        self._arrays: list[StoredArray] = []
        self._labels: list[list[int] | None] = []
        grids: dict[Shape, str] = {}
        for table in tables:
            for row in records(read_status(table)):
                if row["status"] != "encoded":
                    continue
                store = table.with_suffix("") / f"{row['shard']:04d}.zarr"
                self._arrays.append(StoredArray(store, row["node"]))
                self._labels.append(labels[row["volume"]])
                studies.append(rows[row["volume"]]["study"])
                depth, height, width = row["shape"]
                grids.setdefault((depth, height, width), row["volume"])
        if len(grids) > 1:
            (one, a), (other, b) = list(grids.items())[:2]
            raise StoreError(
                f"token grids differ: {a} has {one}, {b} has {other}; give the tokenizer's recipe "
                f"a `shape`, so that every volume has the same"
            )
        self._grid = next(iter(grids), None)
        self._sources = self._others(studies) if sources else None

    def __len__(self) -> int:
        """Return the number of encoded volumes."""
        return len(self._arrays)

    @property
    def key(self) -> str:
        """A hash of the volumes' indices and labels."""
        contents = [(a.node, labels) for a, labels in zip(self._arrays, self._labels, strict=True)]
        return key_of(self.names, contents, self._sources)

    @property
    def grid(self) -> Shape:
        """Tokens along (D, H, W).

        Raises:
            StoreError: No volume is encoded.
        """
        if self._grid is None:
            raise StoreError("no volume of these splits is encoded; see their token tables")
        return self._grid

    @property
    def has_sources(self) -> bool:
        """Whether any item has a source."""
        return any(self._sources or ())

    @property
    def first(self) -> StoredArray:
        """The first volume's tokens, whose attributes describe the grid of all."""
        return self._arrays[0]

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return one volume's indices and labels; its source is drawn where there are several."""
        item = self._described(index)
        item["label_present"] = torch.tensor(self._labels[index] is not None)
        if self._sources is None:
            return item
        others = self._sources[index]
        source = self._described(others[rng.integers(len(others))] if others else index)
        return {
            **item,
            **{f"source_{name}": value for name, value in source.items()},
            "source_present": torch.tensor(bool(others)),
        }

    def _described(self, index: int) -> dict[str, Tensor]:
        """Return indices and labels of a volume, zeros where it has no labels."""
        labels = self._labels[index] or [0] * len(self.names)
        return {
            "indices": torch.from_numpy(read_indices(self._arrays[index])),
            "labels": torch.tensor(labels, dtype=torch.float32),
        }

    def _others(self, studies: Sequence[str]) -> list[list[int]]:
        """Return the volumes that each may be translated from: of its study, of other labels."""
        members: dict[str, list[int]] = defaultdict(list)
        for index, study in enumerate(studies):
            members[study].append(index)
        return [
            [other for other in members[study] if self._labels[other] != self._labels[index]]
            for index, study in enumerate(studies)
        ]

    def _vector(self, row: Mapping[str, Any]) -> list[int] | None:
        """Return the labels of a catalog row, None where it has none."""
        if self.names == LABELS:
            return row["labels"]
        return None if row["label"] is None else [int(row["label"] == name) for name in self.names]
