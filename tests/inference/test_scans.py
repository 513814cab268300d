"""Volumes through a model: in order, read ahead, whatever is wrong with one of them."""

import threading

import numpy as np
import pytest
import torch

from ct3dlib.config import RecipeSpec
from ct3dlib.errors import CheckpointError, StoreError, VolumeError
from ct3dlib.inference.scans import (
    Given,
    outcomes,
    refusal,
    scan_reader,
    stored_readers,
    to_seen,
)
from tests.inference.encoders import RECIPE, hu_of, write_scan
from tests.stores import write_shard

PLAIN = RecipeSpec(window=(0, 100))


def _reader(value: int):
    return lambda: Given(f"v{value}", np.full((2, 3, 4), value, np.int16), (0.0, float(value)))


def _first_and_window(values, window):
    return [(int(v.flatten()[0]), float(w[1])) for v, w in zip(values, window, strict=True)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_outcomes_come_in_order_whatever_the_batch(batch_size):
    readers = [refusal("FILE_MISSING", f"{i}") if i % 3 == 1 else _reader(i) for i in range(11)]
    made = outcomes(
        readers, _first_and_window, recipe=PLAIN, shape=(2, 3, 4), batch_size=batch_size
    )
    told = [str(m) if isinstance(m, VolumeError) else m for m in made]
    assert told == [str(i) if i % 3 == 1 else (i, float(i)) for i in range(11)]


def test_a_model_gets_no_empty_batch():
    readers = [refusal("FILE_MISSING", "gone")] * 3
    made = outcomes(readers, pytest.fail, recipe=PLAIN, shape=(2, 3, 4), batch_size=2)
    assert [m.reason for m in made] == ["FILE_MISSING"] * 3


def test_two_batches_are_read_while_a_model_works_on_one_and_no_more():
    started, six = [], threading.Event()

    def reader(number):
        def read():
            started.append(number)
            if len(started) == 6:
                six.set()
            return _reader(number)()

        return read

    made = outcomes(
        [reader(i) for i in range(20)],
        _first_and_window,
        recipe=PLAIN,
        shape=(2, 3, 4),
        batch_size=2,
    )
    assert next(made) == (0, 0.0)
    assert six.wait(10)  # a batch of 2, and 4 ahead
    made.close()
    assert len(started) == 6


def test_what_is_no_fault_of_a_volume_ends_the_run():
    def broken():
        raise StoreError("0000.zarr: damaged")

    made = outcomes(
        [_reader(1), broken], _first_and_window, recipe=PLAIN, shape=(2, 3, 4), batch_size=1
    )
    assert next(made) == (1, 1.0)
    with pytest.raises(StoreError, match=r"0000\.zarr: damaged"):
        next(made)


def test_whole_and_broken_numbers_share_a_batch():
    readers = [_reader(1), lambda: Given("b", np.full((2, 3, 4), 0.5, np.float32), (0.0, 1.0))]
    made = outcomes(
        readers, lambda v, w: v.flatten(1)[:, 0].tolist(), recipe=PLAIN, shape=(2, 3, 4),
        batch_size=2,
    )  # fmt: skip
    assert list(made) == [1.0, 0.5]


def test_a_volume_of_another_shape_is_refused():
    given = Given("a.nii.gz", np.zeros((2, 3, 4), np.int16), (0.0, 1.0))
    assert to_seen(given, RECIPE, shape=(2, 4, 3)).values.shape == (1, 2, 4, 3)
    with pytest.raises(
        VolumeError, match=r"a\.nii\.gz: \(2, 4, 3\) voxels on the recipe's grid, the model takes"
    ) as error:
        to_seen(given, RECIPE, shape=(2, 3, 4))
    assert error.value.reason == "WRONG_SHAPE"


def test_a_scan_and_a_stored_volume_are_seen_alike(tmp_path):
    hu = hu_of(0)
    table = write_shard(tmp_path / "0000.parquet", "volumes", {"a": hu}, RECIPE)
    ((row, stored),) = stored_readers([table], RECIPE, model="m")
    scan = scan_reader(write_scan(tmp_path / "a.nii.gz", hu), RECIPE)()
    assert row["volume"] == stored().name == "a"
    for given in (stored(), scan):
        np.testing.assert_array_equal(given.values, hu.clip(-1024, 3071))
        assert given.window == (-1000.0, 600.0)
    seen = to_seen(scan, RECIPE, shape=(8, 12, 16)).values
    torch.testing.assert_close(seen[0], torch.from_numpy(hu.transpose(0, 2, 1).copy()))


def test_volumes_of_another_recipe_or_store_are_refused(tmp_path):
    arrays = {"a": hu_of(0)}
    other = RECIPE.model_copy(update={"body_margin": 5.0})
    table = write_shard(tmp_path / "0000.parquet", "volumes", arrays, other)
    wanted = r"its body_margin is 5\.0, the model abc was trained on None"
    with pytest.raises(CheckpointError, match=wanted):
        stored_readers([table], RECIPE, model="the model abc")
    table = write_shard(tmp_path / "0001.parquet", "tokens", arrays, RECIPE)
    with pytest.raises(StoreError, match="a store of tokens, not of volumes; give tables of data"):
        stored_readers([table], RECIPE, model="m")


def test_a_name_that_no_disk_takes_is_a_rejected_scan(tmp_path):
    reader = scan_reader(tmp_path / ("x" * 300 + ".nii.gz"), RecipeSpec())
    with pytest.raises(VolumeError, match="File name too long; correct it") as raised:
        reader()
    assert raised.value.reason == "FILE_UNREADABLE"
    with pytest.raises(VolumeError, match=r"a\.nii\.gz: no such file or folder; correct the path"):
        scan_reader(tmp_path / "a.nii.gz", RecipeSpec())()
