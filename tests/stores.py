"""Shards of stored arrays for tests of the steps that read them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from ct3dlib.cohort.store import STATUS_COLUMNS, Kind, create_store, write_node, write_table
from ct3dlib.config import RecipeSpec


def write_shard(
    status: Path, kind: Kind, arrays: Mapping[str, np.ndarray], recipe: RecipeSpec
) -> Path:
    """Write a store and its status table as a shard of the pipeline has them; return the table."""
    status.parent.mkdir(parents=True, exist_ok=True)
    store = status.with_suffix(".zarr")
    create_store(store, kind)
    ct3d = {
        "affine": np.diag([5.0, 4.0, 4.0, 1.0])[[2, 1, 0, 3]].tolist(),
        "domain": recipe.domain,
        "recipe": recipe.model_dump(mode="json", exclude={"window", "range", "axes"}),
    }
    rows = []
    for name, array in arrays.items():
        sha256 = write_node(store, f"{name}@0", array, attributes={"ct3d": ct3d})
        row = dict.fromkeys(STATUS_COLUMNS, "")
        row |= {"volume": name, "status": "stored", "node": f"{name}@0", "sha256": sha256}
        rows.append({**row, "shape": list(array.shape)})
    write_table(pd.DataFrame(rows, columns=[*STATUS_COLUMNS, "shape"]), status)
    return status


def write_bright_or_dark(
    folder: Path, counts: Mapping[str, int], recipe: RecipeSpec, *, shape: tuple[int, int, int]
) -> tuple[dict[str, list[Path]], pd.DataFrame]:
    """Write volumes of which every other one is bright; return tables by split and the catalog.

    Volumes are called by their split and number, and each is a patient's only one; its label says
    what it is.
    """
    tables, rows = {}, []
    for split, count in counts.items():
        arrays = {f"{split}{i}": np.full(shape, 500 * (i % 2), np.int16) for i in range(count)}
        tables[split] = [write_shard(folder / split / "0000.parquet", "volumes", arrays, recipe)]
        rows += [
            {"volume": name, "patient": name, "labels": None, "label": ("dark", "bright")[i % 2]}
            for i, name in enumerate(arrays)
        ]
    return tables, pd.DataFrame(rows)
