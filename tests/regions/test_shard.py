"""A shard of regions from a shard of volumes."""

import json
import os
import shutil
from argparse import Namespace

import numpy as np
import pandas as pd
import pytest

from ct3dlib.cohort.private import RawRoot, raw_root
from ct3dlib.cohort.pseudonyms import Pseudonyms
from ct3dlib.cohort.shard import store_shard
from ct3dlib.cohort.store import read_status, stored_volumes
from ct3dlib.config import CatalogSpec, RecipeSpec, RegionsSpec
from ct3dlib.datasets import build_catalog
from ct3dlib.errors import StoreError
from ct3dlib.regions.label_map import LABEL_MAP_VERSION, REGIONS
from ct3dlib.regions.shard import segment_shard
from tests.regions.label_maps import UPRIGHT, save_labels
from tests.stores import write_shard
from workflow_scripts.store_regions import main

RECIPE = RecipeSpec(shape=(10, 18, 20), min_slices=4)
SHARDS = {"train": 1, "tune": 1, "valid": 1}
NAMES = ("Ann-Brown", "Max-Black", "Sue-Green")
SHAPE = (10, 16, 20)


def scan_of(seed):
    """Return HU of a soft block in air; D H W."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(-1000, 5, SHAPE)
    hu[:, 3:-3, 3:-3] = rng.normal(40, 5, hu[:, 3:-3, 3:-3].shape)
    return hu.astype(np.int16)


def labels_of(seed):
    """Return a heart, another for each volume, and a spine."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2 : 5 + seed, 4:8, 5:10] = 8
    labels[:, 10:13, 9:11] = 19
    return labels


class Tree:
    """Scans with label maps beside them, stored as a shard of volumes."""

    def __init__(self, base, *, pseudonymise=False):
        self.raw, self.masks, self.private = base / "raw", base / "masks", base / "private"
        self.volumes, self.status = base / "volumes/0000.parquet", base / "regions/0000.parquet"
        for seed, name in enumerate(NAMES):
            save_labels(self.raw / f"{name}/scan.nii.gz", scan_of(seed), UPRIGHT)
            save_labels(self.masks / f"{name}/scan.nii.gz", labels_of(seed), UPRIGHT)
        spec = CatalogSpec(dataset="folder", shards=SHARDS, pseudonymise=pseudonymise)
        self.catalog = build_catalog(self.raw, spec, names=Pseudonyms(self.private / "key"))
        store_shard(
            self.catalog,
            self.raw,
            recipe=RECIPE,
            code="1",
            status=self.volumes,
            private=self.private,
        )

    def segment(self, *providers, code="1", **labelmap):
        """Segment the shard and return its rows by volume."""
        section = {"folder": str(self.masks), "numbering": "regions", **labelmap}
        spec = RegionsSpec.model_validate(
            {"recipe": "a", "providers": providers or ("labelmap",), "labelmap": section}
        )
        raw = raw_root(self.raw, self.catalog, private=self.private)
        frame = segment_shard(self.volumes, spec, raw=raw, code=code, status=self.status)
        pd.testing.assert_frame_equal(frame, read_status(self.status), check_dtype=False)
        return {row["volume"]: row for row in frame.to_dict("records")}

    def written(self):
        """Return when each node of the store was written."""
        store = self.status.with_suffix(".zarr")
        return {p.parent.name: p.stat().st_mtime_ns for p in store.glob("*/zarr.json")}


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_volumes_that_are_not_in_hu_have_no_regions_and_say_so(tmp_path):
    recipe = RecipeSpec(domain="mr", percentiles=(0.5, 99.5))
    volume = {"a": np.arange(16**3, dtype=np.int16).reshape(16, 16, 16)}
    table = write_shard(tmp_path / "volumes/0000.parquet", "volumes", volume, recipe)
    spec = RegionsSpec(recipe="brats")
    raw = RawRoot(tmp_path)
    status = tmp_path / "regions/0000.parquet"
    (row,) = segment_shard(table, spec, raw=raw, code="c", status=status).to_dict("records")
    assert (row["status"], row["reason"]) == ("rejected", "WRONG_DOMAIN")
    assert "regions need HU, not the domain 'mr'" in row["message"]


