import numpy as np
import pytest

from ct3dlib.datasets.phantom_canvas import Canvas, paint_tubes
from ct3dlib.datasets.phantom_shapes import Tube, capsule, ellipsoid, smooth_union
from ct3dlib.datasets.phantom_space import Coordinates, Field, Grid, Pose


def still_pose() -> Pose:
    """A pose that changes nothing: scale 1, no warp."""
    field = Field(np.zeros((12, 12, 12), np.float32), -330.0, 60.0)
    return Pose((1.0, 1.0, 1.0), (field, field, field), 1.0)


def point(x: float, y: float, z: float) -> Coordinates:
    one = np.ones(1, np.float32)
    return Coordinates(one * np.float32(x), one * np.float32(y), one * np.float32(z))


def test_affine_maps_voxels_to_lps() -> None:
    grid = Grid((3, 4, 5), (5.0, 0.7, 0.9), (-10.0, -20.0, -30.0))
    voxel = np.array([2, 3, 4, 1])
    np.testing.assert_allclose(grid.affine @ voxel, (-10 + 3.6, -20 + 2.1, -30 + 10, 1))
    np.testing.assert_allclose(grid.axes.x.ravel(), [-10, -9.1, -8.2, -7.3, -6.4], rtol=1e-6)


def test_box_holds_voxels_between_corners() -> None:
    grid = Grid((10, 20, 30), (4.0, 2.0, 1.0), (0.0, 0.0, 0.0))
    assert grid.box((2.5, 4.0, -9.0), (5.0, 9.9, 8.0)) == (slice(0, 3), slice(2, 5), slice(3, 6))
    assert grid.box((40.0, 0.0, 0.0), (50.0, 9.0, 9.0)) is None


def test_field_on_grid_equals_field_at_points() -> None:
    field = Field.draw(np.random.default_rng(3), 30.0, reach=100.0)
    grid = Grid((3, 4, 5), (21.0, 17.0, 13.0), (-31.0, -25.0, -20.0))
    axes = grid.axes
    points = np.array(
        [(x, y, z) for z in axes.z.ravel() for y in axes.y.ravel() for x in axes.x.ravel()],
        np.float64,
    )
    np.testing.assert_allclose(field.on(axes).ravel(), field.at(points), atol=2e-5)


def test_field_is_standard_and_smooth() -> None:
    field = Field.draw(np.random.default_rng(0), 20.0, reach=200.0)
    points = np.random.default_rng(1).uniform(-190, 190, (20000, 3))
    values = field.at(points)
    assert abs(values.mean()) < 0.1
    assert values.std() == pytest.approx(1, abs=0.07)
    assert np.abs(field.at(points + 0.2) - values).max() < 0.1


def test_pose_round_trip() -> None:
    rng = np.random.default_rng(5)
    warp = (Field.draw(rng, 85.0), Field.draw(rng, 85.0), Field.draw(rng, 85.0))
    pose = Pose((0.9, 1.05, 1.1), warp, 3.0)
    points = rng.uniform(-100, 100, (50, 3))
    world = pose.to_world(points)
    for want, (x, y, z) in zip(points, world, strict=True):
        got = pose.to_template(point(x, y, z))
        np.testing.assert_allclose([axis.item() for axis in got], want, atol=0.02)


def test_distances_by_hand() -> None:
    assert ellipsoid(point(0, 0, 7), (0, 0, 0), radii=(2, 3, 4)).item() == pytest.approx(
        3, abs=1e-5
    )
    assert ellipsoid(point(0, 0, 0), (0, 0, 0), radii=(2, 3, 4)).item() == pytest.approx(
        -2, abs=1e-2
    )
    tube = Tube((0, 0, 0), (10, 0, 0), (2, 4))
    assert capsule(point(5, 7, 0), tube).item() == pytest.approx(7 - 3)
    assert capsule(point(-3, 4, 0), tube).item() == pytest.approx(5 - 2)
    far = smooth_union(np.float32([5]), np.float32([50]), width=10.0)
    same = smooth_union(np.float32([5]), np.float32([5]), width=10.0)
    assert (far.item(), same.item()) == (5, 2.5)


def test_paint_keeps_volume_of_a_ball() -> None:
    grid = Grid((24, 40, 40), (2.0, 1.0, 1.0), (-19.7, -19.7, -23.0))
    canvas = Canvas(grid, still_pose())
    window = canvas.world((-15, -15, -15), (15, 15, 15))
    assert window is not None
    window.paint(ellipsoid(window.at, (0, 0, 0), radii=(9, 9, 9)), 0.0, region=8)
    volume = ((canvas.hu + 1000) / 1000).sum() * 2
    assert volume == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.02)
    assert (canvas.regions == 8).sum() * 2 == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.03)


def test_thin_tube_keeps_its_volume_on_any_grid() -> None:
    tube = Tube((-20.0, 3.0, -12.0), (18.0, -9.0, 14.0), (0.6, 0.6))
    length = float(np.linalg.norm(np.subtract(tube.stop, tube.start)))
    for spacing in ((2.0, 2.0, 2.0), (5.0, 1.7, 1.7)):
        shape = tuple(int(90 / step) for step in spacing)
        canvas = Canvas(
            Grid((shape[0], shape[1], shape[2]), spacing, (-45, -45, -45)), still_pose()
        )
        paint_tubes(canvas, [tube], hu=0.0)
        volume = ((canvas.hu + 1000) / 1000).sum() * np.prod(spacing)
        assert volume == pytest.approx(np.pi * 0.6**2 * length, rel=0.01)
