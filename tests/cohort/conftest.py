"""A store of one volume beside its status table."""

import numpy as np
import pandas as pd
import pytest

from ct3dlib.cohort.store import create_store, write_node, write_table


@pytest.fixture
def array():
    return np.random.default_rng(0).integers(-1024, 3071, (33, 70, 65), dtype=np.int16)


@pytest.fixture
def store(tmp_path, array):
    path = tmp_path / "0000.zarr"
    create_store(path, "volumes")
    sha256 = write_node(path, "a@1", array, attributes={"ct3d": {"affine": np.eye(4).tolist()}})
    row = {"volume": "a", "status": "stored", "reason": "", "message": "", "node": "a@1"}
    frame = pd.DataFrame([{**row, "sha256": sha256, "shape": list(array.shape)}])
    write_table(frame, tmp_path / "0000.parquet")
    return path
