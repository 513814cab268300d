import numpy as np
import pytest

from ct3dlib.regions.tubes import disc, find_tube, paint_tube

SPACING = (4.0, 2.0, 2.5)


def test_disc_by_hand():
    circle = disc(np.array([1, 1]), 2.0, (3, 3), SPACING)
    assert circle.tolist() == [[False, True, False]] * 3


def test_tube_follows_a_leaning_cylinder():
    depth, y, x = np.ogrid[:20, :40, :36]
    rows = 15 + 0.4 * depth
    columns = 20 - 0.3 * depth
    inside = np.hypot((y - rows) * SPACING[1], (x - columns) * SPACING[2]) < 11
    fullness = inside.astype(np.float32)
    fullness[9] = 0  # a slice without it does not lead the path astray
    window = np.ones_like(inside)
    tube = find_tube(fullness, (7.0, 11.0, 15.0), window=window, spacing=SPACING)
    kept = np.arange(20) != 9
    assert np.abs(tube.path[:, 0] - rows.ravel()).max() < 1.5
    assert np.abs(tube.path[:, 1] - columns.ravel()).max() < 1.5
    assert set(tube.radius.tolist()) == {11.0}
    assert tube.score[kept].min() > 0.8
    painted = paint_tube(tube, inside.shape, SPACING)
    overlap = 2 * (painted & inside).sum() / (painted.sum() + inside.sum())
    assert overlap > 0.85


def test_tube_stays_in_its_window():
    fullness = np.zeros((5, 30, 30), np.float32)
    y, x = np.ogrid[:30, :30]
    fullness[:, np.hypot(y - 8, x - 8) < 4] = 1
    fullness[:, np.hypot(y - 22, x - 22) < 4] = 1
    window = np.zeros(fullness.shape, bool)
    window[:, 15:, 15:] = True
    tube = find_tube(fullness, (8.0,), window=window, spacing=(2.0, 2.0, 2.0))
    assert tube.path == pytest.approx(np.full((5, 2), 22), abs=1)


def test_tube_that_is_not_round_is_not_painted():
    tube = find_tube(
        np.full((5, 20, 20), 1, np.float32),
        (6.0,),
        window=np.ones((5, 20, 20), bool),
        spacing=(2.0, 2.0, 2.0),
    )
    assert not paint_tube(tube, (5, 20, 20), (2.0, 2.0, 2.0)).any()
