import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ct3dlib.cohort.store import StoredArray, StoredVolume, create_store, write_node
from ct3dlib.training import loader
from ct3dlib.training.items import CropItems, GridItems, WholeItems
from tests.contracts.objective_cases import spec_of

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


def _grid(
    volumes: list[StoredVolume],
    patch: tuple[int, int, int],
    stride: tuple[int, int, int] | None = None,
) -> GridItems:
    return GridItems(volumes, patch=patch, stride=stride or patch, window=WINDOW, range=RANGE)


def _patches(items: GridItems) -> list[dict[str, torch.Tensor]]:
    return [items.item(i, np.random.default_rng(0)) for i in range(len(items))]


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
        _grid(volumes, (3, 4, 5)).key,
        _grid(volumes, (3, 4, 5), (3, 4, 4)).key,
    }
    assert len(keys) == 7


def test_whole_items_are_whole(volumes):
    items = WholeItems(volumes[:1], window=WINDOW, range=RANGE)
    whole = items.item(0, np.random.default_rng(0))["volume"]
    assert len(items) == 1
    np.testing.assert_allclose(whole[0].numpy() * 1000, volumes[0].read(), atol=1e-3)


def test_whole_items_of_two_shapes_are_refused(volumes):
    with pytest.raises(ValueError, match=r"a has \(6, 9, 12\), b has \(5, 8, 7\); give their"):
        WholeItems(volumes, window=WINDOW, range=RANGE)


def test_a_grid_has_the_patches_that_cover_each_volume(volumes):
    items = _grid(volumes, (4, 4, 5))
    # ceil(6/4, 9/4, 12/5) = 2, 3, 3 and ceil(5/4, 8/4, 7/5) = 2, 2, 2
    assert [items.grid(volume) for volume in volumes] == [(2, 3, 3), (2, 2, 2)]
    assert len(items) == 18 + 8
    assert items.place(0) == (0, (0, 0, 0))
    assert items.place(5) == (0, (0, 4, 10))
    assert items.place(17) == (0, (4, 8, 10))
    assert items.place(18) == (1, (0, 0, 0))
    assert items.place(25) == (1, (4, 4, 5))


def test_overlapping_patches_stop_where_the_volume_is_covered(volumes):
    items = _grid(volumes[:1], (4, 4, 12), (1, 3, 12))
    # Starts 0 1 2 along D, 0 3 6 along H (6 + 4 > 9: padded), 0 along W.
    assert items.grid(volumes[0]) == (3, 3, 1)
    starts = [tuple(p["start"].tolist()) for p in _patches(items)]
    assert starts == [(d, h, 0) for d in (0, 1, 2) for h in (0, 3, 6)]


