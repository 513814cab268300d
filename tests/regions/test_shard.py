"""A shard of regions from a shard of volumes."""

import numpy as np

from ct3dlib.config import RecipeSpec, RegionsSpec
from ct3dlib.regions.shard import segment_shard
from tests.stores import write_shard


def test_volumes_that_are_not_in_hu_have_no_regions_and_say_so(tmp_path):
    recipe = RecipeSpec(domain="mr", percentiles=(0.5, 99.5))
    volume = {"a": np.arange(16**3, dtype=np.int16).reshape(16, 16, 16)}
    table = write_shard(tmp_path / "volumes/0000.parquet", "volumes", volume, recipe)
    spec = RegionsSpec(recipe="brats")
    (row,) = segment_shard(table, spec, code="c", status=tmp_path / "regions/0000.parquet").to_dict(
        "records"
    )
    assert (row["status"], row["reason"]) == ("rejected", "WRONG_DOMAIN")
    assert "classical regions need HU, not the domain 'mr'" in row["message"]
