"""Volumes with the class of each voxel."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import RecipeSpec
from ct3dlib.errors import StoreError
from ct3dlib.regions.classes import with_masks
from ct3dlib.training.mask_items import MaskItems
from tests.stores import write_shard

SHAPE = (3, 4, 5)
PLACES = np.arange(60).reshape(SHAPE)


def items(folder: Path, recipe: RecipeSpec, *, shift: int = 0, shape=SHAPE) -> MaskItems:
    arrays = {"a": PLACES.astype(np.int16), "b": np.zeros(shape, np.int16)}
    masks = {"a": ((PLACES + shift) % 21).astype(np.uint8), "b": np.zeros(shape, np.uint8)}
    volumes = write_shard(folder / "volumes.parquet", "volumes", arrays, recipe)
    regions = write_shard(folder / "regions.parquet", "regions", masks, recipe)
    masked = with_masks(stored_volumes([volumes]), {"regions": stored_volumes([regions])})
    return MaskItems(masked, recipe)


@pytest.mark.parametrize("axes", ["dhw", "dwh"])
def test_a_mask_lies_on_the_voxels_as_models_see_them(tmp_path, axes):
    found = items(tmp_path, RecipeSpec(window=(-5, 7), axes=axes))
    assert len(found) == 2
    item = found.item(0, np.random.default_rng(0))
    assert item["values"].shape == item["mask"].shape == (1, *found.shape)
    assert found.shape == ((3, 4, 5) if axes == "dhw" else (3, 5, 4))
    assert item["mask"].dtype == torch.uint8
    assert item["mask"].is_contiguous()
    assert torch.equal(item["mask"], (item["values"] % 21).byte())
    assert item["window"].tolist() == [-5, 7]


def test_the_key_tells_masks_and_recipes_apart(tmp_path):
    recipe = RecipeSpec()
    made = items(tmp_path / "a", recipe)
    assert made.key == items(tmp_path / "b", recipe).key
    assert made.key != items(tmp_path / "c", recipe, shift=1).key
    assert made.key != items(tmp_path / "d", RecipeSpec(window=(0, 1))).key


def test_volumes_of_two_shapes_are_refused(tmp_path):
    with pytest.raises(StoreError, match="whole volumes need one shape"):
        items(tmp_path, RecipeSpec(), shape=(3, 4, 6))
