"""Boxes of stored volumes, at places given or drawn."""

from pathlib import Path

import numpy as np
import pytest

from ct3dlib.cohort.store import StoredArray, StoredVolume, create_store, write_node
from ct3dlib.training.patches import draw_start, read_box, sample_patches

WINDOW, RANGE = (-1000.0, 1000.0), (-1.0, 1.0)


@pytest.fixture
def volumes(tmp_path: Path) -> list[StoredVolume]:
    store = tmp_path / "0000.zarr"
    create_store(store, "volumes")
    found = []
    for name, shape, first in (("a", (6, 9, 12), -300), ("b", (5, 4, 7), 500)):
        array = (np.arange(np.prod(shape)).reshape(shape) + first).astype(np.int16)
        sha256 = write_node(store, f"{name}@0", array, attributes={})
        found.append(StoredVolume(name, StoredArray(store, f"{name}@0"), shape, sha256))
    return found


def test_a_box_that_leaves_the_volume_is_padded_with_the_low_end(volumes):
    box = read_box(volumes[0], (4, 0, 10), (4, 2, 3), window=WINDOW, value_range=(0.0, 2.0))
    assert box.dtype == np.float32
    wanted = np.zeros((4, 2, 3))
    wanted[:2, :, :2] = (volumes[0].read()[4:, :2, 10:] + 1000.0) / 1000.0
    np.testing.assert_allclose(box, wanted, atol=1e-6)


def test_starts_reach_every_place_and_no_other():
    rng = np.random.default_rng(0)
    starts = [draw_start((6, 4, 5), (3, 4, 9), rng) for _ in range(200)]
    assert {start[0] for start in starts} == {0, 1, 2, 3}
    assert {start[1:] for start in starts} == {(0, 0)}


def test_sampled_patches_are_boxes_of_the_volumes(volumes):
    patches = sample_patches(volumes, 40, (2, 3, 5), seed=0, window=WINDOW, value_range=RANGE)
    assert patches.shape == (40, 1, 2, 3, 5)
    hu = (patches[:, 0].numpy() * 1000).round().astype(int)
    of_volume = []
    for patch in hu:
        which = int(patch[0, 0, 0] >= 500 or patch[0, 0, 0] + 300 >= 648)
        volume = volumes[which]
        first = volume.read()[0, 0, 0]
        start = np.unravel_index(patch[0, 0, 0] - first, volume.shape)
        box = tuple(slice(a, a + n) for a, n in zip(start, (2, 3, 5), strict=True))
        np.testing.assert_array_equal(patch, volume.read()[box])
        of_volume.append(which)
    assert 8 < sum(of_volume) < 32  # either volume is as likely


def test_sampled_patches_depend_on_the_seed_and_their_number_alone(volumes):
    def draw(n: int, seed: int) -> list[list[float]]:
        found = sample_patches(volumes, n, (4, 3, 5), seed=seed, window=WINDOW, value_range=RANGE)
        return found.flatten(1).tolist()

    assert draw(9, seed=3)[:4] == draw(4, seed=3)
    assert draw(4, seed=4) != draw(4, seed=3)


def test_a_patch_larger_than_its_volume_is_padded(volumes):
    (patch,) = sample_patches(volumes[1:], 1, (6, 4, 8), seed=0, window=WINDOW, value_range=RANGE)
    np.testing.assert_allclose(patch[0, :5, :, :7].numpy() * 1000, volumes[1].read(), atol=1e-3)
    assert (patch[0, 5:] == -1).all()
    assert (patch[0, :, :, 7:] == -1).all()


def test_nothing_to_sample_is_said(volumes):
    with pytest.raises(ValueError, match="no volumes to sample patches from; see the status"):
        sample_patches([], 1, (2, 2, 2), seed=0, window=WINDOW, value_range=RANGE)
    with pytest.raises(ValueError, match="n must be at least 1, not 0"):
        sample_patches(volumes, 0, (2, 2, 2), seed=0, window=WINDOW, value_range=RANGE)
