import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ct3dlib.cohort.store import StoredArray, StoredVolume, create_store, write_node
from ct3dlib.errors import StoreError
from ct3dlib.training.slice_items import Pair, SliceItems, pair_regions

WINDOW, RANGE = (-1000.0, 1000.0), (-1.0, 1.0)
SHAPES = {"a": (6, 9, 12), "b": (5, 8, 7)}


def _stored(store: Path, name: str, array: np.ndarray) -> StoredVolume:
    sha256 = write_node(store, f"{name}@0", array, attributes={})
    return StoredVolume(name, StoredArray(store, f"{name}@0"), array.shape, sha256)


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    """Return volumes whose values tell where they lie, and regions that are a function of them."""
    volumes, regions = tmp_path / "volumes.zarr", tmp_path / "regions.zarr"
    create_store(volumes, "volumes")
    create_store(regions, "regions")
    found = []
    for name, shape in SHAPES.items():
        places = np.arange(np.prod(shape)).reshape(shape)
        volume = _stored(volumes, name, (places - 300).astype(np.int16))
        found.append((volume, _stored(regions, name, (places % 21).astype(np.uint8))))
    return found


def _items(pairs: list[Pair], crop: tuple[int, int], axes: str = "dhw") -> SliceItems:
    return SliceItems(pairs, crop=crop, window=WINDOW, range=RANGE, axes=axes)


def _places(item: dict[str, torch.Tensor]) -> np.ndarray:
    return (item["volume"][0, 0].numpy() * 1000).round().astype(int) + 300


def test_a_slice_is_cut_anywhere_with_the_regions_of_its_pixels(pairs):
    items = _items(pairs, (4, 5))
    rng = np.random.default_rng(0)
    starts = set()
    for _ in range(200):
        item = items.item(0, rng)
        assert item["volume"].dtype == torch.float32
        assert item["regions"].dtype == torch.int64
        places = _places(item)
        np.testing.assert_array_equal(item["regions"][0, 0].numpy(), places % 21)
        start = np.unravel_index(places[0, 0], SHAPES["a"])
        rows, columns = start[1] + np.arange(4), start[2] + np.arange(5)
        wanted = np.ravel_multi_index((start[0], rows[:, None], columns), SHAPES["a"])
        np.testing.assert_array_equal(places, wanted)
        starts.add(tuple(int(i) for i in start))
    for axis, count in enumerate((6, 6, 8)):  # every start that fits is drawn
        assert {start[axis] for start in starts} == set(range(count))


def test_a_small_slice_is_padded_at_the_far_end_as_region_0(pairs):
    item = _items(pairs, (10, 8)).item(1, np.random.default_rng(0))
    volume, regions = item["volume"][0, 0], item["regions"][0, 0]
    assert volume.shape == regions.shape == (10, 8)
    for outside in (slice(8, None), slice(None)), (slice(None), slice(7, None)):
        assert (volume[outside] == -1).all()
        assert (regions[outside] == 0).all()
    places = _places(item)[:8, :7]
    np.testing.assert_array_equal(regions[:8, :7].numpy(), places % 21)
    assert places[0, 0] % 56 == 0  # a whole slice of 8 x 7


def test_axes_turn_volume_and_regions_alike(pairs):
    plain = _items(pairs, (9, 12)).item(0, np.random.default_rng(3))
    turned = _items(pairs, (12, 9), "dwh").item(0, np.random.default_rng(3))
    for name in ("volume", "regions"):
        assert torch.equal(turned[name], plain[name].transpose(-2, -1))
        assert not torch.equal(plain[name][..., :9, :9], turned[name][..., :9, :9])


def test_slices_follow_the_generator_and_cross_processes(pairs):
    items = _items(pairs, (4, 5))
    moved = pickle.loads(pickle.dumps(items))
    one, same, other = (i.item(0, np.random.default_rng(s)) for i, s in
                        ((items, 1), (moved, 1), (items, 2)))  # fmt: skip
    assert torch.equal(one["volume"], same["volume"])
    assert torch.equal(one["regions"], same["regions"])
    assert not torch.equal(one["volume"], other["volume"])


def test_the_key_names_contents_and_settings(pairs):
    (volume, regions), second = pairs
    keys = {
        _items(pairs, (4, 5)).key,
        _items(pairs, (4, 4)).key,
        _items(pairs, (4, 5), "dwh").key,
        _items(pairs[:1], (4, 5)).key,
        _items([(volume, second[1]), second], (4, 5)).key,
        SliceItems(pairs, crop=(4, 5), window=(-1.0, 1.0), range=RANGE).key,
    }
    assert len(keys) == 6
    assert _items([(volume, regions), second], (4, 5)).key in keys


def test_volumes_are_paired_by_name_and_those_without_regions_left_out(pairs):
    (a, regions_a), (b, regions_b) = pairs
    assert pair_regions([a, b], [regions_b, regions_a]) == pairs
    assert pair_regions([a, b], [regions_b]) == [(b, regions_b)]
    assert len(_items(pair_regions([a, b], []), (4, 5))) == 0


def test_regions_of_another_grid_are_refused(pairs):
    (a, _), (_, regions_b) = pairs
    wrong = StoredVolume("a", regions_b.array, regions_b.shape, regions_b.sha256)
    with pytest.raises(
        StoreError, match=r"a: its regions have shape \(5, 8, 7\), the volume \(6, 9, 12\); run the"
    ):
        pair_regions([a], [wrong])
