"""A shard of lesion masks from a shard of volumes and the masks that a catalog names."""

import json
from argparse import Namespace

import numpy as np
import pandas as pd
import pytest

from ct3dlib.cohort.catalog import Row, read_catalog, to_frame, write_catalog
from ct3dlib.cohort.private import RawRoot
from ct3dlib.cohort.pseudonyms import Pseudonyms
from ct3dlib.cohort.shard import store_shard
from ct3dlib.cohort.store import read_status, stored_volumes
from ct3dlib.cohort.verify import find_tables, verify_table
from ct3dlib.config import CatalogSpec, PhantomSpec, RecipeSpec
from ct3dlib.datasets import build_catalog
from ct3dlib.datasets.phantom import write_cohort
from ct3dlib.errors import DatasetError, StoreError
from ct3dlib.regions.lesions import store_lesions
from ct3dlib.scan.slices import write_mask
from tests.regions.label_maps import OBLIQUE, UPRIGHT, save_labels
from tests.stores import write_shard
from workflow_scripts.store_lesions import main

SHARDS = {"train": 1, "tune": 1, "valid": 1}
SHAPE = (10, 15, 20)
NATIVE = RecipeSpec(min_slices=4)
FINE = RecipeSpec(spacing=(3.75, 3.0, 1.875), min_slices=4)  # 8 x 10 x 16 voxels
# 3 x 5 x 5 voxels of 10 x 6 x 6 mm: 10 / 3, 3 and 4 of the scan's along each axis.
COARSE = RecipeSpec(spacing=(9.0, 6.0, 6.0), min_slices=3)


