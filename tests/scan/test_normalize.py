import itertools

import nibabel
import numpy as np
import pytest
import yaml
from nibabel.nifti1 import Nifti1Image

from ct3dlib.config import RecipeSpec, load_config
from ct3dlib.errors import VolumeError
from ct3dlib.scan.body import body_box, body_center
from ct3dlib.scan.dicom import read_dicom
from ct3dlib.scan.intensity import apply_window, to_hu
from ct3dlib.scan.nifti import read_nifti, write_nifti
from ct3dlib.scan.normalize import Record, held_box, normalize, place, restore, validity
from ct3dlib.scan.volume import Volume

FINE = RecipeSpec(spacing=(1.5, 1.0, 1.0), min_slices=1)


def axial(spacing):
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = *spacing, 1
    return affine


def btb3d(slope, intercept, *, spacing, shape):
    """Bring a[i, j, k] = 100 i + 10 j + k to what BTB3D sees, axes (k, i, j), in float."""
    i, j, k = np.indices((5, 6, 4))
    hu = (slope * (100 * i + 10 * j + k) + intercept).transpose(2, 1, 0).astype(np.float32)
    depth, columns, rows = shape
    recipe = RecipeSpec(spacing=(1.5, 0.75, 0.75), shape=(depth, rows, columns), min_slices=1)
    placed, record = place(Volume(hu, axial(spacing)), recipe)
    seen = apply_window(placed.array, recipe.window, onto=recipe.range)
    size_z, size_y, size_x = record.resampled_shape
    return (size_z, size_x, size_y), seen.transpose(0, 2, 1)


def test_golden_a_of_btb3d():
    size, out = btb3d(1, -300, spacing=(2.0, 1.0, 1.0), shape=(9, 10, 8))
    assert size == (5, 6, 8)
    assert out.shape == (9, 10, 8)
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


def lerp_matrix(count, size):
    """Return the weights of linear interpolation with half-voxel centres, size x count."""
    places = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
    return np.clip(1 - np.abs(places[:, None] - np.arange(count)), 0, None)


