"""One shard with a series of every kind of file and every domain."""

import json

import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK
from PIL import Image

from ct3dlib.cohort.catalog import Row, to_frame
from ct3dlib.cohort.private import RawRoot
from ct3dlib.cohort.shard import read_series, store_shard
from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import CatalogSpec, RecipeSpec
from ct3dlib.datasets import build_catalog
from ct3dlib.errors import VolumeError
from ct3dlib.scan.nifti import write_nifti
from ct3dlib.scan.volume import Volume
from tests.datasets.trees import write_dicom

SPEC = CatalogSpec(dataset="folder", shards={"train": 1, "tune": 1, "valid": 1})
HU = RecipeSpec(min_slices=2)
GREY = RecipeSpec(domain="window8", window=(0, 255), min_slices=1)
COUNTS = RecipeSpec(domain="uint8", window=(0, 255), min_slices=2)
AFFINE = np.array([[0, 0, 0.8, -20], [0, 0.7, 0, 5], [2.5, 0, 0, 100], [0, 0, 0, 1]])


def body():
    """Return HU of a soft-tissue block in air, 9 x 20 x 24, with one bright voxel."""
    hu = np.random.default_rng(0).normal(-1000, 5, (9, 20, 24))
    hu[1:-1, 4:-4, 4:-4] += 1040
    hu[6, 12, 5] = 2500
    return hu.astype(np.int16)


def grey(number):
    return np.full((16, 24), 60 * number, np.uint8)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "raw"
    write_nifti(root / "nifti.nii.gz", Volume(body(), AFFINE))
    image = SimpleITK.GetImageFromArray(body())
    image.SetSpacing((0.8, 0.7, 2.5))
    image.SetOrigin((-20, 5, 100))
    for name in ("nrrd.nrrd", "detached.nhdr", "packed.mha", "raw.mhd"):
        SimpleITK.WriteImage(image, str(root / name), name == "packed.mha")
    write_dicom(root / "dicom", patient="P", uid="1.2.3", num_slices=4)
    slice_ = pydicom.dcmread(root / "dicom/001.dcm")
    slice_.PixelData = np.full((5, 6), 1064, np.uint16).tobytes()
    slice_.save_as(root / "dicom/001.dcm")
    (root / "pictures").mkdir()
    for number in (2, 10, -1):
        Image.fromarray(grey(number % 5)).save(root / f"pictures/{number}.jpg", quality=95)
    images = np.arange(3 * 4 * 5 * 6, dtype=np.uint8).reshape(3, 4, 5, 6)
    np.savez_compressed(root / "many.npz", train_images=images)
    return root


@pytest.fixture
def rows(root):
    """Return the folder's catalog and one item of the archive, which a folder does not list."""
    item = Row(
        volume="many_1",
        dataset="medmnist3d",
        patient="many_1",
        study="many_1",
        split="train",
        shard=0,
        kind="npz",
        domain="uint8",
        sources=("many.npz",),
        item=1,
        size=(root / "many.npz").stat().st_size,
        mtime_ns=0,
        shape=(4, 5, 6),
        metadata=json.dumps({"member": "train_images"}),
    )
    frame = pd.concat([build_catalog(root, SPEC), to_frame([item])], ignore_index=True)
    return frame.sort_values("volume", ignore_index=True)


def store(rows, root, recipe):
    status = root.parent / f"{recipe.domain}/0000.parquet"
    frame = store_shard(rows, root, recipe=recipe, code="1", status=status)
    return frame.set_index("volume"), {v.volume: v for v in stored_volumes([status])}


def test_each_recipe_stores_the_series_of_its_domain_and_rejects_the_others(rows, root):
    hu = {"nifti", "nrrd", "detached", "packed", "raw"}
    hu |= {name for name in rows["volume"] if name.startswith("dicom")}
    for recipe, wanted in ((HU, hu), (GREY, {"pictures"}), (COUNTS, {"many_1"})):
        frame, stored = store(rows, root, recipe)
        assert set(stored) == wanted, recipe.domain
        rejected = frame.drop(sorted(wanted))
        assert set(rejected["reason"]) == {"WRONG_DOMAIN"}
        assert set(frame.loc[sorted(wanted), "hu_state"]) == ({"hu"} if recipe is HU else {""})
        for volume in stored.values():
            assert volume.array.attributes["ct3d"]["domain"] == recipe.domain