def scan_of(seed):
    """Return HU of a soft block in air; D H W."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(-1000, 5, SHAPE)
    hu[:, 3:-3, 3:-3] = rng.normal(40, 5, hu[:, 3:-3, 3:-3].shape)
    return hu.astype(np.int16)


def mask_of(**boxes):
    """Return a mask with a box for each lesion, called `l` and its id."""
    mask = np.zeros(SHAPE, np.uint8)
    for name, box in boxes.items():
        mask[box] = int(name[1:])
    return mask


class Tree:
    """Scans a, b, ... and their masks, stored as a shard of volumes."""

    def __init__(self, base, *masks, recipe=NATIVE, affine=UPRIGHT):
        self.raw = base / "raw"
        self.volumes, self.status = base / "volumes/0000.parquet", base / "lesions/0000.parquet"
        rows = []
        for seed, mask in enumerate(masks):
            name = "abcdefghijk"[seed]
            save_labels(self.raw / f"{name}.nii.gz", scan_of(seed), affine)
            if mask is not None:
                save_labels(self.raw / f"masks/{name}.nii.gz", mask, affine)
            rows.append(
                Row(
                    volume=name, dataset="folder", patient=name, study=name, split="train",
                    shard=0, kind="nifti", sources=(f"{name}.nii.gz",), size=1, mtime_ns=1,
                    lesion_mask=None if mask is None else f"masks/{name}.nii.gz",
                )
            )  # fmt: skip
        self.catalog = to_frame(rows)
        store_shard(self.catalog, self.raw, recipe=recipe, code="1", status=self.volumes)

    def store(self, code="1"):
        """Store the masks and return the rows by volume."""
        raw = RawRoot(self.raw)
        frame = store_lesions(self.volumes, self.catalog, raw=raw, code=code, status=self.status)
        pd.testing.assert_frame_equal(frame, read_status(self.status), check_dtype=False)
        assert frame["volume"].tolist() == read_status(self.volumes)["volume"].tolist()
        return {row["volume"]: row for row in frame.to_dict("records")}

    def stored(self, name="a"):
        """Return the stored mask of a scan."""
        return next(v for v in stored_volumes([self.status]) if v.volume == name)

    def name_mask(self, name, source):
        """Let the catalog name another mask of a scan."""
        self.catalog.loc[self.catalog["volume"] == name, "lesion_mask"] = source

    def written(self):
        """Return when each node of the store was written."""
        store = self.status.with_suffix(".zarr")
        return {p.parent.name: p.stat().st_mtime_ns for p in store.glob("*/zarr.json")}


def test_masks_keep_their_ids_and_say_what_they_are_made_of(tmp_path):
    mask = mask_of(l3=np.s_[1:4, 2:6, 3:5], l200=np.s_[7, 8, 9:11])
    tree = Tree(tmp_path, mask, np.zeros(SHAPE, np.uint8))
    rows = tree.store()
    assert [row["status"] for row in rows.values()] == ["stored", "stored"]
    assert [row["lesions"] for row in rows.values()] == [2, 0]  # none is a known absence
    assert list(rows["a"]) == [
        *("volume", "status", "reason", "message", "node", "sha256", "shape", "lesions"),
    ]
    found = tree.stored()
    np.testing.assert_array_equal(found.read_checked(), mask)
    assert found.read().dtype == np.uint8
    assert not tree.stored("b").read().any()
    ct3d = found.array.attributes["ct3d"]
    volume = next(v for v in stored_volumes([tree.volumes]) if v.volume == "a")
    assert ct3d["volume_sha256"] == volume.sha256
    assert (ct3d["domain"], ct3d["lesions"]) == ("lesions", 2)
    assert ct3d["source"] == ["a.nii.gz"]
    assert ct3d["ml"] == pytest.approx((3 * 4 * 2 + 2) * 9 / 1000)  # voxels of 3 x 2 x 1.5 mm
    assert ct3d["record"] == volume.array.attributes["ct3d"]["record"]
    np.testing.assert_array_equal(found.affine, volume.affine)
    assert found.array.attributes["ome"] == volume.array.attributes["ome"]


@pytest.mark.parametrize("affine", [UPRIGHT, OBLIQUE], ids=["upright", "oblique"])
def test_a_mask_lies_on_the_recipes_grid_nearest(tmp_path, affine):
    mask = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)
    tree = Tree(tmp_path, mask, recipe=FINE, affine=affine)
    assert tree.store()["a"]["shape"] == [8, 10, 16]
    found = tree.stored()
    wanted = np.zeros((8, 10, 16), np.uint8)
    for voxel in np.ndindex(8, 10, 16):
        place = np.linalg.inv(affine) @ found.affine @ (*voxel, 1)
        wanted[voxel] = mask[tuple(np.rint(place[:3]).astype(int))]
    np.testing.assert_array_equal(found.read(), wanted)


def test_a_mask_whose_file_has_other_axes_lies_where_it_was_drawn(tmp_path):
    mask = mask_of(l1=np.s_[1:4, 2:6, 3:5])
    tree = Tree(tmp_path, mask)
    turned = UPRIGHT.copy()  # columns from left to right, slices from the head down
    turned[:, [0, 2]] *= -1
    turned[:3, 3] += UPRIGHT[:3, :3] @ (SHAPE[0] - 1, 0, SHAPE[2] - 1)
    save_labels(tree.raw / "masks/a.nii.gz", mask[::-1, :, ::-1], turned)
    tree.store()
    np.testing.assert_array_equal(tree.stored().read(), mask)


def test_a_tiny_lesion_survives_a_coarse_grid_at_its_centre(tmp_path):
    # (3 + .5) / (10/3) - .5 = .55, (6 + .5) / 3 - .5 = 1.67, (3 + .5) / 4 - .5 = .38
    tree = Tree(tmp_path, mask_of(l7=np.s_[3, 6, 3]), recipe=COARSE)
    assert tree.store()["a"]["lesions"] == 1
    assert np.argwhere(tree.stored().read()).tolist() == [[1, 2, 0]]
    assert tree.stored().read()[1, 2, 0] == 7


def test_two_tiny_lesions_of_one_voxel_both_survive(tmp_path):
    # The second one's centre is at (.85, 2, .38): its voxel is the first one's, the next along W.
    tree = Tree(tmp_path, mask_of(l7=np.s_[3, 6, 3], l9=np.s_[4, 7, 3]), recipe=COARSE)
    assert tree.store()["a"]["lesions"] == 2
    found = tree.stored().read()
    assert {int(found[tuple(v)]): v.tolist() for v in np.argwhere(found)} == {
        7: [1, 2, 0],
        9: [1, 2, 1],
    }


def test_a_tiny_lesion_within_a_large_one_takes_a_voxel_of_it(tmp_path):
    mask = mask_of(l1=np.s_[:, 3:12], l2=np.s_[3, 6, 3])
    tree = Tree(tmp_path, mask, recipe=COARSE)
    tree.store()
    found = tree.stored().read()
    wanted = np.zeros((3, 5, 5), np.uint8)
    wanted[:, 1:4] = 1
    wanted[1, 2, 0] = 2
    np.testing.assert_array_equal(found, wanted)


def test_what_the_crop_cut_off_is_gone(tmp_path):
    mask = mask_of(l1=np.s_[3, 6, 3], l2=np.s_[3, 7, 10])
    recipe = RecipeSpec(shape=(10, 15, 8), center="volume", min_slices=4)  # columns 6 to 13
    tree = Tree(tmp_path, mask, recipe=recipe)
    assert tree.store()["a"]["lesions"] == 1
    np.testing.assert_array_equal(tree.stored().read(), np.where(mask == 2, 2, 0)[:, :, 6:14])


def test_nothing_is_made_twice_and_the_key_is_that_of_the_content(tmp_path):
    tree = Tree(tmp_path, mask_of(l1=np.s_[3, 6, 3]), mask_of(l1=np.s_[4]))
    rows, before = tree.store(), tree.written()
    (tree.raw / "masks/a.nii.gz").rename(tree.raw / "masks/moved.nii.gz")
    tree.name_mask("a", "masks/moved.nii.gz")
    assert tree.store() == rows
    assert tree.written() == before
    save_labels(tree.raw / "masks/moved.nii.gz", mask_of(l1=np.s_[3, 6, 4]), UPRIGHT)
    again, after = tree.store(), tree.written()
    assert again["a"]["node"] != rows["a"]["node"]
    assert again["b"] == rows["b"]
    assert after[rows["b"]["node"]] == before[rows["b"]["node"]]
    assert rows["a"]["node"] not in after  # the old one is gone
    assert tree.store(code="2")["b"]["node"] != rows["b"]["node"]


def test_a_volume_made_anew_has_its_mask_made_anew(tmp_path):
    tree = Tree(tmp_path, mask_of(l1=np.s_[3:5, 6, 3]))
    before = tree.store()["a"]["node"]
    store_shard(tree.catalog, tree.raw, recipe=FINE, code="1", status=tree.volumes)
    assert tree.store()["a"]["node"] != before
    assert tree.stored().shape == (8, 10, 16)


def test_each_bad_mask_is_a_row_with_its_reason_and_the_others_go_on(tmp_path):
    mask = mask_of(l1=np.s_[3])
    shifted = UPRIGHT.copy()
    shifted[2, 3] += 2.0  # 2 of 3 mm
    tree = Tree(tmp_path, *[mask] * 4, None, *[mask] * 6)
    folder = tree.raw / "masks"
    (folder / "b.nii.gz").write_bytes((folder / "b.nii.gz").read_bytes()[:-30])
    save_labels(folder / "c.nii.gz", mask[:, :, 1:], UPRIGHT)
    save_labels(folder / "d.nii.gz", mask, shifted)
    save_labels(folder / "f.nii.gz", mask.astype(np.int16) * 300, UPRIGHT)
    save_labels(folder / "g.nii.gz", mask.astype(np.float32) / 2, UPRIGHT)
    (folder / "h.nii.gz").unlink()
    write_mask(folder / "i.jpg", mask[3] > 0)
    tree.name_mask("i", "masks/i.jpg")
    tree.name_mask("j", "../j.nii.gz")
    (folder / "k.nii.gz").unlink()
    (folder / "k.nii.gz").mkdir()
    rows = tree.store()
    found = {name: (row["reason"], row["message"]) for name, row in rows.items()}
    assert found.pop("a") == ("", "")
    assert rows["a"]["status"] == "stored"
    wanted = {
        "b": ("FILE_TRUNCATED", "masks/b.nii.gz: the file is cut short"),
        "c": ("LABEL_MAP_ELSEWHERE", "masks/c.nii.gz: shape (10, 15, 19) is not that of its scan,"),
        "d": ("LABEL_MAP_ELSEWHERE", "masks/d.nii.gz: its field of view ends up to 0.7 voxels"),
        "e": ("NO_LESION_MASK", "e: the catalog names no lesion mask; draw one"),
        "f": ("BAD_LABELS", "masks/f.nii.gz: values from 0 to 300, wanted 0 and ids up to 255"),
        "g": ("BAD_LABELS", "masks/g.nii.gz: values between whole numbers; no label map"),
        "h": ("FILE_MISSING", "masks/h.nii.gz: No such file or directory; put it back, or"),
        "i": ("NO_LESION_MASK", "masks/i.jpg: a picture of one finding on the key slice, which"),
        "k": ("FILE_UNREADABLE", "masks/k.nii.gz: Is a directory; put it back, or build the"),
        "j": ("UNSAFE_PATH", "../j.nii.gz: points out of the raw root; correct the catalog"),
    }
    assert {name: reason for name, (reason, _) in found.items()} == {
        name: reason for name, (reason, _) in wanted.items()
    }
    for name, (_, message) in wanted.items():
        assert found[name][1].startswith(message)
        row = rows[name]
        assert (row["status"], row["node"], row["sha256"]) == ("rejected", "", "")
        assert (row["shape"], row["lesions"]) == (None, 0)


def test_rejected_volumes_keep_their_reason(tmp_path):
    tree = Tree(tmp_path, mask_of(l1=np.s_[3]), mask_of(l1=np.s_[4]))
    (tree.raw / "b.nii.gz").write_bytes(b"")
    store_shard(tree.catalog, tree.raw, recipe=NATIVE, code="2", status=tree.volumes)
    rows = tree.store()
    before = read_status(tree.volumes).set_index("volume").loc["b"]
    assert (rows["b"]["reason"], rows["b"]["message"]) == (before["reason"], before["message"])
    assert rows["b"]["reason"] == "FILE_TRUNCATED"
    assert rows["a"]["status"] == "stored"


def test_a_root_that_is_away_ends_the_shard(tmp_path):
    tree = Tree(tmp_path, mask_of(l1=np.s_[3]))
    tree.raw.rename(tmp_path / "away")
    with pytest.raises(DatasetError, match=r"raw: no such folder; mount it, or correct raw_root"):
        tree.store()
    assert not tree.status.exists()


def test_a_store_without_records_has_no_place_for_masks(tmp_path):
    table = write_shard(
        tmp_path / "volumes/0000.parquet", "volumes", {"a": scan_of(0)}, RecipeSpec()
    )
    save_labels(tmp_path / "a.nii.gz", mask_of(l1=np.s_[3]), UPRIGHT)
    catalog = pd.DataFrame({"volume": ["a"], "lesion_mask": ["a.nii.gz"]})
    with pytest.raises(StoreError, match="has no record of its scan; run its rule again"):
        store_lesions(
            table, catalog, raw=RawRoot(tmp_path), code="1", status=tmp_path / "l/0000.parquet"
        )


def test_verify_knows_the_store(tmp_path):
    tree = Tree(tmp_path, mask_of(l1=np.s_[3]), None)
    node = tree.store()["a"]["node"]
    assert find_tables(tree.status.parent) == [tree.status]
    assert list(verify_table(tree.status)) == []
    (file,) = (tree.status.with_suffix(".zarr") / node / "0").rglob("c*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    (found,) = verify_table(tree.status)
    assert "is damaged" in found.problem


def step(base, raw, catalog, *, recipe):
    """Store the volumes of a catalog, run the step on them, and return its table."""
    private, volumes = base / "private", base / "volumes/0000.parquet"
    store_shard(catalog, raw, recipe=recipe, code="1", status=volumes, private=private)
    rows = base / "catalog.parquet"
    write_catalog(catalog, rows, shard_dir=base / "shards", shards=SHARDS)
    status = base / "lesions/0000.parquet"
    paths = {"root": raw, "private": private, "volumes": volumes, "rows": rows, "status": status}
    main(Namespace(code="1", **paths))
    assert read_catalog(rows)["volume"].tolist() == read_status(status)["volume"].tolist()
    return read_status(status)


@pytest.mark.parametrize("pseudonymise", [False, True], ids=["open", "pseudonyms"])
def test_the_step_stores_brats_masks_and_names_nobody(tmp_path, pseudonymise):
    raw, tumour = tmp_path / "raw", mask_of(l1=np.s_[2:5, 4:9, 4:9], l4=np.s_[3, 5:7, 5:7])
    for patient in ("Ann", "Max"):
        for part in ("t1", "flair"):
            save_labels(raw / f"{patient}/{patient}_{part}.nii.gz", scan_of(0) + 1100, UPRIGHT)
    save_labels(raw / "Ann/Ann_seg.nii.gz", tumour, UPRIGHT)
    save_labels(raw / "Max/Max_seg.nii.gz", tumour.astype(np.float32) + 0.5, UPRIGHT)
    spec = CatalogSpec(dataset="brats", shards=SHARDS, pseudonymise=pseudonymise)
    catalog = build_catalog(raw, spec, names=Pseudonyms(tmp_path / "private/key"))
    recipe = RecipeSpec(domain="mr", percentiles=(0.5, 99.5), min_slices=4)
    frame = step(tmp_path, raw, catalog, recipe=recipe)
    assert sorted(frame["status"]) == ["rejected"] * 2 + ["stored"] * 2
    assert sorted(frame["lesions"]) == [0, 0, 2, 2]
    for volume in stored_volumes([tmp_path / "lesions/0000.parquet"]):
        np.testing.assert_array_equal(volume.read(), tumour)
    said = frame.loc[frame["status"] == "rejected", ["volume", "message"]].to_dict("records")
    for row in said:
        hidden = f"{row['volume']}:lesions: BAD_LABELS; the log says more"
        shown = "Max/Max_seg.nii.gz: values between whole numbers; no label map"
        assert row["message"] == (hidden if pseudonymise else shown)
    text = json.dumps(frame.astype(str).to_dict("records"))
    assert ("Max" in text) != pseudonymise


@pytest.mark.parametrize(
    ("version", "dicom_every"), [("v1", 0), ("v2", 0), ("v1", 1)], ids=["blank", "header", "dicom"]
)
def test_nodules_of_the_synthetic_cohort_lie_in_the_stored_volumes(tmp_path, version, dicom_every):
    phantom = PhantomSpec(
        train_patients=1, valid_patients=1, reconstructions=(1, 1), matrix=(64, 64),
        slice_spacing=(5.0, 5.0), dicom_every=dicom_every, seed=34, version=version,
    )  # fmt: skip
    write_cohort(tmp_path, phantom)
    catalog = build_catalog(tmp_path, CatalogSpec(dataset="ct_rate", shards=SHARDS))
    recipe = RecipeSpec(spacing=(6.0, 7.0, 7.0), min_slices=4)
    frame = step(tmp_path / "work", tmp_path, catalog, recipe=recipe)
    assert dict(zip(frame["volume"], frame["lesions"], strict=True)) == {
        "train_1_a_1": 3,
        "valid_1_a_1": 2,
    }
    volumes, masks = (
        stored_volumes([tmp_path / f"work/{kind}/0000.parquet"]) for kind in ("volumes", "lesions")
    )
    for volume, mask in zip(volumes, masks, strict=True):
        for lesion in range(1, 1 + mask.array.attributes["ct3d"]["lesions"]):
            assert np.median(volume.read()[mask.read() == lesion]) > -400  # healthy lung: -850
