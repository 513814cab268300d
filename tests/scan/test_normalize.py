import itertools

import nibabel
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image

from ct3dlib.config import RecipeSpec
from ct3dlib.errors import VolumeError
from ct3dlib.scan.dicom import read_dicom
from ct3dlib.scan.geometry import center_start, crop_or_pad
from ct3dlib.scan.intensity import apply_window, to_hu
from ct3dlib.scan.nifti import read_nifti, write_nifti
from ct3dlib.scan.normalize import Record, body_center, normalize, restore, validity
from ct3dlib.scan.resample import resample
from ct3dlib.scan.volume import Volume

FINE = RecipeSpec(spacing=(1.5, 1.0, 1.0), min_slices=1)


def axial(spacing):
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = *spacing, 1
    return affine


def btb3d(slope, intercept, *, spacing, shape):
    """Bring a[i, j, k] = 100 i + 10 j + k to BTB3D's input, axes (k, i, j), in float."""
    i, j, k = np.indices((5, 6, 4))
    hu = (slope * (100 * i + 10 * j + k) + intercept).transpose(2, 0, 1).astype(np.float32)
    resampled = resample(Volume(hu, axial(spacing)), (1.5, 0.75, 0.75))
    seen = apply_window(resampled.array, (-1000.0, 1000.0), onto=(-1.0, 1.0))
    start = center_start(resampled.shape, shape)
    boxed = crop_or_pad(Volume(seen, resampled.affine), start, shape=shape, fill=-1)
    return resampled.shape, boxed.array


def test_golden_a_of_btb3d():
    size, out = btb3d(1, -300, spacing=(2.0, 1.0, 1.0), shape=(9, 10, 8))
    assert size == (5, 6, 8)
    assert out[2, 3, 4] == pytest.approx(-0.19625, abs=1e-6)
    row = [-0.140167, -0.133917, -0.126417, -0.118917, -0.111417, -0.103917, -0.096417, -0.090167]
    np.testing.assert_allclose(out[4, 4], row, atol=1e-6)
    assert out.sum(dtype=np.float64) == pytest.approx(-497.64, abs=1e-3)
    assert (out[:2] == -1).all()
    assert (out[:, :2] == -1).all()
    assert (out[2, 2] > -1).all()


def test_golden_b_of_btb3d():
    size, out = btb3d(2, -1024, spacing=(1.0, 0.5, 0.5), shape=(3, 2, 2))
    assert size == (2, 3, 4)
    np.testing.assert_allclose(out[0], [[-0.921333, -0.891333], [-0.588, -0.558]], atol=1e-6)
    assert (out[2] == -1).all()


def test_normalize_rounds_and_clips_to_int16():
    hu = np.array([-2000, -1024.4, -0.5, 0.5, 1.5, 99.6, 5000], np.float32).reshape(1, 1, 7)
    array = np.repeat(hu, 3, axis=0)
    volume, record = normalize(Volume(array, axial((1, 1, 1))), RecipeSpec(min_slices=1))
    assert volume.array.dtype == np.int16
    assert volume.array[0, 0].tolist() == [-1024, -1024, 0, 0, 2, 100, 3071]
    assert (record.start, record.shape, record.lost) == ((0, 0, 0), (3, 1, 7), 0)


def blob(affine, shape, world):
    """Return a soft ball of 9 mm around a place in the world, in air."""
    index = np.stack([*np.indices(shape), np.ones(shape)]).reshape(4, -1)
    away = np.linalg.norm((affine @ index)[:3].T - world, axis=1).reshape(shape)
    return (-1000 + 1100 * np.exp(-((away / 6) ** 2) / 2)).astype(np.float32)


def middle_of(volume):
    """Return the world position of what is not air."""
    weights = np.clip(volume.array.astype(np.float64) + 990, 0, None)
    index = np.array([(weights * axis).sum() for axis in np.indices(volume.shape)]) / weights.sum()
    return volume.affine[:3, :3] @ index + volume.affine[:3, 3]


SIGNS = [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (-1, -1, -1)]
AXES = [(0, 1, 2), (2, 0, 1), (1, 0, 2)]