def test_label_maps_become_the_stored_regions_with_their_sidecar(tree):
    rows = tree.segment()
    assert [row["status"] for row in rows.values()] == ["stored"] * 3
    assert {row["backend"] for row in rows.values()} == {"labelmap"}
    by_name = {v.volume: v for v in stored_volumes([tree.status])}
    for seed, (volume, row) in enumerate(sorted(rows.items())):
        mask = np.zeros((10, 18, 20), np.uint8)
        mask[:, 1:17] = labels_of(seed)
        np.testing.assert_array_equal(by_name[volume].read(), mask)
        ct3d = by_name[volume].array.attributes["ct3d"]
        assert (ct3d["domain"], ct3d["label_map"]) == ("regions", LABEL_MAP_VERSION)
        assert (ct3d["volume"], ct3d["skipped"]) == (volume, [])
        table = {entry["name"]: entry for entry in ct3d["regions"]}
        assert [entry["id"] for entry in ct3d["regions"]] == list(range(1, 21))
        assert json.loads(row["regions"]) == ct3d["regions"]
        heart = table["heart"]
        assert (heart["status"], heart["source"], heart["agreement"]) == ("ok", "labelmap", None)
        assert heart["voxels"] == (3 + seed) * 4 * 5
        assert heart["ml"] == pytest.approx((3 + seed) * 4 * 5 * 9 / 1000, abs=5e-4)
        assert (heart["start"], heart["stop"], heart["key_slice"]) == (2, 5 + seed, 2)
        assert (table["aorta"]["status"], table["aorta"]["source"]) == ("absent", "labelmap")
        assert table["pleura"]["source"] == "derived"


def test_nothing_is_made_twice(tree):
    rows, before = tree.segment(), tree.written()
    assert tree.segment() == rows
    assert tree.written() == before
    assert tree.segment(code="2") != rows


def test_an_edited_label_map_is_read_anew_and_the_others_are_kept(tree):
    rows, before = tree.segment(), tree.written()
    labels = labels_of(1)
    labels[labels == 8] = 10
    save_labels(tree.masks / f"{NAMES[1]}/scan.nii.gz", labels, UPRIGHT)
    again, after = tree.segment(), tree.written()
    changed = {volume for volume in rows if rows[volume]["node"] != again[volume]["node"]}
    assert len(changed) == 1
    (volume,) = changed
    assert set(np.unique(stored_of(tree, volume))) == {0, 10, 19}
    kept = {row["node"] for name, row in rows.items() if name != volume}
    assert {node: before[node] for node in kept} == {node: after[node] for node in kept}
    assert after.keys() == {row["node"] for row in again.values()}  # the old one is gone


def stored_of(tree, volume):
    return next(v for v in stored_volumes([tree.status]) if v.volume == volume).read()


def test_a_label_map_that_comes_later_takes_its_place(tree):
    path = tree.masks / f"{NAMES[0]}/scan.nii.gz"
    path.rename(tree.masks / "kept.nii.gz")
    before = tree.segment("labelmap", "classical")
    (volume,) = {v for v, row in before.items() if row["backend"] == "classical"}
    (tree.masks / "kept.nii.gz").rename(path)
    after = tree.segment("labelmap", "classical")
    changed = {v for v in before if before[v]["node"] != after[v]["node"]}
    assert changed == {volume}


def test_label_maps_may_move(tree):
    rows, before = tree.segment(), tree.written()
    moved = tree.masks.with_name("other") / "deep"
    moved.parent.mkdir()
    tree.masks.rename(moved)
    assert tree.segment(folder=str(moved)) == rows
    shutil.copytree(moved, tree.masks)  # times are copied too
    shutil.rmtree(moved)
    assert tree.segment() == rows
    assert tree.written() == before


def test_what_they_mean_is_part_of_the_key(tree):
    rows = tree.segment()
    other = tree.segment(numbering="totalsegmentator_v2")
    assert all(rows[v]["node"] != other[v]["node"] for v in rows)
    assert set(np.unique(stored_of(tree, min(rows)))) == {0, 17, 18}  # 8 adrenal, 19 duodenum


def test_a_missing_label_map_falls_back_and_says_so(tree):
    (tree.masks / f"{NAMES[2]}/scan.nii.gz").unlink()
    rows = tree.segment("labelmap", "classical")
    assert [row["status"] for row in rows.values()] == ["stored"] * 3
    for volume in stored_volumes([tree.status]):
        skipped = volume.array.attributes["ct3d"]["skipped"]
        assert json.loads(rows[volume.volume]["skipped"]) == skipped
        if rows[volume.volume]["backend"] != "classical":
            assert skipped == []
            continue
        (note,) = skipped
        assert (note["provider"], note["reason"]) == ("labelmap", "NO_LABEL_MAP")
        assert f"no label map {NAMES[2]}/scan.nii.gz, {volume.volume}.nii.gz in" in note["message"]


