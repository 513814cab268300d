"""Classes of regions and lesions in one mask."""

from pathlib import Path

import numpy as np
import pytest

from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import RecipeSpec
from ct3dlib.errors import StoreError
from ct3dlib.regions.classes import class_names, stored_masks, with_masks
from ct3dlib.regions.label_map import REGIONS
from tests.stores import write_shard

SHAPE = (3, 4, 5)
REGION_IDS = (np.arange(60) % 21).reshape(SHAPE).astype(np.uint8)
LESION_IDS = np.zeros(SHAPE, np.uint8)
LESION_IDS[1, 1:3, 2] = 1
LESION_IDS[2, 3, 4] = 7


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, list[Path]]:
    """Return tables; volume a has both masks, b regions, c lesions, d none."""
    scan = np.zeros(SHAPE, np.int16)
    arrays = {
        "volumes": dict.fromkeys("abcd", scan),
        "regions": {"a": REGION_IDS, "b": REGION_IDS},
        "lesions": {"a": LESION_IDS, "c": LESION_IDS},
    }
    recipe = RecipeSpec()
    return {
        kind: [write_shard(tmp_path / kind / "0000.parquet", kind, named, recipe)]
        for kind, named in arrays.items()
    }


def found(tables, *kinds):
    masks = stored_masks(kinds, regions=tables["regions"], lesions=tables["lesions"])
    return {one.volume.volume: one for one in with_masks(stored_volumes(tables["volumes"]), masks)}


def test_names_are_those_of_the_ids():
    assert class_names(("lesions",)) == ("background", "lesion")
    regions = class_names(("regions",))
    assert regions[1:] == REGIONS[1:]
    assert regions[0] == "background"
    both = class_names(("regions", "lesions"))
    assert both == class_names(("lesions", "regions")) == (*regions, "lesion")
    assert len(both) == 22


def test_regions_keep_their_ids(tables):
    masked = found(tables, "regions")
    assert sorted(masked) == ["a", "b"]
    np.testing.assert_array_equal(masked["b"].read_classes(), REGION_IDS)


def test_lesions_are_one_class_and_keep_their_ids_beside(tables):
    masked = found(tables, "lesions")
    assert sorted(masked) == ["a", "c"]
    np.testing.assert_array_equal(masked["c"].read_classes(), LESION_IDS > 0)
    np.testing.assert_array_equal(masked["c"].read_lesions(), LESION_IDS)


@pytest.mark.parametrize("kinds", [("regions", "lesions"), ("lesions", "regions")], ids="-".join)
def test_a_lesion_hides_its_region(tables, kinds):
    masked = found(tables, *kinds)
    assert sorted(masked) == ["a"]
    wanted = REGION_IDS.copy()
    wanted[1, 1, 2] = wanted[1, 2, 2] = wanted[2, 3, 4] = 21
    classes = masked["a"].read_classes()
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, wanted)


@pytest.mark.parametrize("kind", ["regions", "lesions"])
def test_masks_of_another_grid_are_refused(tables, kind, tmp_path):
    odd = {"d": np.zeros((3, 4, 6), np.uint8)}
    tables[kind] = [write_shard(tmp_path / "odd" / "0000.parquet", kind, odd, RecipeSpec())]
    message = rf"d: its {kind} have shape \(3, 4, 6\), the volume \(3, 4, 5\); run the rule {kind}"
    with pytest.raises(StoreError, match=message):
        found(tables, kind)
