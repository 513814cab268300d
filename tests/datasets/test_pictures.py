"""A folder of pictures: each a volume of one slice."""

from pathlib import Path

import numpy as np
from PIL import Image

from ct3dlib.cohort.catalog import to_frame
from ct3dlib.cohort.shard import store_shard
from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import CatalogSpec, RecipeSpec
from ct3dlib.datasets import build_catalog, read_dataset

RECIPE = RecipeSpec(domain="window8", size=(1, 8, 12), window=(0, 255), range=(-1, 1), min_slices=1)


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_a_table_of_splits_names_pictures_by_path_name_or_id(tmp_path: Path) -> None:
    for name in ("p0/a.png", "p1/a.png", "p2/b.jpg", "p3/c.png"):
        _save(tmp_path / name, np.zeros((4, 4), np.uint8))
    lines = ["VolumeName,split", "p0/a.png,valid", "p1_a.png,tune", "b.jpg,train", "p3,valid"]
    (tmp_path / "splits.csv").write_text("\n".join(lines))
    spec = CatalogSpec(
        dataset="pictures",
        split_csv="splits.csv",
        shards={"train": 1, "tune": 1, "valid": 1},
        min_slices=1,
        valid=0.0,
        tune=0.0,
    )
    found = build_catalog(tmp_path, spec).set_index("volume")["split"].to_dict()
    # A folder names no picture.
    assert found == {
        "p0_a.png": "valid",
        "p1_a.png": "tune",
        "p2_b.jpg": "train",
        "p3_c.png": "train",
    }


def test_every_picture_is_a_slice_on_the_recipes_grid(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[None], 16, axis=0)
    _save(tmp_path / "raw/p1/a.png", ramp)
    _save(tmp_path / "raw/p1/a.jpg", ramp)
    _save(tmp_path / "raw/p2/b.png", np.full((8, 12, 3), (255, 0, 0), np.uint8))
    _save(tmp_path / "raw/p3/deep.png", np.zeros((4, 4), np.uint16))
    spec = CatalogSpec(dataset="pictures", shards={"train": 1, "tune": 1, "valid": 1}, min_slices=1)
    catalog = build_catalog(tmp_path / "raw", spec)
    assert catalog["volume"].tolist() == ["p1_a.jpg", "p1_a.png", "p2_b.png", "p3_deep.png"]
    assert catalog["patient"].tolist() == ["p1", "p1", "p2", "p3"]
    status = tmp_path / "store/0000.parquet"
    rows = to_frame(list(read_dataset("pictures", tmp_path / "raw"))).assign(split="train", shard=0)
    done = store_shard(rows, tmp_path / "raw", recipe=RECIPE, code="c", status=status)
    assert done.set_index("volume")["reason"].to_dict() == {
        **dict.fromkeys(("p1_a.jpg", "p1_a.png", "p2_b.png"), ""),
        "p3_deep.png": "NOT_8_BIT",
    }
    stored = {volume.volume: volume.read() for volume in stored_volumes([status])}
    assert {array.shape for array in stored.values()} == {(1, 8, 12)}
    # Twice as coarse: the mean of two neighbours; red is 0.299 of white.
    np.testing.assert_allclose(stored["p1_a.png"][0, 4], np.arange(5, 240, 20), atol=1)
    assert set(np.unique(stored["p2_b.png"])) == {76}
