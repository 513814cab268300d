import numpy as np
import pytest

from ct3dlib.regions.working_grid import (
    Scan,
    overlaps,
    smooth,
    to_volume_grid,
    to_working_grid,
)
from ct3dlib.scan.volume import Volume


def volume(array: np.ndarray, spacing: tuple[float, float, float]) -> Volume:
    return Volume(array, np.diag([*spacing, 1.0]))


def test_overlaps_by_hand():
    np.testing.assert_allclose(overlaps(3, 2), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]], rtol=1e-6)
    np.testing.assert_allclose(overlaps(2, 4), [[1, 0], [1, 0], [0, 1], [0, 1]], rtol=1e-6)


@pytest.mark.parametrize(("source", "target"), [(7, 3), (3, 7), (5, 5), (1, 4), (4, 1)])
def test_overlaps_weights_sum_to_one(source, target):
    np.testing.assert_allclose(overlaps(source, target).sum(axis=1), 1, rtol=1e-5)


def test_whole_cells_are_means_of_blocks():
    array = np.random.default_rng(0).integers(-1000, 1000, (4, 6, 9)).astype(np.int16)
    scan = to_working_grid(volume(array, (1.5, 1.0, 1.0)), 3.0)
    assert scan.spacing == pytest.approx((3, 3, 3))
    blocks = array.reshape(2, 2, 2, 3, 3, 3).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(scan.hu, blocks, rtol=1e-4, atol=0.05)


def test_field_of_view_and_mean_are_kept():
    array = np.random.default_rng(1).normal(0, 100, (7, 11, 13)).astype(np.float32)
    scan = to_working_grid(volume(array, (5.0, 0.8, 1.3)), 3.0)
    extent = np.multiply(scan.hu.shape, scan.spacing)
    np.testing.assert_allclose(extent, np.multiply(array.shape, (5.0, 0.8, 1.3)))
    assert scan.hu.mean() == pytest.approx(array.mean(), abs=1e-3)


def test_tiny_volume_keeps_a_cell():
    scan = to_working_grid(volume(np.full((1, 2, 1), 40, np.int16), (0.5, 0.5, 0.5)), 3.0)
    assert scan.hu.shape == (1, 1, 1)
    assert scan.hu.item() == pytest.approx(40)
    assert scan.spacing == pytest.approx((0.5, 1.0, 0.5))


def test_labels_go_back_to_the_cells_that_cover_them():
    labels = np.array([[[1, 2]]], np.uint8)
    assert to_volume_grid(labels, (1, 1, 5)).tolist() == [[[1, 1, 2, 2, 2]]]
    assert to_volume_grid(labels, (2, 1, 1)).tolist() == [[[2]], [[2]]]


def test_scan_measures():
    scan = Scan(np.zeros((2, 3, 4), np.float32), (2.0, 2.5, 1.6))
    assert scan.voxel == pytest.approx(2.0)
    assert scan.voxels(1.0) == 125
    assert scan.voxels(1e-9) == 1
    d, h, w = scan.millimetres()
    assert d.ravel().tolist() == [1.0, 3.0]
    assert h.ravel().tolist() == [1.25, 3.75, 6.25]
    assert w.shape == (1, 1, 4)


def test_smooth_keeps_a_constant():
    scan = Scan(np.full((4, 5, 6), 37, np.float32), (3.0, 2.0, 1.0))
    np.testing.assert_allclose(smooth(scan), 37, rtol=1e-5)