def test_without_a_fallback_the_volume_is_rejected_and_the_others_go_on(tree):
    (tree.masks / f"{NAMES[2]}/scan.nii.gz").unlink()
    save_labels(tree.masks / f"{NAMES[1]}/scan.nii.gz", labels_of(1)[:5], UPRIGHT)
    rows = [row for _, row in sorted(tree.segment().items())]
    assert [row["reason"] for row in rows] == ["", "LABEL_MAP_ELSEWHERE", "NO_LABEL_MAP"]
    assert [row["status"] for row in rows] == ["stored", "rejected", "rejected"]
    for row in rows[1:]:
        assert row["message"].startswith("labelmap: ")
        assert row["regions"] == row["node"] == row["backend"] == ""


def text_of(folder):
    """Return all that a folder holds, file names and tables included."""
    parts = []
    for path in sorted(folder.rglob("*")):
        parts.append(path.relative_to(folder).as_posix())
        if path.suffix == ".parquet":
            parts.append(str(pd.read_parquet(path).to_dict("records")))
        elif path.is_file():
            parts.append(path.read_bytes().decode("latin-1"))
    return "\n".join(parts)


def test_a_pseudonymised_catalog_finds_its_label_maps_and_names_nobody(tmp_path):
    tree = Tree(tmp_path, pseudonymise=True)
    (tree.masks / f"{NAMES[2]}/scan.nii.gz").unlink()
    save_labels(tree.masks / f"{NAMES[1]}/scan.nii.gz", labels_of(1)[:5], UPRIGHT)
    rows = tree.segment()
    assert sorted(row["reason"] for row in rows.values()) == [
        "",
        "LABEL_MAP_ELSEWHERE",
        "NO_LABEL_MAP",
    ]
    for volume, row in rows.items():
        if row["reason"]:
            wanted = f"labelmap: {volume}: {row['reason']}; the log says more"
            assert row["message"] == wanted
    fallen = tree.segment("labelmap", "classical")
    assert {row["status"] for row in fallen.values()} == {"stored"}
    text = text_of(tree.status.parent)
    assert "the log says more" in text
    for name in (*NAMES, "Ann", "Black", "Green", str(tree.masks)):
        assert name not in text


def test_times_of_files_do_not_matter_to_who_reads_no_label_maps(tree):
    rows = tree.segment("classical")
    os.utime(tree.masks / f"{NAMES[0]}/scan.nii.gz", ns=(0, 1))
    assert tree.segment("classical") == rows


def test_rejected_volumes_keep_their_reason(tree):
    (tree.raw / f"{NAMES[0]}/scan.nii.gz").write_bytes(b"")
    catalog = build_catalog(tree.raw, CatalogSpec(dataset="folder", shards=SHARDS))
    store_shard(catalog, tree.raw, recipe=RECIPE, code="2", status=tree.volumes)
    row = min(tree.segment().values(), key=lambda row: row["status"])
    assert (row["status"], row["reason"]) == ("rejected", "FILE_TRUNCATED")
    assert "scan.nii.gz" in row["message"]


def test_every_region_has_its_row_whoever_found_it(tree):
    for row in tree.segment("classical").values():
        assert [entry["name"] for entry in json.loads(row["regions"])] == list(REGIONS[1:])


def step(tree, *providers):
    """Run the step on a tree and return its rows."""
    section = {"folder": str(tree.masks), "numbering": "regions"}
    spec = RegionsSpec.model_validate({"recipe": "a", "providers": providers, "labelmap": section})
    paths = {"root": tree.raw, "private": tree.private, "volumes": tree.volumes}
    main(Namespace(spec=spec, code="1", status=tree.status, **paths))
    return read_status(tree.status)


def test_the_step_needs_the_private_table_only_to_find_label_maps(tmp_path):
    tree = Tree(tmp_path, pseudonymise=True)
    assert set(step(tree, "labelmap")["backend"]) == {"labelmap"}
    shutil.rmtree(tree.private)
    assert set(step(tree, "classical")["backend"]) == {"classical"}
    with pytest.raises(StoreError, match=r"names\.parquet: cannot be read"):
        step(tree, "labelmap")