@pytest.mark.parametrize(("signs", "axes"), list(itertools.product(SIGNS, AXES)))
@pytest.mark.parametrize("tilt", [0.0, 0.3])
def test_landmark_survives_reader_recipe_and_way_back(tmp_path, oblique_affine, signs, axes, tilt):
    affine = oblique_affine.copy()
    affine[:3, 0] += tilt * affine[:3, 1] * 2.5 / 0.8
    affine[:3, :3] = (affine[:3, :3] * np.array(signs))[:, axes]
    shape = tuple(np.array((22, 66, 74))[list(axes)])
    world = (affine @ (*(np.array(shape) * (0.4, 0.55, 0.6)), 1))[:3]
    path = tmp_path / "a.nii.gz"
    write_nifti(path, Volume(blob(affine, shape, world), affine))
    source = read_nifti(path).volume
    recipe = RecipeSpec(spacing=(2.0, 1.0, 0.9), shape=(28, 60, 64), min_slices=8)
    stored, record = normalize(source, recipe)
    assert stored.shape == (28, 60, 64)
    assert np.linalg.norm(middle_of(stored) - world) < 0.5 * min(stored.spacing)
    back = restore(stored, record)
    assert back.shape == source.shape
    np.testing.assert_allclose(back.affine, source.affine)
    known = validity(record).array == 1
    assert np.linalg.norm(middle_of(back) - world) < 0.5 * min(source.spacing)
    assert np.abs(back.array[known] - source.array[known]).mean() < 3
    assert (back.array[~known] == -1024).all()


def test_the_whole_way_to_a_file_keeps_shape_affine_and_orientation(tmp_path):
    affine = np.array([[0, 0.8, 0, 5], [-0.7, 0, 0, 6], [0, 0, -2.5, 7], [0, 0, 0, 1]])
    array = np.random.default_rng(0).integers(-1000, 1000, (30, 26, 20)).astype(np.int16)
    nibabel.save(Nifti1Image(array, affine), tmp_path / "in.nii.gz")
    stored, record = normalize(read_nifti(tmp_path / "in.nii.gz").volume, RecipeSpec())
    write_nifti(tmp_path / "out.nii.gz", restore(stored, record))
    before, after = (nibabel.load(tmp_path / name) for name in ("in.nii.gz", "out.nii.gz"))
    assert nibabel.aff2axcodes(after.affine) == nibabel.aff2axcodes(before.affine)
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(after.dataobj), array)


def test_restore_fills_what_was_cropped_and_validity_says_where(phantom):
    source = Volume(phantom, axial((2.5, 1.0, 1.0)))
    stored, record = normalize(source, RecipeSpec(shape=(20, 50, 30)))
    assert record.start == (2, -5, 9)
    back = restore(stored, record, fill=-777)
    mask = validity(record)
    want = np.zeros(phantom.shape, np.uint8)
    want[2:22, :, 9:39] = 1
    np.testing.assert_array_equal(mask.array, want)
    np.testing.assert_array_equal(back.array, np.where(want, phantom, -777))
    assert back.array.dtype == np.int16
    body = phantom > -500
    assert record.lost == pytest.approx(1 - (body & (want == 1)).sum() / body.sum())


def test_restore_of_labels_takes_the_nearest(phantom):
    source = Volume(phantom, axial((2.5, 1.0, 1.0)))
    _, record = normalize(source, RecipeSpec(spacing=(5.0, 2.0, 2.0)))
    labels = np.random.default_rng(0).integers(0, 21, record.shape).astype(np.uint8)
    grid = Volume(labels, np.array(record.affine), "uint8")
    back = restore(grid, record, fill=0, nearest=True)
    np.testing.assert_array_equal(back.array, np.kron(labels, np.ones((2, 2, 2), np.uint8)))


def test_restore_refuses_another_shape(phantom):
    _, record = normalize(Volume(phantom, axial((2.5, 1.0, 1.0))), RecipeSpec())
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\), its record \(24, 40, 48\)"):
        restore(Volume(np.zeros((2, 2, 2), np.int16), np.eye(4)), record)


def test_record_survives_json(phantom, oblique_affine):
    _, record = normalize(Volume(phantom, oblique_affine), FINE)
    assert Record.model_validate_json(record.model_dump_json()) == record
    assert not record.straightened


def test_size_recipe_keeps_the_field_of_view(phantom):
    source = Volume(phantom, axial((2.5, 1.0, 1.0)))
    stored, record = normalize(source, RecipeSpec(size=(16, 20, 24)))
    assert stored.shape == (16, 20, 24)
    np.testing.assert_allclose(stored.spacing, (24 * 2.5 / 16, 2, 2))
    assert validity(record).array.all()


