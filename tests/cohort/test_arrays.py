import errno
import resource

import numpy as np
import pytest
import zarr

from ct3dlib.cohort.arrays import open_array, write_array


def test_the_same_values_give_the_same_bytes_that_zarr_reads(tmp_path):
    values = np.random.default_rng(0).integers(-1024, 3071, (40, 70, 130)).astype(np.int16)
    for name in "ab":
        write_array(tmp_path / name, values)
    first, second = ((tmp_path / name / "c.0.0.0").read_bytes() for name in "ab")
    assert first == second
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a", mode="r")[...], values)
    np.testing.assert_array_equal(open_array(tmp_path / "b")[3:9, 60:70, :5], values[3:9, 60:, :5])


@pytest.mark.parametrize(
    "values",
    [np.full((5, 6, 7), -1024, np.int16), np.zeros((5, 6, 7), np.uint8), np.zeros(9, np.uint8)],
    ids=["air", "no region", "bytes"],
)
def test_values_that_are_all_padding_have_a_file_too(tmp_path, values):
    write_array(tmp_path / "a", values)
    assert (tmp_path / "a" / f"c{'.0' * values.ndim}").exists()
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a", mode="r")[...], values)


def test_a_disk_that_takes_no_more_is_an_error_of_the_system(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).integers(0, 255, 1 << 18).astype(np.uint8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limit[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write_array(tmp_path / "a", noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.errno == errno.EFBIG


def test_latents_have_all_their_channels_in_a_chunk(tmp_path):
    latents = np.random.default_rng(0).normal(size=(4, 33, 70, 65)).astype(np.float32)
    write_array(tmp_path / "a", latents)
    found = zarr.open_array(tmp_path / "a", mode="r")
    assert found.chunks == (4, 32, 64, 64)
    assert found.metadata.dimension_names == ("c", "z", "y", "x")
    assert (tmp_path / "a/c.0.0.0.0").exists()
    np.testing.assert_array_equal(found[...], latents)
    np.testing.assert_array_equal(open_array(tmp_path / "a")[:, 30:, 5], latents[:, 30:, 5])
