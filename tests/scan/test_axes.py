import numpy as np
import pytest

from ct3dlib.scan.axes import from_model, swapped, to_model
from ct3dlib.scan.geometry import orientation, reorient
from ct3dlib.scan.volume import Volume

# A NIfTI array (i, j, k) whose axes run to the left, posterior and superior: LPS mm.
NIFTI = np.arange(2 * 3 * 4).reshape(2, 3, 4)


def test_dwh_is_the_slices_of_an_lps_nifti_and_its_axes_as_stored():
    # Ours is D H W = z y x: the file's axes in reverse. BTB3D's is (k, i, j) = z x y.
    stored = NIFTI.transpose(2, 1, 0)
    np.testing.assert_array_equal(to_model(stored, "dwh"), NIFTI.transpose(2, 0, 1))
    np.testing.assert_array_equal(to_model(stored, "dhw"), stored)


def test_a_canonical_volume_of_an_lps_nifti_needs_no_flip():
    affine = np.diag([0.75, 0.75, 1.5, 1.0])
    stored = reorient(Volume(NIFTI, affine), orientation(affine)).array
    np.testing.assert_array_equal(to_model(stored, "dwh"), NIFTI.transpose(2, 0, 1))


@pytest.mark.parametrize("axes", ["dhw", "dwh"])
def test_the_way_back_undoes_the_way_in(axes):
    batch = np.random.default_rng(0).normal(size=(2, 1, 3, 4, 5))
    seen = to_model(batch, axes)
    np.testing.assert_array_equal(from_model(seen, axes), batch)
    assert seen.shape[2:] == swapped((3, 4, 5), axes)
    assert swapped(swapped((3, 4, 5), axes), axes) == (3, 4, 5)