def test_patches_side_by_side_hold_every_voxel_once(volumes):
    items = _grid(volumes, (4, 4, 5))
    found = [np.full(volume.shape, np.nan) for volume in volumes]
    for patch in _patches(items):
        assert patch["volume"].shape == patch["valid"].shape == (1, 4, 4, 5)
        valid = patch["valid"][0].numpy()
        values = patch["volume"][0].numpy()
        assert (values[~valid] == -1).all()
        target = found[int(patch["volume_index"])]
        places = np.argwhere(valid) + patch["start"].numpy()
        assert np.isnan(target[tuple(places.T)]).all()  # nobody was here before
        target[tuple(places.T)] = values[valid]
    for volume, values in zip(volumes, found, strict=True):
        np.testing.assert_allclose(values * 1000, volume.read(), atol=1e-3)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_epoch_holds_every_patch_once(volumes, monkeypatch, workers, ranks):
    items = _grid(volumes, (4, 4, 5), (2, 4, 4))  # 2 3 3 and 2 2 2 patches: 26 = 13 x 2
    monkeypatch.setattr(loader, "world_size", lambda: ranks)
    spec = spec_of(steps=26, batch_size=2, micro_batch_size=1, num_workers=workers)
    epochs = [], []
    for rank in range(ranks):
        monkeypatch.setattr(loader, "rank", lambda rank=rank: rank)
        for step, micro_batches in enumerate(loader.batches(items, spec, first_step=0)):
            for batch in micro_batches:
                rows = zip(batch["volume_index"].tolist(), batch["start"].tolist(), strict=True)
                epochs[step // 13].extend((which, *start) for which, start in rows)
    wanted = [(which, *start) for which, start in map(items.place, range(len(items)))]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(wanted)
    assert epochs[0] != epochs[1]
    assert len(set(wanted)) == 26


def test_a_grid_with_gaps_is_refused(volumes):
    with pytest.raises(ValueError, match=r"stride \(4, 4, 6\) leaves gaps .* lower it to at most"):
        _grid(volumes, (4, 4, 5), (4, 4, 6))
    assert len(_grid([], (4, 4, 5))) == 0


def test_mr_is_seen_through_the_window_of_each_volume(tmp_path):
    store = tmp_path / "0000.zarr"
    create_store(store, "volumes")
    array = np.arange(8, dtype=np.int16).reshape(2, 2, 2) * 100
    found = []
    for name, domain, window in (("mr", "mr", [0.0, 700.0]), ("ct", "hu", None)):
        ct3d = {"domain": domain, "record": {"window": window}}
        sha256 = write_node(store, f"{name}@0", array, attributes={"ct3d": ct3d})
        found.append(StoredVolume(name, StoredArray(store, f"{name}@0"), (2, 2, 2), sha256))
    assert [volume.own_window for volume in found] == [(0.0, 700.0), None]
    for make in (
        CropItems(found, crop=(2, 2, 2), window=WINDOW, range=(0.0, 1.0)),
        WholeItems(found, window=WINDOW, range=(0.0, 1.0)),
        GridItems(found, patch=(2, 2, 2), stride=(2, 2, 2), window=WINDOW, range=(0.0, 1.0)),
    ):
        mr, ct = (make.item(i, np.random.default_rng(0))["volume"].flatten() for i in (0, 1))
        np.testing.assert_allclose(mr.numpy(), np.arange(8) / 7, atol=1e-6)
        np.testing.assert_allclose(ct.numpy(), 0.5 + np.arange(8) * 0.05, atol=1e-6)


def test_a_bright_voxel_lands_where_a_dwh_model_sees_it(tmp_path):
    store = tmp_path / "0000.zarr"
    create_store(store, "volumes")
    array = np.full((4, 6, 9), -1000, np.int16)
    array[1, 2, 7] = 1000  # slice 1, row 2, column 7
    sha256 = write_node(store, "a@0", array, attributes={})
    volumes = [StoredVolume("a", StoredArray(store, "a@0"), (4, 6, 9), sha256)]
    rng = np.random.default_rng(0)

    whole = WholeItems(volumes, window=WINDOW, range=RANGE, axes="dwh").item(0, rng)["volume"]
    assert whole.shape == (1, 4, 9, 6)
    assert torch.argwhere(whole > 0).tolist() == [[0, 1, 7, 2]]

    crops = CropItems(volumes, crop=(4, 9, 8), window=WINDOW, range=RANGE, axes="dwh")
    crop = crops.item(0, rng)["volume"]
    assert torch.argwhere(crop > 0).tolist() == [[0, 1, 7, 2]]
    assert (crop[..., 6:] == -1).all()  # the volume has 6 rows: the model's last axis is padded

    grid = GridItems(
        volumes, patch=(4, 4, 4), stride=(4, 4, 4), window=WINDOW, range=RANGE, axes="dwh"
    )
    assert grid.grid(volumes[0]) == (1, 3, 2)
    lit = [patch for patch in _patches(grid) if (patch["volume"] > 0).any()]
    assert len(lit) == 1
    assert lit[0]["start"].tolist() == [0, 4, 0]
    assert torch.argwhere(lit[0]["volume"] > 0).tolist() == [[0, 1, 3, 2]]
    assert sum(int(patch["valid"].sum()) for patch in _patches(grid)) == 4 * 6 * 9


def test_crops_of_a_dwh_model_start_wherever_they_fit(volumes):
    items = CropItems(volumes, crop=(6, 10, 9), window=WINDOW, range=RANGE, axes="dwh")
    rng = np.random.default_rng(0)
    seen = {round(float(items.item(0, rng)["volume"][0, 0, 0, 0]) * 1000) for _ in range(50)}
    assert seen == {-300, -299, -298}  # columns 0 to 2 of 12


def test_the_order_of_the_axes_is_part_of_the_key(volumes):
    one = {"window": WINDOW, "range": RANGE}
    for make in (
        lambda **seen: CropItems(volumes, crop=(3, 4, 5), **seen),
        lambda **seen: WholeItems(volumes[:1], **seen),
        lambda **seen: GridItems(volumes, patch=(3, 4, 5), stride=(3, 4, 5), **seen),
    ):
        assert make(**one).key != make(**one, axes="dwh").key
