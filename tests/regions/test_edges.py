import numpy as np
import pytest

from ct3dlib.metrics.overlap import union_dice
from ct3dlib.regions.edges import to_volume_grid_with_edges
from ct3dlib.regions.label_map import LUNGS
from ct3dlib.regions.working_grid import Scan, to_volume_grid, to_working_grid
from tests.regions.analytic_chest import chest


def line(*values: float) -> np.ndarray:
    """A volume of one row."""
    return np.array(values, np.float32)[None, None]


def cut(labels: list[int], fine: list[float]) -> list[int]:
    """Labels of single voxels, three to a cell."""
    array = line(*fine)
    scan = Scan(array.reshape(1, 1, -1, 3).mean(axis=-1), (3.0, 3.0, 3.0))
    return to_volume_grid_with_edges(np.uint8(labels)[None, None], scan, array).ravel().tolist()


def test_cells_of_mixed_hu_are_divided():
    air, soft = -850, 40
    fine = [air, air, air, air, air, soft, air, soft, soft, soft, soft, soft]
    assert cut([1, 1, 8, 8], fine) == [1, 1, 1, 1, 1, 8, 1, 8, 8, 8, 8, 8]


def test_tissue_without_a_label_stays_without():
    assert cut([3, 3, 0], [-850, -850, -850, -850, -850, 40, 40, 40, 40]) == [3] * 5 + [0] * 4


def test_pure_cells_stay():
    nodule = [-850, -850, -850, 40, 40, 40, 30, 30, 30]
    assert cut([1, 1, 0], nodule) == [1] * 6 + [0] * 3


def test_bone_does_not_spread_and_bowel_keeps_its_gas():
    assert cut([1, 20], [-850, -850, 40, 300, 300, 300]) == [1, 1, 0, 20, 20, 20]
    assert cut([2, 17], [-850, -850, -850, 40, -950, -950]) == [2, 2, 2, 17, 17, 17]


def test_vessels_away_from_the_edge_stay_lung():
    fine = [-850] * 4 + [40] + [-850] * 4
    assert cut([1, 1, 1], fine) == [1] * 9


def test_without_air_it_is_the_plain_way():
    rng = np.random.default_rng(0)
    labels = rng.choice(np.uint8([0, 8, 15, 20]), (3, 4, 5))
    scan = Scan(rng.uniform(-1000, 300, labels.shape).astype(np.float32), (3.0, 3.0, 3.0))
    array = rng.integers(-1000, 300, (7, 9, 8)).astype(np.int16)
    edges = to_volume_grid_with_edges(labels, scan, array)
    np.testing.assert_array_equal(edges, to_volume_grid(labels, array.shape))


def test_a_fine_grid_is_nearer_to_the_truth():
    volume, truth = chest((2.0, 1.3, 1.2))
    scan = to_working_grid(volume, 4.0)
    labels = to_volume_grid(truth, scan.hu.shape)
    plain = union_dice(to_volume_grid(labels, volume.shape), truth, LUNGS)
    edges = union_dice(to_volume_grid_with_edges(labels, scan, volume.array), truth, LUNGS)
    assert 1 - edges < 0.4 * (1 - plain)
    assert edges == pytest.approx(1, abs=0.015)
