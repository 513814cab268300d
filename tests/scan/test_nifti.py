import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image
from nibabel.nifti2 import Nifti2Image

from ct3dlib.errors import VolumeError
from ct3dlib.scan.nifti import read_nifti, write_nifti
from ct3dlib.scan.volume import Volume

ZERO = [1, 0, 0.8, 2.5, 0, 0, 0, 0]
RAS = np.array([[-0.7, 0, 0, 90], [0, -0.8, 0, 80], [0, 0, 2.5, -300], [0, 0, 0, 1]])


@pytest.fixture
def array():
    return np.random.default_rng(0).integers(-1000, 1000, (7, 6, 5)).astype(np.int16)


def refused(path, reason, match, **kwargs):
    with pytest.raises(VolumeError, match=match) as caught:
        read_nifti(path, **kwargs)
    assert caught.value.reason == reason
    assert str(path) in str(caught.value)


def header_of(array, **fields):
    """Return a NIfTI file's bytes with header fields set as they must not be."""
    header = Nifti1Image(array, RAS).header.copy()
    header["magic"], header["vox_offset"] = b"n+1", 352
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4) + array.tobytes("F")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_read_gives_lps_and_file_axes_reversed(tmp_path, array, name):
    nibabel.save(Nifti1Image(array, RAS), tmp_path / name)
    reading = read_nifti(tmp_path / name)
    np.testing.assert_array_equal(reading.volume.array, array.transpose(2, 1, 0))
    # Voxel (i, j, k) = (1, 2, 3) in RAS, its x and y turned round.
    want = np.array([90 - 0.7, 80 - 1.6, -300 + 7.5]) * (-1, -1, 1)
    np.testing.assert_allclose(reading.volume.affine @ (3, 2, 1, 1), [*want, 1], rtol=1e-6)
    assert reading.volume.array.dtype == np.int16
    assert (reading.slope, reading.intercept, reading.hu) == (None, None, None)
    assert len(reading.sha256) == 64


def test_nifti2_and_big_endian_read_the_same(tmp_path, array):
    nibabel.save(Nifti1Image(array, RAS), tmp_path / "a.nii")
    nibabel.save(Nifti2Image(array, RAS), tmp_path / "b.nii.gz")
    header = Nifti1Image(array, RAS).header.as_byteswapped(">")
    nibabel.save(Nifti1Image(array.astype(">i2"), RAS, header), tmp_path / "c.nii")
    want = read_nifti(tmp_path / "a.nii").volume
    for name in ("b.nii.gz", "c.nii"):
        volume = read_nifti(tmp_path / name).volume
        np.testing.assert_array_equal(volume.array, want.array)
        np.testing.assert_allclose(volume.affine, want.affine, rtol=1e-6)
        assert volume.array.dtype == np.dtype(np.int16)


