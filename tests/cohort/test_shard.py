"""One shard: every series ends as a stored volume or a rejected row."""

import json
import shutil

import nibabel
import numpy as np
import pytest
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader

from ct3dlib.cohort import shard
from ct3dlib.cohort.shard import store_shard
from ct3dlib.cohort.store import read_status, stored_volumes
from ct3dlib.config import CatalogSpec, RecipeSpec
from ct3dlib.datasets import build_catalog
from ct3dlib.errors import DatasetError
from ct3dlib.scan.normalize import Record, restore
from ct3dlib.scan.volume import Volume

RECIPE = RecipeSpec(spacing=(4.0, 3.0, 3.0), shape=(9, 16, 20), min_slices=4)
SPEC = CatalogSpec(dataset="folder", shards={"train": 1, "tune": 1, "valid": 1})


def body(shape=(24, 20, 12), seed=0):
    """Return HU of a soft-tissue block in air, axes x y z."""
    rng = np.random.default_rng(seed)
    hu = np.full(shape, -1000.0)
    hu[4:-4, 4:-4] = 40
    return hu + rng.normal(0, 5, shape)


def save(path, hu, dtype=np.int16):
    affine = np.diag([2.5, 2.5, 4.0, 1.0])
    affine[:3, 3] = (-30, 40, 100)
    image = nibabel.Nifti1Image(hu.astype(dtype), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nibabel.save(image, path)


@pytest.fixture
def rows(tmp_path):
    root = tmp_path / "raw"
    root.mkdir()
    for name in "abc":
        save(root / f"{name}.nii.gz", body(seed=ord(name)))
    whole = (root / "a.nii.gz").read_bytes()
    (root / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    holes = body()
    holes[3, 3, 3] = np.nan
    save(root / "nan.nii.gz", holes, np.float32)
    save(root / "thin.nii.gz", body((24, 20, 1)))
    return build_catalog(root, SPEC)


def test_good_series_are_stored_and_bad_ones_have_their_reason(rows, tmp_path):
    status = tmp_path / "0000.parquet"
    frame = store_shard(rows, tmp_path / "raw", recipe=RECIPE, code="1", status=status)
    assert frame["volume"].tolist() == rows["volume"].tolist()
    reasons = dict(zip(frame["volume"], frame["reason"], strict=True))
    assert reasons == {
        "a": "",
        "b": "",
        "c": "",
        "cut": "FILE_TRUNCATED",
        "nan": "NAN_VOXELS",
        "thin": "SINGLE_SLICE",
    }
    assert [v.volume for v in stored_volumes([status])] == ["a", "b", "c"]
    messages = frame.loc[frame["status"] == "rejected", "message"].tolist()
    assert all(len(m) > 20 and str(tmp_path) not in m for m in messages)


def test_a_stored_volume_is_hu_with_its_geometry_and_way_back(rows, tmp_path):
    status = tmp_path / "0000.parquet"
    store_shard(rows, tmp_path / "raw", recipe=RECIPE, code="1", status=status)
    volume = stored_volumes([status])[0]
    hu = volume.read()
    assert hu.shape == (9, 16, 20)
    assert abs(float(hu[4, 8, 10]) - 40) < 30
    ct3d = volume.array.attributes["ct3d"]
    assert ct3d["source"] == ["a.nii.gz"]
    assert ct3d["hu_state"] == "hu"
    back = restore(Volume(hu, volume.affine), Record.model_validate(ct3d["record"]))
    image = nibabel.load(tmp_path / "raw/a.nii.gz")
    assert back.shape == image.shape[::-1]
    center = np.asanyarray(image.dataobj)[8:16, 8:12, 3:9].mean()
    assert abs(back.array[3:9, 8:12, 8:16].mean() - center) < 15


def test_how_models_see_a_volume_does_not_change_its_store(rows, tmp_path):
    status, root = tmp_path / "data/0000.parquet", tmp_path / "raw"
    store_shard(rows, root, recipe=RECIPE, code="1", status=status)
    before = status.read_bytes()
    seen = {"window": (-500.0, 500.0), "range": (0.0, 1.0), "axes": "dwh"}
    store_shard(rows, root, recipe=RECIPE.model_copy(update=seen), code="1", status=status)
    assert status.read_bytes() == before
    volume = stored_volumes([status])[0]
    assert not set(seen) & set(volume.array.attributes["ct3d"]["recipe"])


def test_a_second_run_keeps_what_is_there_and_another_recipe_replaces_it(rows, tmp_path):
    status = tmp_path / "0000.parquet"
    root = tmp_path / "raw"
    store_shard(rows, root, recipe=RECIPE, code="1", status=status)
    before = status.read_bytes()
    files = {p: p.stat().st_mtime_ns for p in tmp_path.glob("0000.zarr/*/0/c*")}
    store_shard(rows, root, recipe=RECIPE, code="1", status=status)
    assert status.read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("0000.zarr/*/0/c*")} == files
    other = RECIPE.model_copy(update={"shape": (9, 16, 24)})
    store_shard(rows, root, recipe=other, code="1", status=status)
    assert {v.shape for v in stored_volumes([status])} == {(9, 16, 24)}
    assert len(list(tmp_path.glob("0000.zarr/*@*"))) == 3


def test_a_reader_that_died_twice_rejects_its_volume(rows, tmp_path):
    status = tmp_path / "0000.parquet"
    frame = store_shard(rows, tmp_path / "raw", recipe=RECIPE, code="1", status=status)
    node = frame.set_index("volume").loc["b", "node"]
    (tmp_path / "0000.attempts.json").write_text(json.dumps({node: 2}))
    shutil.rmtree(tmp_path / "0000.zarr" / node)
    frame = store_shard(rows, tmp_path / "raw", recipe=RECIPE, code="1", status=status)
    assert frame.set_index("volume").loc["b", "reason"] == "READER_CRASHED"
    assert (frame["status"] == "stored").sum() == 2


def test_sources_cannot_leave_the_raw_root(rows, tmp_path):
    status = tmp_path / "0000.parquet"
    rows = rows.head(1).assign(sources=[["../../etc/passwd"]])
    frame = store_shard(rows, tmp_path / "raw", recipe=RECIPE, code="1", status=status)
    assert frame["reason"].tolist() == ["UNSAFE_PATH"]


def test_ome_zarr_reads_the_store(rows, tmp_path):
    status = tmp_path / "0000.parquet"
    store_shard(rows, tmp_path / "raw", recipe=RECIPE, code="1", status=status)
    node = read_status(status)["node"].iloc[0]
    location = parse_url(tmp_path / "0000.zarr" / node)
    (image,) = Reader(location)()
    assert image.data[0].shape == (9, 16, 20)
    assert [axis["name"] for axis in image.metadata["axes"]] == ["z", "y", "x"]


def test_a_lost_file_is_a_row_that_says_how_it_is_tried_again(rows, tmp_path):
    status, root = tmp_path / "0000.parquet", tmp_path / "raw"
    (root / "b.nii.gz").rename(tmp_path / "away")
    table = store_shard(rows, root, recipe=RECIPE, code="1", status=status).set_index("volume")
    assert table.loc["b", "reason"] == "FILE_MISSING"
    assert table.loc["b", "message"] == (
        f"b.nii.gz: no such file; correct the catalog; once it is there, delete {status} and run "
        f"again"
    )
    (tmp_path / "away").rename(root / "b.nii.gz")
    status.unlink()
    table = store_shard(rows, root, recipe=RECIPE, code="1", status=status).set_index("volume")
    assert table["status"].value_counts().to_dict() == {"stored": 3, "rejected": 3}


def unmount(root):
    root.rename(root.with_name("elsewhere"))


def unmount_over_a_folder(root):
    unmount(root)
    root.mkdir()


@pytest.mark.parametrize(
    ("away", "match"),
    [
        (unmount, r"raw: no such folder; mount it, or correct raw_root, and run again"),
        (
            unmount_over_a_folder,
            r"raw: none of the shard's 6 files is there \(a\.nii\.gz, \.\.\.\); mount it and run",
        ),
    ],
    ids=["no-folder", "empty-folder"],
)
def test_a_root_that_is_away_rejects_nothing(rows, tmp_path, away, match):
    status, root = tmp_path / "0000.parquet", tmp_path / "raw"
    away(root)
    with pytest.raises(DatasetError, match=match):
        store_shard(rows, root, recipe=RECIPE, code="1", status=status)
    assert not status.exists()
    shutil.rmtree(root, ignore_errors=True)
    (tmp_path / "elsewhere").rename(root)
    table = store_shard(rows, root, recipe=RECIPE, code="1", status=status)
    assert "FILE_MISSING" not in set(table["reason"])


def test_a_root_that_goes_away_in_the_middle_ends_the_shard(rows, tmp_path, monkeypatch):
    status, root = tmp_path / "0000.parquet", tmp_path / "raw"
    read = shard.read_nifti

    def read_once(path, *, spacing):
        reading = read(path, spacing=spacing)
        root.rename(tmp_path / "elsewhere")
        return reading

    monkeypatch.setattr(shard, "read_nifti", read_once)
    with pytest.raises(DatasetError, match="raw: no such folder; mount it"):
        store_shard(rows, root, recipe=RECIPE, code="1", status=status)
    assert not status.exists()


def test_a_store_that_is_whole_needs_no_root(rows, tmp_path):
    status, root = tmp_path / "0000.parquet", tmp_path / "raw"
    good = rows[rows["volume"].isin(["a", "b", "c"])]
    store_shard(good, root, recipe=RECIPE, code="1", status=status)
    table = status.read_bytes()
    shutil.rmtree(root)
    status.unlink()
    store_shard(good, root, recipe=RECIPE, code="1", status=status)
    assert status.read_bytes() == table
