import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ct3dlib.cohort.store import StoredArray, StoredVolume, create_store, write_node
from ct3dlib.training.items import CropItems, WholeItems

WINDOW, RANGE = (-1000.0, 1000.0), (-1.0, 1.0)


@pytest.fixture
def volumes(tmp_path: Path) -> list[StoredVolume]:
    store = tmp_path / "0000.zarr"
    create_store(store, "volumes")
    found = []
    for name, shape in (("a", (6, 9, 12)), ("b", (5, 8, 7))):
        # Each voxel's value tells where it lies.
        array = (np.arange(np.prod(shape)).reshape(shape) - 300).astype(np.int16)
        sha256 = write_node(store, f"{name}@0", array, attributes={})
        found.append(StoredVolume(name, StoredArray(store, f"{name}@0"), shape, sha256))
    return found


def _crops(volumes: list[StoredVolume], crop: tuple[int, int, int]) -> CropItems:
    return CropItems(volumes, crop=crop, window=WINDOW, range=RANGE)


def test_a_crop_is_a_box_of_the_volume_in_the_range(volumes):
    items = _crops(volumes, (3, 4, 5))
    rng = np.random.default_rng(0)
    starts = set()
    for _ in range(200):
        crop = items.item(0, rng)["volume"]
        assert crop.dtype == torch.float32
        hu = (crop[0].numpy() * 1000).round().astype(int)
        start = np.unravel_index(hu[0, 0, 0] + 300, (6, 9, 12))
        box = tuple(slice(a, a + n) for a, n in zip(start, (3, 4, 5), strict=True))
        np.testing.assert_array_equal(hu, volumes[0].read()[box])
        starts.add(tuple(int(a) for a in start))
    for axis, places in enumerate((4, 6, 8)):  # every start that fits is drawn
        assert {start[axis] for start in starts} == set(range(places))


def test_a_small_volume_is_padded_at_the_far_end(volumes):
    crop = _crops(volumes, (4, 10, 7)).item(1, np.random.default_rng(0))["volume"][0]
    assert crop.shape == (4, 10, 7)
    assert (crop[:, 8:] == -1).all()
    hu = (crop[:, :8].numpy() * 1000).round().astype(int)
    first = (hu[0, 0, 0] + 300) // 56
    np.testing.assert_array_equal(hu, volumes[1].read()[first : first + 4])


def test_values_beyond_the_window_are_clipped(volumes):
    items = CropItems(volumes, crop=(6, 9, 12), window=(-100.0, 100.0), range=(0.0, 1.0))
    crop = items.item(0, np.random.default_rng(0))["volume"][0]
    wanted = (volumes[0].read().clip(-100, 100) + 100) / 200
    np.testing.assert_allclose(crop.numpy(), wanted, atol=1e-6)


def test_crops_follow_the_generator_and_cross_processes(volumes):
    items = _crops(volumes, (3, 4, 5))
    one, same, other = (items.item(0, np.random.default_rng(s))["volume"] for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    moved = pickle.loads(pickle.dumps(items))
    assert torch.equal(moved.item(0, np.random.default_rng(1))["volume"], one)
    assert moved.key == items.key


def test_the_key_names_contents_and_settings(volumes):
    keys = {
        _crops(volumes, (3, 4, 5)).key,
        _crops(volumes, (3, 4, 4)).key,
        _crops(volumes[:1], (3, 4, 5)).key,
        CropItems(volumes, crop=(3, 4, 5), window=(-1.0, 1.0), range=RANGE).key,
        WholeItems(volumes[:1], window=WINDOW, range=RANGE).key,
    }
    assert len(keys) == 5


def test_whole_items_are_whole(volumes):
    items = WholeItems(volumes[:1], window=WINDOW, range=RANGE)
    whole = items.item(0, np.random.default_rng(0))["volume"]
    assert len(items) == 1
    np.testing.assert_allclose(whole[0].numpy() * 1000, volumes[0].read(), atol=1e-3)


def test_whole_items_of_two_shapes_are_refused(volumes):
    with pytest.raises(ValueError, match=r"a has \(6, 9, 12\), b has \(5, 8, 7\); give their"):
        WholeItems(volumes, window=WINDOW, range=RANGE)