@pytest.mark.parametrize(
    ("dtype", "comes"),
    [("u1", "i2"), ("i4", "i2"), ("u2", "i2"), ("f4", "f4"), ("f8", "f4")],
)
def test_integers_that_fit_become_int16_and_all_else_float32(tmp_path, array, dtype, comes):
    nibabel.save(Nifti1Image(np.abs(array // 8).astype(dtype), RAS), tmp_path / "a.nii")
    assert read_nifti(tmp_path / "a.nii").volume.array.dtype == np.dtype(comes)


def test_integers_beyond_int16_become_float32(tmp_path):
    large = np.full((2, 2, 2), 40000, np.uint16)
    nibabel.save(Nifti1Image(large, RAS), tmp_path / "a.nii")
    assert read_nifti(tmp_path / "a.nii").volume.array.tolist()[0][0] == [40000.0, 40000.0]


def test_header_scale_is_applied_once_and_reported(tmp_path, array):
    (tmp_path / "a.nii").write_bytes(header_of(array, scl_slope=2, scl_inter=-1024))
    reading = read_nifti(tmp_path / "a.nii")
    np.testing.assert_array_equal(reading.volume.array, array.T * 2.0 - 1024)
    assert (reading.slope, reading.intercept) == (2.0, -1024.0)


def test_trailing_singleton_axis_is_dropped(tmp_path, array):
    nibabel.save(Nifti1Image(array[..., None], RAS), tmp_path / "a.nii")
    assert read_nifti(tmp_path / "a.nii").volume.shape == (5, 6, 7)


def test_blank_header_takes_the_spacing_and_lps_axes(tmp_path, array):
    for affine in (np.eye(4), None):
        nibabel.save(Nifti1Image(array, affine), tmp_path / "a.nii.gz")
        reading = read_nifti(tmp_path / "a.nii.gz", spacing=(2.5, 0.8, 0.7))
        np.testing.assert_array_equal(reading.volume.array, array.transpose(2, 1, 0))
        np.testing.assert_allclose(
            reading.volume.affine, [[0, 0, 0.7, 0], [0, 0.8, 0, 0], [2.5, 0, 0, 0], [0, 0, 0, 1]]
        )
        assert reading.facts["blank_header"] is True


def test_header_is_believed_and_other_spacings_are_noted(tmp_path, array):
    (tmp_path / "a.nii").write_bytes(header_of(array, pixdim=[1, 0.7, 0.8, 2, 0, 0, 0, 0]))
    reading = read_nifti(tmp_path / "a.nii", spacing=(3.0, 0.8, 0.7))
    assert reading.volume.spacing == pytest.approx((2.5, 0.8, 0.7))
    assert reading.facts["metadata_spacing_differs"] == [3.0, 0.8, 0.7]
    assert reading.facts["header_spacing_differs"] == pytest.approx([2, 0.8, 0.7])
    same = read_nifti(tmp_path / "a.nii", spacing=(2.5, 0.8, 0.7))
    assert "metadata_spacing_differs" not in same.facts


def test_spacing_without_codes_is_used_and_noted(tmp_path, array):
    fields = {"sform_code": 0, "qform_code": 0, "pixdim": [1, 0.7, 0.8, 2.5, 0, 0, 0, 0]}
    (tmp_path / "a.nii").write_bytes(header_of(array, **fields))
    reading = read_nifti(tmp_path / "a.nii")
    assert reading.volume.spacing == pytest.approx((2.5, 0.8, 0.7))
    assert reading.facts["assumed_orientation"] is True


def test_sheared_sform_keeps_its_shear(tmp_path, array):
    sheared = RAS.copy()
    sheared[1, 2] = 0.8
    nibabel.save(Nifti1Image(array, sheared), tmp_path / "a.nii")
    np.testing.assert_allclose(
        read_nifti(tmp_path / "a.nii").volume.affine[:3, 0], (0, -0.8, 2.5), rtol=1e-6
    )


def test_missing_file(tmp_path):
    refused(tmp_path / "no.nii.gz", "FILE_MISSING", "no such file; correct the catalog")


def test_a_file_without_permission(tmp_path, array, monkeypatch):
    nibabel.save(Nifti1Image(array, np.diag([-1.0, -1.0, 2.0, 1.0])), tmp_path / "a.nii")

    def refuse(self, *args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    refused(tmp_path / "a.nii", "FILE_UNREADABLE", "no permission to read it; grant it")


def test_a_quaternion_longer_than_one(tmp_path, array):
    path = tmp_path / "a.nii"
    path.write_bytes(header_of(array, sform_code=0, qform_code=1, quatern_b=5))
    refused(path, "BAD_GEOMETRY", r"the qform's quaternion .* is longer than 1; write")
    path.write_bytes(header_of(array, sform_code=1, qform_code=1, quatern_b=5))
    reading = read_nifti(path)
    assert reading.facts["bad_qform"] is True
    np.testing.assert_allclose(reading.volume.spacing, (2.5, 0.8, 0.7), rtol=1e-6)


def test_sform_counts_and_a_qform_elsewhere_is_noted(tmp_path, array):
    image = Nifti1Image(array, None)
    sform = np.diag([-1.0, -1.0, 2.0, 1.0])
    image.set_sform(sform, code=1)
    for shift, noted in ((0.05, None), (3.0, 5.0)):
        qform = sform.copy()
        qform[:2, 3] = shift, 4 * shift / 3
        image.set_qform(qform, code=1)
        nibabel.save(image, tmp_path / "a.nii")
        reading = read_nifti(tmp_path / "a.nii")
        assert reading.facts.get("qform_differs_mm") == noted
        assert reading.volume.affine[:3, 3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("keep", [0, 30, 352, 480, 0.5, -8, -1])
def test_truncated_gzip(tmp_path, keep):
    array = np.random.default_rng(0).integers(-1000, 1000, (20, 30, 40)).astype(np.int16)
    path = tmp_path / "a.nii.gz"
    nibabel.save(Nifti1Image(array, RAS), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    refused(path, "FILE_TRUNCATED", "cut short.*fetch it again")


@pytest.mark.parametrize("keep", [0, 100, 352, 500, -1])
def test_truncated_plain_file(tmp_path, array, keep):
    path = tmp_path / "a.nii"
    path.write_bytes(header_of(array)[:keep])
    refused(path, "FILE_TRUNCATED", "cut short")


@pytest.mark.parametrize("where", [0.3, -5])
def test_damaged_gzip(tmp_path, where):
    array = np.random.default_rng(0).integers(-1000, 1000, (20, 30, 40)).astype(np.int16)
    path = tmp_path / "a.nii.gz"
    nibabel.save(Nifti1Image(array, RAS), path)
    damaged = bytearray(path.read_bytes())
    damaged[int(len(damaged) * where) if isinstance(where, float) else where] ^= 255
    path.write_bytes(damaged)
    refused(path, "FILE_UNREADABLE", "damaged|not a NIfTI file")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_other_bytes_are_no_nifti(tmp_path, name):
    (tmp_path / name).write_bytes(b"hello world " * 100)
    refused(tmp_path / name, "FILE_UNREADABLE", "not a NIfTI file")


def test_header_and_image_pair_is_refused(tmp_path, array):
    nibabel.save(nibabel.Nifti1Pair(array, RAS), tmp_path / "a.hdr")
    refused(tmp_path / "a.hdr", "FILE_UNREADABLE", "Nifti1Pair, wanted one NIfTI file")


def test_colours_are_refused(tmp_path):
    pixels = np.zeros((3, 3, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(Nifti1Image(pixels, RAS), tmp_path / "a.nii")
    refused(tmp_path / "a.nii", "NOT_SCALAR", "wanted one number per voxel; convert it")


def test_impossible_shapes_ask_for_no_memory(tmp_path, array):
    path = tmp_path / "a.nii"
    path.write_bytes(header_of(array, dim=[3, 20000, 20000, 20000, 1, 1, 1, 1]))
    refused(path, "TOO_LARGE", "8000000000000 voxels.*at most 4000000000")
    path.write_bytes(header_of(array, dim=[3, 2000, 2000, 900, 1, 1, 1, 1]))
    refused(path, "FILE_TRUNCATED", "cannot hold the 7200000352")
    bomb = tmp_path / "b.nii.gz"
    bomb.write_bytes(gzip.compress(path.read_bytes()))
    refused(bomb, "FILE_TRUNCATED", "cannot hold")
    path.write_bytes(header_of(array, dim=[3, -7, 6, 5, 1, 1, 1, 1]))
    refused(path, "FILE_UNREADABLE", r"states shape \(-7, 6, 5\)")


@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (3, 4)])
def test_other_numbers_of_axes(tmp_path, shape):
    nibabel.save(Nifti1Image(np.zeros(shape, np.int16), RAS), tmp_path / "a.nii")
    refused(tmp_path / "a.nii", "NOT_3D", r"axes .*wanted 3; split it")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_voxels_that_are_not_finite(tmp_path, value):
    values = np.zeros((3, 4, 5))
    values[1, 2, 3] = value
    nibabel.save(Nifti1Image(values, RAS), tmp_path / "a.nii.gz")
    refused(tmp_path / "a.nii.gz", "NAN_VOXELS", "1 voxels are not finite; mend or drop it")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"srow_x": [np.nan] * 4}, r"affine is singular or not finite: .*; write the header anew"),
        ({"srow_z": [0, 0, np.inf, 0]}, "affine is singular or not finite"),
        ({"srow_x": [0] * 4}, "affine is singular or not finite"),
        ({"srow_x": [-0.7, 0.8, 0, 0], "srow_y": [0, -0.01, 0, 0]}, "affine is singular: "),
        ({"srow_z": [0, 0, 2500, 0]}, r"2500 x 0\.8 x 0\.7 mm apart, wanted 0\.01 to 100 mm"),
        ({"srow_z": [0, 0, 0.001, 0]}, r"0\.001 x 0\.8 x 0\.7 mm apart"),
        ({"xyzt_units": 3}, "mm apart, wanted"),
        ({"sform_code": 0, "qform_code": 1, "pixdim": ZERO}, r"spacing \[0\.0, .*; write the"),
        ({"sform_code": 0, "qform_code": 0, "pixdim": ZERO}, "mm, wanted positive numbers"),
    ],
)
def test_geometry_that_is_none(tmp_path, array, fields, match):
    (tmp_path / "a.nii").write_bytes(header_of(array, **fields))
    refused(tmp_path / "a.nii", "BAD_GEOMETRY", match)


@pytest.mark.parametrize(("code", "millimetre"), [(1, 0.001), (3, 1000.0)])
def test_other_units_become_millimetres(tmp_path, array, code, millimetre):
    rows = {f"srow_{axis}": RAS[n] * millimetre for n, axis in enumerate("xyz")}
    steps = np.array([1 / millimetre, 0.7, 0.8, 2.5, 0, 0, 0, 0]) * millimetre
    (tmp_path / "a.nii").write_bytes(header_of(array, xyzt_units=code, pixdim=steps, **rows))
    (tmp_path / "b.nii").write_bytes(header_of(array))
    reading = read_nifti(tmp_path / "a.nii")
    want = read_nifti(tmp_path / "b.nii").volume.affine
    np.testing.assert_allclose(reading.volume.affine, want, rtol=1e-6)
    assert reading.facts["header_unit_mm"] == 1 / millimetre
    assert "header_spacing_differs" not in reading.facts


def test_blank_header_without_spacing(tmp_path, array):
    nibabel.save(Nifti1Image(array, None), tmp_path / "a.nii")
    refused(tmp_path / "a.nii", "NO_GEOMETRY", "states no geometry and no spacing is known")


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
@pytest.mark.parametrize("name", ["new/a.nii", "new/a.nii.gz"])
def test_write_and_read_back(tmp_path, oblique_affine, dtype, name):
    array = np.random.default_rng(0).integers(0, 200, (5, 6, 7)).astype(dtype)
    write_nifti(tmp_path / name, Volume(array, oblique_affine))
    image = nibabel.load(tmp_path / name)
    assert image.get_data_dtype() == dtype
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
    assert image.header["qform_code"] == 1
    back = read_nifti(tmp_path / name).volume
    np.testing.assert_array_equal(back.array, array)
    np.testing.assert_allclose(back.affine, oblique_affine, atol=1e-4)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [name[4:]]


def test_write_of_a_sheared_grid_leaves_the_qform_out(tmp_path, oblique_affine):
    sheared = oblique_affine.copy()
    sheared[1, 0] += 0.7
    write_nifti(tmp_path / "a.nii", Volume(np.zeros((2, 3, 4), np.int16), sheared))
    assert nibabel.load(tmp_path / "a.nii").header["qform_code"] == 0
    np.testing.assert_allclose(read_nifti(tmp_path / "a.nii").volume.affine, sheared, atol=1e-4)


def test_the_same_volume_gives_the_same_bytes(tmp_path, oblique_affine):
    volume = Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4), oblique_affine)
    write_nifti(tmp_path / "a.nii.gz", volume)
    write_nifti(tmp_path / "b.nii.gz", volume)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_write_refuses_other_types_and_endings(tmp_path):
    with pytest.raises(ValueError, match="dtype int64, wanted int16, uint8 or float32"):
        write_nifti(tmp_path / "a.nii", Volume(np.zeros((2, 2, 2), np.int64), np.eye(4)))
    with pytest.raises(ValueError, match=r"ends in \.nii or \.nii\.gz"):
        write_nifti(tmp_path / "a.mha", Volume(np.zeros((2, 2, 2), np.int16), np.eye(4)))