@pytest.mark.parametrize("seed", range(20))
def test_float_recipe_equals_a_float64_reference(seed):
    rng = np.random.default_rng(seed)
    source = rng.integers(-1024, 1500, rng.integers(8, 30, 3)).astype(np.int16)
    spacing = rng.uniform(0.4, 3.0, 3)
    target = rng.uniform(0.6, 2.5, 3)
    shape = tuple(int(n) for n in rng.integers(8, 40, 3))
    recipe = RecipeSpec(spacing=tuple(target.tolist()), shape=shape)
    want = source.astype(np.float64)
    for axis, (n, a, b) in enumerate(zip(source.shape, spacing, target, strict=True)):
        weights = lerp_matrix(n, max(1, int(n * (a / b))))
        want = np.moveaxis(np.tensordot(weights, want, (1, axis)), 0, axis)
    want = np.clip(want, -1000, 1000) / 1000
    for axis, (n, t) in enumerate(zip(want.shape, shape, strict=True)):
        cut = max((n - t) // 2, 0)
        want = want.take(range(cut, min(cut + t, n)), axis)
        before = max((t - n) // 2, 0)
        rest = [(0, 0)] * axis + [(before, max(t - n, 0) - before)] + [(0, 0)] * (2 - axis)
        want = np.pad(want, rest, constant_values=-1)
    placed, record = place(Volume(source, axial(spacing)), recipe)
    assert placed.array.dtype == np.float32
    seen = apply_window(placed.array, (-1000.0, 1000.0), onto=(-1.0, 1.0))
    np.testing.assert_allclose(seen, want, rtol=0, atol=1e-5)
    stored, same = normalize(Volume(source, axial(spacing)), recipe)
    assert same == record
    np.testing.assert_array_equal(stored.array, np.rint(placed.array))


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


@pytest.mark.parametrize(
    ("clip_first", "want"),
    [(None, [-1000, -1000, 1000, 1000]), ((-1000, 1000), [-1000, -500, 500, 1000])],
)
def test_clip_first_bounds_values_before_they_are_interpolated(clip_first, want):
    array = np.tile(np.array([-3000, 3000], np.int16), (3, 2, 1))
    recipe = RecipeSpec(size=(3, 2, 4), clip_first=clip_first, min_slices=1)
    stored, _ = normalize(Volume(array, axial((1, 1, 1))), recipe)
    seen = apply_window(stored.array, recipe.window, onto=(-1000.0, 1000.0))
    np.testing.assert_allclose(seen[1, 1], want, atol=1e-3)


def body_and_table():
    """Return air with a block of tissue, voxels 4:16, 10:30, 40:70, over a table, at 4 mm."""
    hu = np.full((20, 60, 80), -1000, np.int16)
    hu[4:16, 10:30, 40:70] = 40
    hu[:, 50:51, :] = 300
    return Volume(hu, axial((4.0, 4.0, 4.0)))


def test_body_margin_crops_to_the_body_and_is_undone():
    volume = body_and_table()
    recipe = RecipeSpec(spacing=(4.0, 4.0, 4.0), body_margin=8.0)
    stored, record = normalize(volume, recipe)
    assert record.body == ((2, 8, 38), (18, 32, 72))
    assert (record.start, record.shape, record.lost) == ((2, 8, 38), (16, 24, 34), 0)
    np.testing.assert_array_equal(stored.array, volume.array[2:18, 8:32, 38:72])
    want = np.zeros(volume.shape, np.uint8)
    want[2:18, 8:32, 38:72] = 1
    np.testing.assert_array_equal(validity(record).array, want)
    back = restore(stored, record, fill=-777)
    np.testing.assert_array_equal(back.array, np.where(want, volume.array, -777))


@pytest.mark.parametrize("window", [(-1000, 1000), (0, 400), (-160, 240)])
def test_the_body_is_found_in_hu_whatever_window_models_see(window):
    hu = np.full((30, 40, 50), -1000, np.int16)
    hu[5:25, 10:30, 20:40] = np.linspace(-450, 400, 20).round()  # half of it is dark in a window
    recipe = RecipeSpec(spacing=(4.0, 4.0, 4.0), body_margin=0.0, window=window)
    stored, record = normalize(Volume(hu, axial((4.0, 4.0, 4.0))), recipe)
    assert record.body == ((5, 10, 20), (25, 30, 40))
    np.testing.assert_array_equal(stored.array, hu[5:25, 10:30, 20:40])


def test_body_margin_before_a_shape_pads_what_it_cut_off():
    volume = body_and_table()
    stored, record = normalize(volume, RecipeSpec(body_margin=4.0, shape=(20, 40, 20)))
    # The body and 1 voxel: 3:17, 9:31, 39:71 of 14 x 22 x 32; 3 and 9 voxels before, 6 cut.
    assert record.start == (0, 0, 45)
    assert Record.model_validate_json(record.model_dump_json()) == record
    held = np.zeros(volume.shape, bool)
    held[3:17, 9:31, 45:65] = True
    padded = np.where(held, volume.array, -1024)[0:20, 0:40, 45:65]
    np.testing.assert_array_equal(stored.array, padded)
    assert record.lost == pytest.approx(1 - 20 / 30)
    np.testing.assert_array_equal(validity(record).array, held)
    back = restore(stored, record, fill=-777)
    np.testing.assert_array_equal(back.array, np.where(held, volume.array, -777))


def test_body_box_does_not_cut_a_body_between_coarse_voxels():
    hu = np.full((20, 40, 60), -1000, np.int16)
    hu[2:18, 6:35, 7:50] = 0
    start, stop = body_box(Volume(hu, axial((4.0, 1.0, 1.0))), 0.0)
    assert (np.array(start) <= (2, 6, 7)).all()
    assert (np.array(stop) >= (18, 35, 50)).all()
    assert (np.array(start) > (1, 1, 2)).all()
    assert (np.array(stop) < (20, 40, 55)).all()


def test_padding_takes_no_part_in_the_way_back():
    tissue = Volume(np.full((12, 30, 30), 40, np.int16), axial((2.0, 0.5, 0.5)))
    stored, record = normalize(tissue, RecipeSpec(spacing=(4.0, 2.0, 2.0), shape=(10, 12, 12)))
    assert (stored.array[:, 0] == -1024).all()
    back = restore(stored, record)
    assert set(np.unique(back.array[validity(record).array == 1]).tolist()) == {40}


MR = RecipeSpec(domain="mr", percentiles=(1.0, 99.0), shape=(12, 8, 12), min_slices=1)


def mr(array):
    return Volume(array, axial((1.0, 1.0, 1.0)), "mr")


def test_mr_keeps_its_values_and_its_window():
    array = np.zeros((10, 10, 10), np.int16)
    array[:, 1:] = np.arange(1, 901).reshape(10, 9, 10)
    array[9, 9, 9] = 30000
    stored, record = normalize(mr(array), MR)
    assert stored.array.dtype == np.int16
    assert stored.domain == "mr"
    # Above 0: 1 to 899 and 30000; 1 % and 99 % of 899 steps lie at 8.99 and 890.01.
    assert record.window == pytest.approx((9.99, 891.01))
    np.testing.assert_array_equal(stored.array[1:11, :, 1:11], array[:, 1:9])
    assert (stored.array[0] == 0).all()
    # Rows 0 and 9 are cut off; row 0 is 0 and counts for nothing.
    assert record.lost == pytest.approx(1 / 9)
    placed, same = place(mr(array), MR)
    assert same == record
    np.testing.assert_array_equal(placed.array, stored.array)


@pytest.mark.parametrize(
    ("array", "dtype", "pad"),
    [
        (np.array([5, 6, 70], np.uint16), np.int16, 0),
        (np.array([-7, 6, 70], np.int32), np.int16, -7),
        (np.array([0, 6, 70000], np.int32), np.float32, 0),
        (np.array([-0.5, 0.25, 1.5], np.float32), np.float32, -0.5),
    ],
    ids=["uint16", "negative", "wide", "float"],
)
def test_mr_is_stored_as_its_source_needs(array, dtype, pad):
    stored, _ = normalize(mr(np.tile(array, (3, 3, 1))), MR)
    assert stored.array.dtype == dtype
    assert stored.array[0, 0, 0] == pad
    np.testing.assert_array_equal(stored.array[5, 4, 4:7], array)


@pytest.mark.parametrize("value", [-3, 0, 7])
def test_mr_without_contrast_is_refused(value):
    with pytest.raises(VolumeError, match="no window; drop it from the catalog") as caught:
        normalize(mr(np.full((4, 4, 4), value, np.int16)), MR)
    assert caught.value.reason == "NO_CONTRAST"


@pytest.mark.parametrize("domain", ["window8", "uint8"])
def test_eight_bit_values_stay_eight_bit(domain):
    array = np.tile(np.array([0, 101, 255], np.uint8), (2, 2, 1))
    window = (0.0, 255.0)
    wide = RecipeSpec(domain=domain, window=window, size=(2, 2, 6), min_slices=1)
    stored, record = normalize(Volume(array, axial((1, 1, 1)), domain), wide)
    assert stored.array.dtype == np.uint8
    # 25.25, 75.75, 139.5 and 216.5: the nearest whole number, halves to the even one.
    assert stored.array[0, 0].tolist() == [0, 25, 76, 140, 216, 255]
    assert (record.window, record.lost) == (None, 0)
    padded = RecipeSpec(domain=domain, window=window, shape=(2, 4, 2), min_slices=1)
    stored, record = normalize(Volume(array, axial((1, 1, 1)), domain), padded)
    assert stored.array[0].tolist() == [[0, 0], [0, 101], [0, 101], [0, 0]]
    assert record.lost == pytest.approx(1 / 2)


def test_a_recipe_of_another_domain_refuses_a_volume():
    with pytest.raises(VolumeError, match=r"domain is 'mr', the recipe's 'hu'") as caught:
        normalize(Volume(np.zeros((9, 9, 9), np.int16), np.eye(4), "mr"), RecipeSpec())
    assert caught.value.reason == "WRONG_DOMAIN"


def test_values_beyond_eight_bits_are_refused():
    recipe = RecipeSpec(domain="uint8", window=(0, 255))
    wide = Volume(np.full((9, 9, 9), 300, np.int16), np.eye(4), "uint8")
    with pytest.raises(VolumeError, match="values from 300 to 300, wanted 0 to 255") as caught:
        normalize(wide, recipe)
    assert caught.value.reason == "NOT_8_BIT"


@pytest.mark.parametrize(
    ("name", "shape", "resampled", "start", "spacing"),
    [
        ("btb3d", (241, 512, 512), (217, 465, 465), (-12, -23, -23), (1.5, 0.75, 0.75)),
        ("ctclip", (240, 480, 480), (217, 465, 465), (-11, -7, -7), (1.5, 0.75, 0.75)),
        ("mae256", (256, 256, 256), (256, 256, 256), (0, 0, 0), (1.27, 1.36, 1.36)),
        ("vlm64", (64, 512, 512), (54, 465, 465), (-5, -23, -23), (6.04, 0.75, 0.75)),
    ],
)
def test_published_recipes_on_a_real_sized_grid(repository, name, shape, resampled, start, spacing):
    config = load_config(yaml.safe_load((repository / "config.yaml").read_text()), {})
    recipe = config.recipes[name]
    plane = np.full((512, 512), -1000, np.int16)
    plane[100:400, 50:450] = 40
    # 326.25 x 349.184 x 349.184 mm
    scan = Volume(np.broadcast_to(plane, (261, 512, 512)), axial((1.25, 0.682, 0.682)))
    stored, record = normalize(scan, recipe)
    assert (stored.shape, stored.array.dtype) == (shape, np.int16)
    assert (record.resampled_shape, record.start, record.lost) == (resampled, start, 0)
    assert stored.spacing == pytest.approx(spacing, rel=0.01)
    seen = apply_window(stored.array[shape[0] // 2], recipe.window, onto=recipe.range)
    low, high = recipe.window
    tissue = recipe.range[0] + (40 - low) / (high - low) * (recipe.range[1] - recipe.range[0])
    assert seen[shape[1] // 2, shape[2] // 2] == pytest.approx(tissue, abs=1e-6)
    assert recipe.range[0] <= seen.min() <= seen.max() <= recipe.range[1]


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


@pytest.mark.parametrize(
    ("source", "spacing", "held", "start"),
    [
        ((4, 30, 20), (1.0, 1.0, 1.0), (4, 12, 8), (0, 0, 2)),
        ((4, 10, 40), (1.0, 1.0, 1.0), (4, 3, 12), (0, 4, 0)),
        ((4, 24, 24), (5.0, 1.0, 1.0), (4, 12, 12), (0, 0, 0)),
        ((4, 24, 24), (1.0, 0.5, 1.0), (4, 6, 12), (0, 3, 0)),  # mm count, not pixels
        ((4, 400, 1), (1.0, 1.0, 1.0), (4, 12, 1), (0, 0, 5)),  # at least a column
    ],
    ids=["tall", "wide", "square", "oblong_pixels", "line"],
)
def test_a_letterbox_keeps_proportions_and_pads(source, spacing, held, start):
    recipe = RecipeSpec(domain="window8", size=(4, 12, 12), letterbox=True, min_slices=1)
    volume = Volume(np.full(source, 200, np.uint8), axial(spacing), "window8")
    stored, record = normalize(volume, recipe)
    assert stored.shape == (4, 12, 12)
    assert (record.resampled_shape, held_box(record)) == (held, (start, held))
    wanted = np.zeros((4, 12, 12), np.uint8)
    d, h, w = (slice(a, a + n) for a, n in zip(start, held, strict=True))
    wanted[d, h, w] = 200
    np.testing.assert_array_equal(stored.array, wanted)
    np.testing.assert_array_equal(restore(stored, record, fill=0).array, volume.array)
    if min(source) > 1:
        pixels = stored.spacing[1:]
        assert pixels[0] == pytest.approx(pixels[1])


def test_a_disc_stays_round_in_a_letterbox():
    rows, columns = np.indices((626, 500))
    disc = (rows - 312.5) ** 2 + (columns - 249.5) ** 2 <= 100**2
    recipe = RecipeSpec(domain="window8", size=(1, 512, 512), letterbox=True, min_slices=1)
    volume = Volume((255 * disc[None]).astype(np.uint8), axial((1.0, 1.0, 1.0)), "window8")
    stored, _ = normalize(volume, recipe)
    places = np.argwhere(stored.array[0] > 127)
    height, width = np.ptp(places, axis=0) + 1
    assert abs(height - width) <= 1
    assert height == pytest.approx(201 * 512 / 626, abs=1)


@pytest.mark.parametrize("spacing", [(2.0, 0.8, 0.8), (1.25, 0.6, 0.9)])
def test_a_sphere_keeps_its_diameter_at_a_fixed_spacing_and_not_where_it_is_stretched(spacing):
    shape = tuple(round(96 / mm) for mm in spacing)
    places = (np.indices(shape).T + 0.5) * spacing - 48  # mm from the middle
    sphere = ((places**2).sum(axis=-1) <= 30**2).T
    source = Volume(np.where(sphere, 100, -900).astype(np.int16), axial(spacing))
    fixed, _ = normalize(source, RecipeSpec(spacing=(3.0, 1.5, 1.5), shape=(24, 80, 48)))
    stretched, _ = normalize(source, RecipeSpec(size=(16, 64, 40)))
    for volume, wanted in ((fixed, (20, 40, 40)), (stretched, (10, 40, 25))):
        extents = [np.ptp(axis) + 1 for axis in np.nonzero(volume.array > -400)]
        np.testing.assert_allclose(extents, wanted, atol=1)
