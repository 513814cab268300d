"""A store of two small volumes beside its status table."""

import numpy as np
import pandas as pd
import pytest

from ct3dlib.cohort.store import create_store, write_node, write_table
from ct3dlib.config import RecipeSpec
from ct3dlib.scan.normalize import normalize
from ct3dlib.scan.volume import Volume

RECIPE = RecipeSpec(min_slices=2)


@pytest.fixture
def volumes(tmp_path):
    """Return the status table of two stored volumes and a rejected one."""
    path = tmp_path / "volumes/0000.zarr"
    path.parent.mkdir()
    create_store(path, "volumes")
    rows = []
    for i, name in enumerate(("a", "b")):
        hu = np.random.default_rng(i).integers(-1000, 1000, (7, 10, 12), dtype=np.int16)
        volume, record = normalize(Volume(hu, np.diag([3.0, 2, 1, 1])[[2, 1, 0, 3]]), RECIPE)
        ct3d = {"affine": volume.affine.tolist(), "record": record.model_dump(mode="json")}
        ct3d |= {"domain": "hu", "recipe": RECIPE.model_dump(mode="json")}
        sha256 = write_node(path, f"{name}@0", volume.array, attributes={"ct3d": ct3d})
        row = {"volume": name, "status": "stored", "reason": "", "message": "", "node": f"{name}@0"}
        row |= {"sha256": sha256, "source_sha256": f"s{i}", "shape": list(volume.shape)}
        rows.append(row)
    empty = dict.fromkeys(rows[0], "")
    bad = {"volume": "c", "status": "rejected", "reason": "NAN_VOXELS", "message": "c: NaN"}
    rows.append({**empty, **bad, "shape": None})
    write_table(pd.DataFrame(rows), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")
