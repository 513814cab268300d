"""Findings drawn on key slices, from pictures to a store and to training items."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ct3dlib.cohort.private import RawRoot
from ct3dlib.cohort.shard import store_shard
from ct3dlib.cohort.store import StoredVolume, stored_volumes
from ct3dlib.cohort.studies import group_studies
from ct3dlib.config import CatalogSpec, RecipeSpec
from ct3dlib.datasets import build_catalog
from ct3dlib.errors import StoreError
from ct3dlib.regions.classes import with_masks
from ct3dlib.regions.lesions import store_lesions
from ct3dlib.scan.slices import write_mask
from ct3dlib.training.pair_items import PairItems
from tests.training.test_pair_items import text_of

PIXELS = (60, 40)
RECIPE = RecipeSpec(
    domain="window8", slices=4, size=(4, 30, 30), letterbox=True, range=(0, 1), min_slices=1
)
SPEC = CatalogSpec(dataset="omniabnorm", shards={"train": 1, "tune": 1, "valid": 1})


def disc(row: int, column: int, radius: int) -> np.ndarray:
    rows, columns = np.indices(PIXELS)
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


# Two findings that overlap: what the first has, the second does not get.
FIRST, SECOND = disc(20, 20, 9), disc(32, 22, 9)


class Cases:
    """Cases a (all neighbours), b (none but the one before it) and c (alone), stored."""

    def __init__(self, base: Path) -> None:
        raw, entries = base / "raw", {}
        for name, numbers in {"1_a": range(-4, 5), "2_b": (-1, 0), "3_c": (0,)}.items():
            for number in numbers:
                path = raw / f"image/{name}/{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full(PIXELS, 120 + 20 * number, np.uint8)).save(path, quality=95)
            write_mask(raw / f"mask/{name}/7.jpeg", FIRST)
            write_mask(raw / f"mask/{name}/3.jpeg", SECOND)
            drawn = [{"id": 7, "description": "Cyst."}, {"id": 3, "description": "Stone."}]
            entries[name] = {"image": name, "mask": name, "abnormality": drawn}
        (raw / "cases.json").write_text(json.dumps(entries))
        self.raw, self.catalog = raw, build_catalog(raw, SPEC)
        self.volumes, self.status = base / "volumes/0.parquet", base / "lesions/0.parquet"
        store_shard(self.catalog, raw, recipe=RECIPE, code="1", status=self.volumes)

    def lesions(self) -> pd.DataFrame:
        raw = RawRoot(self.raw)
        return store_lesions(self.volumes, self.catalog, raw=raw, code="1", status=self.status)

    def stored(self) -> dict[str, StoredVolume]:
        return {one.volume: one for one in stored_volumes([self.status])}


@pytest.fixture
def cases(tmp_path: Path) -> Cases:
    return Cases(tmp_path)


def test_only_the_key_slice_says_what_is_a_lesion(cases: Cases) -> None:
    frame = cases.lesions()
    assert frame["status"].tolist() == ["stored"] * 3
    assert frame["lesions"].tolist() == [2] * 3
    found = {name: one.read_checked() for name, one in cases.stored().items()}
    # Neighbours of the key slice are unknown, but where it stands in for them.
    assert [(found["1_a"][d, 15, 15], found["2_b"][d, 15, 15]) for d in range(4)] == [
        *((255, 255), (2, 2), (255, 2), (255, 2)),
    ]
    assert (found["3_c"] == found["3_c"][1]).all()
    for mask in found.values():
        # 60 x 40 pixels become 30 x 20 of 30 x 30; what is padded holds nothing.
        assert mask.shape == (4, 30, 30)
        assert not mask[:, :, :5].any()
        assert not mask[:, :, 25:].any()
        # Each voxel takes one of its four pixels: the disc is known to a pixel's width.
        for number, wanted in ((1, FIRST), (2, SECOND & ~FIRST)):
            drawn = mask[1, :, 5:25] == number
            candidates = wanted.reshape(30, 2, 20, 2).sum(axis=(1, 3))
            assert (drawn[candidates == 4]).all()
            assert not (drawn[candidates == 0]).any()


def test_masks_of_the_pictures_own_grid_are_what_was_drawn(cases: Cases) -> None:
    cases.catalog = cases.catalog.iloc[2:]
    whole = RecipeSpec(domain="window8", slices=4, min_slices=1)
    store_shard(cases.catalog, cases.raw, recipe=whole, code="1", status=cases.volumes)
    cases.lesions()
    mask = cases.stored()["3_c"].read()
    assert mask.shape == (4, *PIXELS)
    for number, wanted in ((1, FIRST), (2, SECOND & ~FIRST)):
        found = torch.from_numpy(mask[1] == number)
        assert 2 * (found.numpy() & wanted).sum() / (found.sum() + wanted.sum()) >= 0.99


def test_a_mask_of_another_shape_is_rejected(cases: Cases) -> None:
    write_mask(cases.raw / "mask/2_b/3.jpeg", FIRST.T)
    frame = cases.lesions()
    assert frame["status"].tolist() == ["stored", "rejected", "stored"]
    assert frame["reason"][1] == "LABEL_MAP_ELSEWHERE"
    wanted = "mask/2_b/3.jpeg: shape (40, 60) is not that of its slice, (60, 40); give the mask"
    assert frame["message"][1].startswith(wanted)


def test_a_segmenter_does_not_learn_from_one_slice(cases: Cases) -> None:
    cases.lesions()
    volumes = stored_volumes([cases.volumes])
    masked = with_masks(volumes, {"lesions": stored_volumes([cases.status])})
    with pytest.raises(StoreError, match="lesions of the key slice alone; leave lesions out of"):
        masked[0].read_classes()


def test_items_of_slices_say_which_are_real_and_what_is_padded(cases: Cases) -> None:
    studies = group_studies(stored_volumes([cases.volumes]), cases.catalog)
    texts = {study.name: text_of(1) for study in studies}
    items = PairItems(studies, texts, recipe=RECIPE)
    found = [items.item(i, np.random.default_rng(0)) for i in range(3)]
    assert items.shape == (4, 30, 30)
    assert [item["z_real"].tolist() for item in found] == [
        [True, True, True, True],
        [True, True, False, False],
        [False, True, False, False],
    ]
    greys = [item["values"][0, :, 15, 15].tolist() for item in found]
    wanted = [[100, 120, 140, 160], [100, 120, 120, 120], [120] * 4]
    assert np.abs(np.subtract(greys, wanted)).max() <= 2
    for item in found:
        assert item["values"].dtype == torch.uint8
        assert item["window"].tolist() == [0, 255]
        valid = torch.zeros(1, 4, 30, 30, dtype=torch.bool)
        valid[..., 5:25] = True
        assert torch.equal(item["valid"], valid)
        assert not item["values"][~valid].any()