def test_body_centre_finds_the_body_beside_a_table():
    hu = np.full((20, 60, 80), -1000, np.int16)
    hu[:, 10:30, 40:70] = 40
    hu[:, 50:51, :] = 300
    volume = Volume(hu, axial((4.0, 4.0, 4.0)))
    np.testing.assert_allclose(body_center(volume), (9.5, 19.5, 54.5))
    stored, record = normalize(volume, RecipeSpec(shape=(20, 30, 40), center="body"))
    # Middle 19.5 and 54.5 make starts 5 and 35; 35 + 40 voxels still fit.
    assert record.start == (0, 5, 35)
    assert record.lost == pytest.approx(20 * 80 / (20 * (20 * 30 + 80)))
    edge, _ = normalize(volume, RecipeSpec(shape=(24, 30, 60), center="body"))
    assert edge.shape == (24, 30, 60)
    assert (stored.array[:, 5:25, 5:35] == 40).all()


def test_body_centre_of_air_is_the_middle():
    air = Volume(np.full((3, 5, 7), -1000, np.int16), axial((4.0, 4.0, 4.0)))
    assert body_center(air) == (1, 2, 3)


@pytest.mark.parametrize(
    ("shape", "reason", "match"),
    [
        ((1, 40, 40), "SINGLE_SLICE", "a single slice, no volume; drop it from the catalog"),
        ((7, 40, 40), "TOO_FEW_SLICES", "7 slices, need at least 8; drop it .* min_slices"),
    ],
)
def test_stubs_are_refused(shape, reason, match):
    with pytest.raises(VolumeError, match=match) as caught:
        normalize(Volume(np.zeros(shape, np.int16), axial((1, 1, 1))), RecipeSpec())
    assert caught.value.reason == reason


def test_slices_are_counted_along_the_patient_not_the_file():
    sagittal = np.array([[2, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    stored, _ = normalize(Volume(np.zeros((3, 40, 30), np.int16), sagittal), RecipeSpec())
    assert stored.shape == (40, 30, 3)


def test_only_hu_are_normalised():
    with pytest.raises(ValueError, match="not values of domain 'mr'"):
        normalize(Volume(np.zeros((9, 9, 9), np.int16), np.eye(4), "mr"), RecipeSpec())


def test_four_files_of_one_phantom_give_one_array(tmp_path, phantom, write_slice):
    spacing = (2.5, 0.8, 0.7)
    file_axes = phantom.transpose(2, 1, 0)
    stated = np.diag([-0.7, -0.8, 2.5, 1.0])
    blank = {"philips": -1024.0, "healthineers": -8192.0}
    readings = {}
    for name, intercept in blank.items():
        path = tmp_path / f"{name}.nii.gz"
        nibabel.save(Nifti1Image((file_axes - intercept).astype(np.float32), None), path)
        readings[name] = read_nifti(path, spacing=spacing), intercept
    nibabel.save(Nifti1Image(file_axes, stated), tmp_path / "fixed.nii.gz")
    readings["fixed"] = read_nifti(tmp_path / "fixed.nii.gz", spacing=spacing), -1024.0
    files = []
    for k, plane in enumerate(phantom):
        slope, intercept = 0.5 + 0.1 * (k % 3), -1024.0 - k
        stored = np.rint((plane - intercept) / slope).astype(np.uint16)
        files.append(
            write_slice(f"{k}.dcm", stored, 2.5 * k, RescaleSlope=slope, RescaleIntercept=intercept)
        )
    readings["dicom"] = read_dicom(files), -1024.0
    states, arrays = {}, {}
    for name, (reading, intercept) in readings.items():
        hu = to_hu(reading, slope=1.0, intercept=intercept, state="auto")
        states[name] = hu.state
        arrays[name] = normalize(hu.volume, FINE)[0].array.astype(np.int32)
    assert states == {
        "philips": "rescaled",
        "healthineers": "rescaled",
        "fixed": "hu",
        "dicom": "hu",
    }
    for name, array in arrays.items():
        assert np.abs(array - arrays["fixed"]).max() <= 1, name
    with pytest.raises(VolumeError, match="HU already"):
        to_hu(readings["fixed"][0], slope=1.0, intercept=-1024.0, state="stored")
