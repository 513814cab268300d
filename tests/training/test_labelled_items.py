from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import RecipeSpec
from ct3dlib.errors import StoreError
from ct3dlib.training.labelled_items import LabelledItems
from tests.stores import write_shard

RECIPE = RecipeSpec(window=(-1000, 1000), range=(0, 1))
CLASSES = {"a": "organ", "b": "vessel", "c": None, "d": "organ"}


@pytest.fixture
def items(tmp_path: Path) -> LabelledItems:
    volumes = {name: np.full((2, 3, 4), 100 * i, np.int16) for i, name in enumerate(CLASSES)}
    table = write_shard(tmp_path / "train.parquet", "volumes", volumes, RECIPE)
    catalog = pd.DataFrame({"volume": [*CLASSES], "labels": None, "label": [*CLASSES.values()]})
    return LabelledItems(stored_volumes([table]), catalog, recipe=RECIPE)


def test_volumes_without_labels_are_left_out(items: LabelledItems):
    assert items.names == ("organ", "vessel")
    assert len(items) == 3
    rng = np.random.default_rng(0)
    found = [items.item(i, rng) for i in range(3)]
    assert [i["labels"].tolist() for i in found] == [[1, 0], [0, 1], [1, 0]]
    assert [round(i["volume"].unique().item(), 3) for i in found] == [0.5, 0.55, 0.65]
    assert found[0]["volume"].shape == (1, 2, 3, 4)


def test_a_present_label_counts_as_much_as_the_absent_ones(items: LabelledItems):
    torch.testing.assert_close(items.positive_weights, torch.tensor([1 / 2, 2 / 1]))
    items.labels = torch.zeros(50, 2)
    items.labels[0, 1] = 1
    assert items.positive_weights.tolist() == [1.0, 20.0]


def test_other_labels_are_other_items(items: LabelledItems):
    before = items.key
    items.labels = 1 - items.labels
    assert items.key != before


def test_volumes_of_several_shapes_are_refused(tmp_path: Path):
    volumes = {"a": np.zeros((2, 3, 4), np.int16), "b": np.zeros((2, 3, 5), np.int16)}
    table = write_shard(tmp_path / "train.parquet", "volumes", volumes, RECIPE)
    catalog = pd.DataFrame({"volume": ["a", "b"], "labels": None, "label": ["x", "y"]})
    with pytest.raises(StoreError, match=r"need one shape: .* `shape`, or set classifier to null"):
        LabelledItems(stored_volumes([table]), catalog, recipe=RECIPE)
