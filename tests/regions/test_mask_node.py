"""A mask in a store, and what it says of the volume that it is of."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ct3dlib.cohort.hashes import array_sha256
from ct3dlib.cohort.store import create_store, stored_volumes, write_node, write_table
from ct3dlib.cohort.stored_array import StoredArray
from ct3dlib.regions.mask_node import write_mask_node

AFFINE = [[0.0, 0.1, 1.5, -9.0], [0.1, 2.0, 0.0, 7.0], [3.0, 0.0, 0.0, 5.0], [0.0, 0.0, 0.0, 1.0]]
OME = {"version": "0.5", "multiscales": []}


def volume_of(folder: Path, **ct3d: object):
    """Return a stored volume with these attributes."""
    create_store(folder / "0000.zarr", "volumes")
    array = np.zeros((2, 3, 4), np.int16)
    attributes = {"ome": OME, "ct3d": {"affine": AFFINE, "domain": "hu", **ct3d}}
    sha256 = write_node(folder / "0000.zarr", "a@1", array, attributes=attributes)
    row = {"volume": "a", "status": "stored", "reason": "", "message": "", "node": "a@1"}
    table = pd.DataFrame([{**row, "sha256": sha256, "shape": [2, 3, 4]}])
    write_table(table, folder / "0000.parquet")
    return stored_volumes([folder / "0000.parquet"])[0]


@pytest.mark.parametrize("record", [{"lost": 0.5}, None], ids=["record", "none"])
def test_a_mask_says_what_it_is_of_and_where(tmp_path: Path, record: dict[str, float] | None):
    volume = volume_of(tmp_path, source=["x/a.nii.gz"], **({"record": record} if record else {}))
    mask = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    store = tmp_path / "masks.zarr"
    create_store(store, "lesions")
    facts = {"lesions": 23, "ml": 0.5}
    write_mask_node(store, "a@2", mask, volume=volume, kind="lesions", facts=facts)
    found = StoredArray(store, "a@2")
    np.testing.assert_array_equal(found.read(), mask)
    assert found.attributes["ome"] == OME
    ct3d = {
        "volume": "a",
        "volume_sha256": volume.sha256,
        "source": ["x/a.nii.gz"],
        "affine": AFFINE,
        "domain": "lesions",
        "record": record,
        **facts,
        "sha256": array_sha256(mask),
        "attributes_sha256": found.attributes["ct3d"]["attributes_sha256"],
    }
    # In this order: the file's bytes are the same from run to run.
    written = json.loads((found.place / "zarr.json").read_text())["attributes"]["ct3d"]
    assert list(written.items()) == list(ct3d.items())
    assert found.damage() == ""