def test_the_message_of_a_wrong_domain_names_both_and_the_way_out(rows, root):
    frame, _ = store(rows, root, GREY)
    assert frame["message"]["nifti"] == (
        "nifti.nii.gz: values of domain hu, the recipe wants window8; give it a recipe with "
        "domain: hu"
    )


def test_a_wrong_domain_is_found_before_the_file_is_read(rows, root):
    for path in root.glob("n*.n*"):
        path.unlink()
    frame, _ = store(rows, root, COUNTS)
    assert frame["reason"]["nifti"] == frame["reason"]["nrrd"] == "WRONG_DOMAIN"


def test_one_ct_is_the_same_volume_in_every_format(rows, root):
    _, stored = store(rows, root, HU)
    want = np.clip(body(), -1024, 3071)
    for name in ("nifti", "nrrd", "detached", "packed", "raw"):
        volume = stored[name]
        np.testing.assert_array_equal(volume.read(), want)
        place = volume.affine @ (6, 12, 5, 1)
        # x = -20 + 5 * 0.8, y = 5 + 12 * 0.7, z = 100 + 6 * 2.5
        np.testing.assert_allclose(place, (-16.0, 13.4, 115.0, 1.0), rtol=1e-6)


def test_8_bit_values_are_kept(rows, root):
    _, stored = store(rows, root, GREY)
    slices = stored["pictures"].read()
    assert slices.dtype == np.uint8
    assert slices[:, 0, 0].tolist() == [240, 120, 0]  # slices -1, 2 and 10
    _, stored = store(rows, root, COUNTS)
    want = np.arange(120, 240, dtype=np.uint8).reshape(4, 5, 6)
    np.testing.assert_array_equal(stored["many_1"].read(), want)


def test_one_slice_is_stored_where_the_recipe_wants_no_more(root):
    (root / "single").mkdir()
    Image.fromarray(np.tile(grey(1), (1, 2)) + np.arange(48, dtype=np.uint8)).save(
        root / "single/0.jpg"
    )
    rows = build_catalog(root, SPEC)
    _, stored = store(rows, root, GREY)
    assert stored["single"].shape == (1, 16, 48)
    frame, _ = store(rows, root, GREY.model_copy(update={"min_slices": 2}))
    assert frame["reason"]["single"] == "SINGLE_SLICE"


def test_another_item_of_an_archive_is_made_anew(rows, root):
    first, _ = store(rows, root, COUNTS)
    rows.loc[rows["volume"] == "many_1", "item"] = 2
    second, stored = store(rows, root, COUNTS)
    assert first["node"]["many_1"] != second["node"]["many_1"]
    assert stored["many_1"].read()[0, 0, 0] == 240


def row_of(root, **changes):
    return {
        "volume": "v",
        "kind": "npz",
        "domain": "uint8",
        "sources": ["many.npz"],
        "item": 1,
        "spacing": None,
        "metadata": "{}",
        **changes,
    }


def test_an_npz_row_must_name_its_array_and_item(root):
    match = "many.npz: the catalog names array None and item 1, wanted both; build it again"
    with pytest.raises(VolumeError, match=match) as caught:
        read_series(row_of(root), RawRoot(root))
    assert caught.value.reason == "ITEM_MISSING"
    with pytest.raises(VolumeError, match="array train_images and item None"):
        read_series(row_of(root, item=None, metadata='{"member": "train_images"}'), RawRoot(root))


def test_a_reading_has_the_domain_of_its_row(root):
    row = row_of(root, kind="nifti", domain="mr", sources=["nifti.nii.gz"])
    assert read_series(row, RawRoot(root)).volume.domain == "mr"


def test_a_kind_that_nobody_reads_is_a_fault_of_the_caller(root):
    with pytest.raises(ValueError, match="volume v: no reader for kind 'tiff'"):
        read_series(row_of(root, kind="tiff"), RawRoot(root))
