"""Encoded volumes as items, with what the catalog says of them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import chisquare

from ct3dlib.cohort.labels import LABELS, label_names
from ct3dlib.cohort.packing import pack_indices
from ct3dlib.cohort.store import create_store, write_node, write_table
from ct3dlib.config import SlabSpec
from ct3dlib.errors import StoreError
from ct3dlib.training.token_items import TokenItems

RNG = np.random.default_rng(0)


def _tokens(folder: Path, grids: dict[str, tuple[int, int, int]]) -> tuple[Path, dict]:
    """Write a joined token table of one shard; return it with the indices by volume."""
    store = folder / "train/0000.zarr"
    store.parent.mkdir(parents=True)
    create_store(store, "tokens")
    rows, indices = [], {}
    for name, grid in grids.items():
        indices[name] = RNG.integers(0, 512, grid)
        ct3d = {"volume": name, "bits": 9, "shape": list(grid)}
        packed = pack_indices(indices[name], 9)
        sha256 = write_node(store, f"{name}@0", packed, attributes={"ct3d": ct3d})
        row = {"volume": name, "status": "encoded", "reason": "", "message": "", "shard": 0}
        rows.append({**row, "node": f"{name}@0", "sha256": sha256, "shape": list(grid)})
    rejected = {
        "volume": "z",
        "status": "rejected",
        "reason": "NAN_VOXELS",
        "message": "",
        "node": "",
    }
    rows.append({**rejected, "shard": 0, "sha256": "", "shape": None})
    write_table(pd.DataFrame(rows), folder / "train.parquet")
    return folder / "train.parquet", indices


def _catalog(labels: dict[str, object], classes: dict[str, str | None]) -> pd.DataFrame:
    names = sorted({*labels, *classes})
    columns = {
        "volume": names,
        "study": [name[0] for name in names],
        "labels": pd.Series([labels.get(name) for name in names], dtype="object"),
        "label": pd.Series([classes.get(name) for name in names], dtype="object"),
    }
    return pd.DataFrame(columns)


def test_items_hold_indices_and_findings(tmp_path):
    table, indices = _tokens(tmp_path, {"a": (2, 3, 4), "b": (2, 3, 4)})
    findings = [0] * 17 + [1]
    items = TokenItems([table], _catalog({"a": findings, "b": None, "z": None}, {}))
    assert len(items) == 2
    assert (items.grid, items.names) == ((2, 3, 4), LABELS)
    first, second = (items.item(i, RNG) for i in range(2))
    np.testing.assert_array_equal(first["indices"].numpy(), indices["a"])
    assert first["labels"].tolist() == findings
    assert bool(first["label_present"])
    assert second["labels"].tolist() == [0] * 18
    assert not bool(second["label_present"])


def test_classes_are_one_of_those_of_the_whole_catalog(tmp_path):
    table, _ = _tokens(tmp_path, {"a": (1, 1, 2), "b": (1, 1, 2)})
    # Of another split is a class that these tables do not hold.
    classes = {"a": "t2", "b": None, "c": "flair", "z": "t1"}
    items = TokenItems([table], _catalog({}, classes))
    assert items.names == ("flair", "t1", "t2")
    assert items.item(0, RNG)["labels"].tolist() == [0, 0, 1]
    assert not bool(items.item(1, RNG)["label_present"])


def test_a_catalog_that_says_nothing_gives_no_labels(tmp_path):
    table, _ = _tokens(tmp_path, {"a": (1, 1, 2)})
    catalog = _catalog({"a": None, "z": None}, {})
    assert label_names(catalog) == ()
    item = TokenItems([table], catalog).item(0, RNG)
    assert item["labels"].shape == (0,)
    assert item["labels"].dtype == torch.float32


def test_other_labels_are_another_training(tmp_path):
    table, _ = _tokens(tmp_path, {"a": (1, 1, 2)})
    keys = {
        TokenItems([table], _catalog({}, {"a": name, "z": "other"})).key for name in ("x", "y", "x")
    }
    assert len(keys) == 2


def test_grids_that_differ_are_named(tmp_path):
    table, _ = _tokens(tmp_path, {"a": (1, 1, 2), "b": (1, 2, 2)})
    catalog = _catalog({"a": None, "b": None, "z": None}, {})
    with pytest.raises(
        StoreError, match=r"token grids differ: a has \(1, 1, 2\), b has \(1, 2, 2\)"
    ):
        TokenItems([table], catalog)


def test_a_source_is_another_volume_of_the_study_with_another_label(tmp_path):
    names = ("p1", "p2", "p3", "q1", "r1", "r2")
    table, indices = _tokens(tmp_path, dict.fromkeys(names, (1, 2, 2)))
    classes = {"p1": "t1", "p2": "t2", "p3": "flair", "q1": "t1", "r1": "t1", "r2": "t1", "z": None}
    items = TokenItems([table], _catalog({}, classes), sources=True)
    assert items.has_sources
    seen = set()
    for draw in range(20):
        item = items.item(0, np.random.default_rng(draw))
        assert bool(item["source_present"])
        (found,) = (n for n in names if (indices[n] == item["source_indices"].numpy()).all())
        assert item["source_labels"].tolist() == [
            float(classes[found] == name) for name in ("flair", "t1", "t2")
        ]
        seen.add(found)
    assert seen == {"p2", "p3"}
    for lonely in (3, 4, 5):  # one volume in its study, and two of one label
        assert not bool(items.item(lonely, RNG)["source_present"])
    assert not TokenItems([table], _catalog({}, classes)).has_sources
    assert "source_indices" not in TokenItems([table], _catalog({}, classes)).item(0, RNG)


SLAB = SlabSpec(size=3, context=1)


def test_a_slab_starts_anywhere_with_the_same_chance(tmp_path):
    table, indices = _tokens(tmp_path, {"a": (6, 1, 2), "b": (4, 1, 2)})
    items = TokenItems([table], _catalog({"a": None, "b": None, "z": None}, {}), slab=SLAB)
    assert items.grid == (6, 1, 2)
    starts = []
    for draw in range(400):
        item = items.item(0, np.random.default_rng(draw))
        start = int(item["start"])
        np.testing.assert_array_equal(item["indices"].numpy(), indices["a"][start : start + 3])
        starts.append(start)
    assert item["start"].dtype == torch.int64
    assert chisquare(np.bincount(starts, minlength=4)).pvalue > 0.01
    shorter = [int(items.item(1, np.random.default_rng(draw))["start"]) for draw in range(20)]
    assert set(shorter) == {0, 1}


def test_a_source_is_seen_in_the_window_of_its_item(tmp_path):
    table, indices = _tokens(tmp_path, dict.fromkeys(("p1", "p2"), (5, 1, 2)) | {"p3": (4, 1, 2)})
    classes = {"p1": "t1", "p2": "t2", "p3": "flair", "z": None}
    items = TokenItems([table], _catalog({}, classes), sources=True, slab=SLAB)
    for draw in range(10):
        item = items.item(0, np.random.default_rng(draw))
        start = int(item["start"])
        # p3 is of another length: no other grid is translated.
        wanted = indices["p2"][start : start + 3]
        np.testing.assert_array_equal(item["source_indices"].numpy(), wanted)
    assert not bool(items.item(2, RNG)["source_present"])


def test_volumes_that_are_shorter_than_a_slab_or_differ_in_plane_are_named(tmp_path, caplog):
    table, _ = _tokens(tmp_path, {"a": (6, 1, 2), "b": (2, 1, 2)})
    catalog = _catalog({"a": None, "b": None, "z": None}, {})
    items = TokenItems([table], catalog, slab=SLAB)
    assert len(items) == 1
    assert items.grid == (6, 1, 2)
    assert "b: 2 token slices, a slab has 3; it and 0 more are left out, 1 volumes" in caplog.text
    longer = SlabSpec(size=7, context=0)
    with pytest.raises(
        StoreError,
        match=r"a: 6 token slices, a slab has 7, no volume is longer; lower transformer.slab.size",
    ):
        TokenItems([table], catalog, slab=longer)
    table, _ = _tokens(tmp_path / "other", {"a": (6, 1, 2), "b": (6, 2, 2)})
    with pytest.raises(StoreError, match=r"a has \(6, 1, 2\), b has \(6, 2, 2\)"):
        TokenItems([table], catalog, slab=SLAB)


def test_texts_belong_to_volumes_and_some_have_none(tmp_path):
    table, _ = _tokens(tmp_path, {"a": (1, 1, 2), "b": (1, 1, 2)})
    catalog = _catalog({"a": None, "b": None, "z": None}, {})
    vector = np.array([1, -2, 3], np.float32)
    items = TokenItems([table], catalog, texts={"a": vector, "unknown": 2 * vector})
    assert items.text_size == 3
    assert items.has_texts
    first, second = (items.item(i, RNG) for i in range(2))
    assert first["text"].tolist() == [1, -2, 3]
    assert bool(first["text_present"])
    assert second["text"].tolist() == [0, 0, 0]
    assert not bool(second["text_present"])
    assert not TokenItems([table], catalog, texts={"unknown": vector}).has_texts
    assert "text" not in TokenItems([table], catalog).item(0, RNG)


def test_other_texts_or_slabs_are_another_training(tmp_path):
    table, _ = _tokens(tmp_path, {"a": (6, 1, 2)})
    catalog = _catalog({"a": None, "z": None}, {})
    vector = np.array([1, 2], np.float32)
    keys = [
        TokenItems([table], catalog, slab=slab, texts=texts).key
        for slab in (None, SLAB, SlabSpec(size=4, context=1))
        for texts in (None, {"a": vector}, {"a": vector + 1}, {"b": vector})
    ]
    # A text of another volume is no text, yet gives the model a size.
    assert len(set(keys)) == 9
    assert keys[0] == keys[3] == TokenItems([table], catalog).key
