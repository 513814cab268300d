import itertools

import numpy as np
import pytest

from ct3dlib.errors import VolumeError
from ct3dlib.scan.geometry import (
    canonical,
    center_start,
    check_grid,
    check_target,
    crop_or_pad,
    orientation,
    reorient,
    shear,
)
from ct3dlib.scan.volume import Volume

CANONICAL = np.array([[0, 0, 0.7, -5], [0, 0.8, 0, 6], [2.5, 0, 0, 7], [0, 0, 0, 1.0]])


def at_world(volume: Volume, x: float, y: float, z: float) -> float:
    """Look a value up by its place in the world."""
    d, h, w = np.rint(np.linalg.inv(volume.affine) @ (x, y, z, 1))[:3].astype(int)
    return float(volume.array[d, h, w])


def test_orientation_of_canonical_grid_changes_nothing():
    how = orientation(CANONICAL)
    assert how.permutation == (0, 1, 2)
    assert how.flips == (False, False, False)


def test_orientation_of_sagittal_feet_first_grid():
    # Axes run to: left (slices), inferior, anterior. D comes from axis 1 against it.
    affine = np.eye(4)
    affine[:3, :3] = np.array([[3, 0, 0], [0, 0, -0.5], [0, -0.6, 0]])
    how = orientation(affine)
    assert how.permutation == (1, 2, 0)
    assert how.flips == (True, True, False)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_canonical_keeps_every_voxel_in_place_for_all_48_orientations(axes, signs, oblique_affine):
    shape = (4, 5, 6)
    affine = oblique_affine.copy()
    affine[:3, :3] = (oblique_affine[:3, :3] * np.array(signs))[:, axes]
    volume = Volume(np.arange(120, dtype=np.int16).reshape(shape), affine)
    upright = canonical(volume)
    directions = upright.affine[:3, :3] / np.array(upright.spacing)
    assert (directions[[2, 1, 0], [0, 1, 2]] > 0.9).all()
    assert upright.spacing == pytest.approx((2.5, 0.8, 0.7))
    for index in np.ndindex(shape):
        world = affine @ (*index, 1)
        assert at_world(upright, *world[:3]) == volume.array[index]


def test_canonical_array_is_contiguous_so_that_torch_takes_it():
    flipped = CANONICAL @ np.diag([1, -1, -1, 1.0])
    assert canonical(Volume(np.zeros((2, 3, 4)), flipped)).array.flags.c_contiguous


def test_reorient_undoes_itself():
    volume = Volume(np.arange(24).reshape(2, 3, 4), CANONICAL @ np.diag([-1, 1, -1, 1.0]))
    upright = canonical(volume)
    back = reorient(upright, orientation(upright.affine))
    np.testing.assert_array_equal(back.array, upright.array)


def test_shear_of_a_tilted_gantry_is_the_sine_of_its_angle(oblique_affine):
    assert shear(oblique_affine) == pytest.approx(0, abs=1e-12)
    tilted = CANONICAL.copy()
    tilted[:3, 0] = 0, 2.5 * np.sin(0.3), 2.5 * np.cos(0.3)
    assert shear(tilted) == pytest.approx(np.sin(0.3))


@pytest.mark.parametrize(
    ("column", "match"),
    [
        (
            (np.inf, 0, 2.5),
            "a.nii: its affine is singular or not finite: .*; write the header anew",
        ),
        ((0, 0, 0), "singular or not finite"),
        ((0, 0.8, 0.001), r"is singular: "),
        ((0, 0, 101), r"101 x 0\.8 x 0\.7 mm apart, wanted 0\.01 to 100 mm"),
        ((0, 0, 0.009), r"0\.009 x 0\.8 x 0\.7 mm apart"),
    ],
)
def test_what_is_no_grid_of_a_scan_is_refused(column, match):
    affine = CANONICAL.copy()
    affine[:3, 0] = column
    with pytest.raises(VolumeError, match=match) as caught:
        check_grid("a.nii", affine)
    assert caught.value.reason == "BAD_GEOMETRY"


@pytest.mark.parametrize("column", [(0, 0, 100), (0, 0, 0.01), (0, 4.3, 2.5)])
def test_what_may_be_a_grid_is_not_refused(column):
    affine = CANONICAL.copy()
    affine[:3, 0] = column
    check_grid("a.nii", affine)


def test_a_grid_that_no_memory_holds_is_refused_before_it_is_made():
    assert check_target((1000, 2000, 2000)) == (1000, 2000, 2000)
    with pytest.raises(VolumeError, match=r"4000004000 voxels .* use a coarser recipe") as caught:
        check_target((1_000_001, 2000, 2))
    assert caught.value.reason == "TOO_LARGE"


@pytest.mark.parametrize(
    ("length", "target", "start"),
    [(5, 2, 1), (7, 4, 1), (4, 4, 0), (2, 5, -1), (4, 7, -1), (1, 4, -1), (278, 241, 18)],
)
def test_center_start_puts_the_odd_voxel_after(length, target, start):
    assert center_start((length, 3, 3), (target, 3, 3)) == (start, 0, 0)


def test_crop_or_pad_by_hand():
    volume = Volume(np.arange(1, 9, dtype=np.int16).reshape(2, 2, 2), CANONICAL)
    box = crop_or_pad(volume, (-1, 1, 0), shape=(2, 1, 3), fill=-9)
    assert box.array.tolist() == [[[-9, -9, -9]], [[3, 4, -9]]]
    np.testing.assert_allclose(box.affine[:3, 3], (-5, 6 + 0.8, 7 - 2.5))
    np.testing.assert_array_equal(box.affine[:3, :3], CANONICAL[:3, :3])


def test_crop_outside_the_volume_is_all_fill():
    volume = Volume(np.ones((2, 2, 2), dtype=np.int16), CANONICAL)
    assert (crop_or_pad(volume, (5, 0, 0), shape=(2, 2, 2), fill=7).array == 7).all()
    assert (crop_or_pad(volume, (-5, 0, 0), shape=(2, 2, 2), fill=7).array == 7).all()
