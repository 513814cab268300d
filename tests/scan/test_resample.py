import itertools
from fractions import Fraction

import numpy as np
import pytest
import SimpleITK
import torch
from torch.nn import functional as F

from ct3dlib.scan.resample import (
    Rounding,
    covered,
    resample,
    resample_to,
    resampled_shape,
    resize,
    straighten,
)
from ct3dlib.scan.volume import Volume

AXIAL = np.array([[0, 0, 0.7, -5], [0, 0.8, 0, 6], [2.5, 0, 0, 7], [0, 0, 0, 1.0]])


def to_itk(volume: Volume) -> SimpleITK.Image:
    """Hand a volume with right angles to ITK, whose axes are x y z = W H D."""
    image = SimpleITK.GetImageFromArray(volume.array.astype(np.float32))
    axes = volume.affine[:3, [2, 1, 0]]
    spacing = np.linalg.norm(axes, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((axes / spacing).ravel().tolist())
    image.SetOrigin(volume.affine[:3, 3].tolist())
    return image


def by_itk(volume: Volume, grid: Volume, fill: float) -> np.ndarray:
    """Resample by ITK, linear, edges repeated."""
    image = SimpleITK.Resample(
        to_itk(volume),
        to_itk(grid),
        SimpleITK.Transform(),
        SimpleITK.sitkLinear,
        fill,
        SimpleITK.sitkFloat32,
        True,
    )
    return SimpleITK.GetArrayFromImage(image)


def line(values: list[float], size: int) -> list[float]:
    """Resize one row."""
    volume = Volume(np.array(values, dtype=np.float32).reshape(1, 1, -1), np.eye(4))
    return resize(volume, (1, 1, size)).array.ravel().tolist()


def test_resize_has_the_published_kernel():
    assert line([0, 10, 20, 30], 8) == [0, 2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 30]
    assert line([0, 10, 20, 30, 40, 55], 4) == [2.5, 17.5, 32.5, 51.25]


@pytest.mark.parametrize(
    ("count", "given", "target", "size"),
    [(133, 2.5, 1.5, 221), (5, 1.0, 0.75, 6), (4, 2.0, 1.5, 5), (1, 1.0, 9.0, 1), (2, 1.0, 9.0, 1)],
)
def test_resample_truncates_the_size(count, given, target, size):
    volume = Volume(np.zeros((count, 2, 2), np.int16), np.diag([given, 1, 1, 1]))
    assert resample(volume, (target, 1.0, 1.0)).shape == (size, 2, 2)


def test_resample_forgives_a_spacing_that_was_once_float32():
    spacing = float(np.float32(0.7)) * (1 - 1e-7)
    volume = Volume(np.zeros((500, 1, 1), np.int16), np.diag([spacing, 1, 1, 1]))
    assert resample(volume, (0.7, 1.0, 1.0)).shape == (500, 1, 1)


@pytest.mark.parametrize("matrix", [512, 768, 1024])
def test_sizes_of_real_scans_are_cut_off_as_exact_fractions_are(matrix):
    # CT-RATE: 144 to 500 mm of view on 512, 768 or 1024 rows; slices of 0.5 to 3 mm, 100 to 1617.
    def scan(count, spacing, length):
        array = np.broadcast_to(np.int16(0), (count, length, length))
        return Volume(array, np.diag([float(spacing), 1, 1, 1]))

    for millimetres in range(144, 501):
        spacing = Fraction(millimetres, matrix)
        found = resampled_shape(scan(matrix, spacing, 1), (0.75, 1.0, 1.0))
        assert found == (int(matrix * spacing / Fraction(3, 4)), 1, 1)
    for spacing in map(Fraction, ("0.5", "0.625", "0.7", "0.75", "0.8", "1", "1.25", "1.5", "3")):
        for count in range(100, 1618, 7):
            found = resampled_shape(scan(count, spacing, 1), (1.5, 1.0, 1.0))
            assert found == (int(count * spacing / Fraction(3, 2)), 1, 1)


@pytest.mark.parametrize("size", [(9, 11, 12), (31, 29, 40), (21, 30, 35), (7, 30, 35), (1, 1, 1)])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_resize_by_planes_equals_one_trilinear_pass(size, axes):
    whole = np.random.default_rng(4).integers(-1024, 3072, (21, 30, 35)).astype(np.int16)
    view = whole.transpose(axes)[::-1, :, ::-1]
    batch = torch.from_numpy(view.astype(np.float64))[None, None]
    want = F.interpolate(batch, size=size, mode="trilinear", align_corners=False)[0, 0].numpy()
    found = resize(Volume(view, AXIAL), size)
    assert found.array.dtype == np.float32
    np.testing.assert_allclose(found.array, want, rtol=0, atol=1e-3)
    rounded = resize(Volume(view, AXIAL), size, rounding=Rounding(np.int16, -1000, 2000))
    assert rounded.array.dtype == np.int16
    np.testing.assert_array_equal(rounded.array, np.rint(found.array).clip(-1000, 2000))


def test_resize_clips_before_it_interpolates():
    row = np.array([-3000, 3000], np.int16).reshape(1, 1, 2)
    volume = Volume(row, np.eye(4))
    clipped = resize(volume, (1, 1, 4), clip_first=(-1000.5, 1000.5))
    assert clipped.array.ravel().tolist() == [-1000.5, -500.25, 500.25, 1000.5]
    assert row.ravel().tolist() == [-3000, 3000]


def test_resample_refuses_spacing_zero():
    volume = Volume(np.zeros((2, 2, 2), np.int16), np.eye(4))
    with pytest.raises(ValueError, match="spacing must be positive"):
        resample(volume, (0.0, 1.0, 1.0))


def test_resample_keeps_the_field_of_view(oblique_affine):
    volume = Volume(np.zeros((13, 17, 19), np.int16), oblique_affine)
    out = resample(volume, (1.7, 1.1, 0.9))
    for corner in itertools.product((0, 1), repeat=3):
        before = oblique_affine @ [*(np.array(corner) * volume.shape - 0.5), 1]
        after = out.affine @ [*(np.array(corner) * out.shape - 0.5), 1]
        np.testing.assert_allclose(after, before, atol=1e-9)


def test_resample_equals_itk(oblique_affine):
    noise = np.random.default_rng(1).normal(0, 400, (13, 17, 19)).astype(np.float32)
    volume = Volume(noise, oblique_affine)
    out = resample(volume, (1.7, 1.1, 0.9))
    assert np.abs(out.array - by_itk(volume, out, 0)).max() < 0.01


def test_resample_to_an_oblique_grid_equals_itk(oblique_affine):
    noise = np.random.default_rng(2).normal(0, 400, (13, 17, 19)).astype(np.float32)
    volume = Volume(noise, AXIAL)
    target = oblique_affine.copy()
    target[:3, 3] = -3, 7, 9
    out = resample_to(volume, affine=target, shape=(8, 12, 11), fill=-1024)
    # ITK takes voxels just over the edge by another rule; all others must agree.
    index = np.indices(out.shape).reshape(3, -1)
    place = (np.linalg.inv(AXIAL) @ target @ np.vstack([index, np.ones(index.shape[1])]))[:3]
    inner = ((place > 0) & (place < np.array([[12], [16], [18]]))).all(axis=0).reshape(out.shape)
    assert inner.sum() > 300
    assert np.abs(out.array - by_itk(volume, out, -1024))[inner].max() < 0.01


def test_resample_to_equals_a_slow_sheared_lookup():
    rng = np.random.default_rng(3)
    sheared = AXIAL.copy()
    sheared[1, 0] = 0.9
    volume = Volume(rng.normal(0, 300, (5, 6, 7)).astype(np.float32), sheared)
    target = AXIAL.copy()
    target[:3, 3] += 0.3, 1.1, 1.3
    out = resample_to(volume, affine=target, shape=(4, 5, 6), fill=-7)
    for index in np.ndindex(out.shape):
        place = (np.linalg.inv(sheared) @ target @ (*index, 1))[:3]
        if (place < -0.5).any() or (place > np.array(volume.shape) - 0.5).any():
            assert out.array[index] == -7
            continue
        place = np.clip(place, 0, np.array(volume.shape) - 1)
        low = np.minimum(np.floor(place).astype(int), np.array(volume.shape) - 2)
        part = place - low
        want = 0.0
        for corner in itertools.product((0, 1), repeat=3):
            weight = np.prod(np.where(corner, part, 1 - part))
            want += weight * volume.array[tuple(low + corner)]
        assert out.array[index] == pytest.approx(want, abs=1e-3)


def test_nearest_keeps_labels_and_their_dtype():
    labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    volume = Volume(labels, AXIAL)
    finer = AXIAL @ np.diag([1, 1, 0.5, 1.0])
    finer[:3, 3] -= 0.25 * AXIAL[:3, 2]
    out = resample_to(volume, affine=finer, shape=(2, 3, 8), fill=0, nearest=True)
    assert out.array.dtype == np.uint8
    np.testing.assert_array_equal(out.array, np.repeat(labels, 2, axis=2))


def test_covered_by_hand():
    inside = covered(np.eye(4), (2, 1, 1), affine=np.diag([0.5, 1, 1, 1.0]), shape=(6, 1, 1))
    # Centres at 0, 0.5, 1, 1.5, 2, 2.5; the outer edge lies at 1.5.
    assert inside.ravel().tolist() == [True, True, True, True, False, False]


@pytest.mark.parametrize("degrees", [-18.5, 14.0, 30.0])
def test_straighten_puts_a_tilted_gantry_upright(degrees):
    # Values are linear in the world, so linear interpolation must give them back exactly.
    angle = np.deg2rad(degrees)
    tilted = np.eye(4)
    tilted[:3, :3] = np.array(
        [[0, 0, 0.7], [0, 0.7 * np.cos(angle), 0], [2.5, 0.7 * np.sin(angle), 0]]
    )
    tilted[:3, 3] = 5, -3, 100

    def world(affine, shape):
        index = np.indices(shape).reshape(3, -1)
        return (affine @ np.vstack([index, np.ones(index.shape[1])]))[:3]

    def values(points):
        return 3 * points[0] - 2 * points[1] + 5 * points[2]

    shape = (12, 24, 10)
    sheared = Volume(values(world(tilted, shape)).reshape(shape).astype(np.float32), tilted)
    out = straighten(sheared, fill=-9999)
    np.testing.assert_allclose(out.affine[:3, :3][[2, 1, 0]], np.diag(out.spacing), atol=1e-12)
    points = world(out.affine, out.shape)
    place = np.linalg.inv(tilted) @ np.vstack([points, np.ones(points.shape[1])])
    limit = np.array(shape)[:, None] - 1
    inner = ((place[:3] >= 0) & (place[:3] <= limit)).all(axis=0)
    beyond = ((place[:3] < -0.51) | (place[:3] > limit + 0.51)).any(axis=0)
    assert inner.sum() > 1000
    np.testing.assert_allclose(out.array.ravel()[inner], values(points)[inner], atol=0.01)
    assert (out.array.ravel()[beyond] == -9999).all()
    assert out.spacing[0] == pytest.approx(2.5 * np.cos(angle))
