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
