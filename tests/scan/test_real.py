"""What the real files must give, as the inventory beside them says."""

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from ct3dlib.config import RecipeSpec
from ct3dlib.errors import VolumeError
from ct3dlib.scan.dicom import list_series, read_dicom
from ct3dlib.scan.dicom_file import read_header
from ct3dlib.scan.dicom_pixels import read_planes
from ct3dlib.scan.intensity import to_hu
from ct3dlib.scan.nifti import read_nifti
from ct3dlib.scan.normalize import normalize, restore
from ct3dlib.scan.reading import Reading

pytestmark = pytest.mark.real

NIFTI = [
    "lidc_idri/LIDC-IDRI-0001_2p5mm.nii.gz",
    "lidc_idri/LIDC-IDRI-0002_2p5mm.nii.gz",
    "totalsegmentator/example_ct.nii.gz",
]


def is_dicom(path: Path) -> bool:
    """Return whether a file carries the DICOM mark."""
    return path.is_file() and path.read_bytes()[128:132] == b"DICM"


def read(folder: Path) -> Reading:
    """Read a folder of one series, or one file."""
    if folder.is_file():
        return read_dicom([folder])
    return read_dicom([p for p in sorted(folder.iterdir()) if is_dicom(p)])


@pytest.mark.parametrize(
    ("name", "shape", "spacing", "tilt"),
    [
        ("lidc_idri/LIDC-IDRI-0001_dicom", (133, 512, 512), (2.5, 0.703125, 0.703125), 0),
        ("dcm_qa_ct/Philips_tilt", (5, 512, 512), (2.5, 0.482422, 0.482422), 18.5),
        ("dicom2nifti/gantrytilting_001", (4, 512, 512), (5, 0.417969, 0.417969), 14),
        ("dcmqi/ct-3slice", (3, 512, 512), (1, 0.810547, 0.810547), 0),
        ("rt-utils/mock_data", (2, 512, 512), (5, 0.488281, 0.488281), 0),
        ("lungmask", (2, 512, 512), (1, 0.625, 0.625), 0),
        ("pydicom/eCT_Supplemental.dcm", (2, 512, 512), (10, 0.388672, 0.388672), 0),
    ],
)
def test_dicom_gives_what_the_inventory_says(real_data, name, shape, spacing, tilt):
    reading = read(real_data / name)
    assert reading.volume.shape == shape
    assert reading.volume.spacing == pytest.approx(spacing, abs=1e-4)
    assert reading.facts["tilt"] == pytest.approx(tilt, abs=0.05)
    assert reading.volume.array.min() == -1024
    assert reading.hu is True


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dcm_qa_ct/GE_tilt_nonuniform", "UNEVEN_SPACING"),
        ("dicom2nifti/notavolume_001", "DUPLICATE_POSITIONS"),
        ("dicom2nifti/sliceincrement_001", "UNEVEN_SPACING"),
        ("panimg/dicom_4d", "MIXED_SERIES"),
        ("pydicom/CT_small.dcm", "SINGLE_SLICE"),
        ("pydicom/explicit_VR-UN.dcm", "SINGLE_SLICE"),
        ("pydicom/bad_sequence.dcm", "SINGLE_SLICE"),
        ("pydicom/J2K_pixelrep_mismatch.dcm", "SINGLE_SLICE"),
        ("cornerstone3D/CT0012.fragmented_no_bot_jpeg_baseline.51.dcm", "UNSUPPORTED_SYNTAX"),
    ],
)
def test_dicom_that_is_no_volume_has_its_reason(real_data, name, reason):
    with pytest.raises(VolumeError) as caught:
        read(real_data / name)
    assert caught.value.reason == reason


def test_values_of_enhanced_ct(real_data):
    array = read(real_data / "pydicom/eCT_Supplemental.dcm").volume.array
    assert (array.min(), array.max()) == (-1024, 172)


def test_slope_and_intercept_differ_between_slices(real_data):
    intercepts = read(real_data / "panimg/dicom_intercept").volume.array
    np.testing.assert_allclose(intercepts[1] - intercepts[0], 0.01, atol=1e-6)


def test_time_points_of_a_4d_scan_are_kept_apart(real_data):
    series = list_series(real_data / "panimg/dicom_4d")
    assert len(series) == 19
    assert {(len(one.files), one.num_slices, one.problem) for one in series} == {(4, 4, None)}


def test_listing_everything_raises_nothing_and_loses_no_file(real_data):
    series = list_series(real_data)
    listed = [path for one in series for path in one.files]
    images = list(filter(is_dicom, real_data.rglob("*")))
    assert len(listed) == len(set(listed))
    assert len(listed) == len(images)


LOSSLESS = ["1.2.840.10008.1.2.1", "1.2.1.99", "1.2.4.57", "1.2.5"]


def test_lossless_syntaxes_equal_bit_for_bit(real_data):
    folder = real_data / "cornerstone3D"
    want = read_planes(read_header(folder / "CTImage.dcm"))
    paths = [p for end in LOSSLESS for p in folder.glob(f"CTImage.dcm_*{end}.dcm")]
    assert len(paths) == len(LOSSLESS)
    for path in paths:
        np.testing.assert_array_equal(read_planes(read_header(path)), want, err_msg=path.name)


def test_lossy_and_retired_syntaxes_stay_near(real_data):
    folder = real_data / "cornerstone3D"
    want = read_planes(read_header(folder / "CTImage.dcm"))
    for end in ("4.91", "4.81", "4.51", "4.53", "4.55"):
        (path,) = folder.glob(f"CTImage.dcm_*{end}.dcm")
        assert np.abs(read_planes(read_header(path)) - want).mean() < 20, path.name


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("explicit_VR-UN.dcm", -1024, 1186),
        ("bad_sequence.dcm", -1011, 1243),
        ("J2K_pixelrep_mismatch.dcm", -2000, 1896),
        ("CT_small.dcm", -896, 1167),
    ],
)
def test_odd_single_files_decode_like_itk(real_data, name, low, high):
    path = real_data / "pydicom" / name
    planes = read_planes(read_header(path))
    assert (planes.min(), planes.max()) == (low, high)
    image = SimpleITK.ReadImage(str(path), imageIO="GDCMImageIO")
    np.testing.assert_array_equal(planes, SimpleITK.GetArrayFromImage(image))


def test_chest_series_equals_itk_in_values_and_geometry(real_data):
    files = filter(is_dicom, (real_data / "lidc_idri/LIDC-IDRI-0001_dicom").iterdir())
    by_height = sorted(files, key=lambda p: read_header(p).frames[0].place.position[2])[:30]
    volume = read_dicom(sorted(by_height)).volume
    image = SimpleITK.ReadImage([str(p) for p in by_height], imageIO="GDCMImageIO")
    np.testing.assert_array_equal(
        volume.array, np.maximum(SimpleITK.GetArrayFromImage(image), -1024)
    )
    for d, h, w in itertools.product((0, 29), (0, 511), (0, 511)):
        np.testing.assert_allclose(
            (volume.affine @ (d, h, w, 1))[:3],
            image.TransformIndexToPhysicalPoint((w, h, d)),
            atol=1e-3,
        )


@pytest.mark.parametrize("name", NIFTI)
def test_nifti_equals_itk_in_values_and_geometry(real_data, name):
    volume = read_nifti(real_data / name).volume
    image = SimpleITK.ReadImage(str(real_data / name))
    np.testing.assert_array_equal(volume.array, SimpleITK.GetArrayFromImage(image))
    for corner in itertools.product(*((0, n - 1) for n in volume.shape)):
        np.testing.assert_allclose(
            (volume.affine @ (*corner, 1))[:3],
            image.TransformIndexToPhysicalPoint(tuple(reversed(corner))),
            atol=1e-3,
        )


@pytest.mark.parametrize("name", NIFTI)
@pytest.mark.parametrize("intercept", [-1024.0, -8192.0])
def test_nifti_is_found_to_be_hu_and_its_stored_twin_is_not(real_data, name, intercept):
    reading = read_nifti(real_data / name)
    hu = to_hu(reading, slope=1.0, intercept=intercept, state="auto")
    assert hu.state == "hu"
    stored = reading.volume.array.astype(np.float32) - intercept
    twin = Reading(
        type(reading.volume)(stored, reading.volume.affine),
        slope=None,
        intercept=None,
        hu=None,
        sha256="",
    )
    rescaled = to_hu(twin, slope=1.0, intercept=intercept, state="auto")
    assert rescaled.state == "rescaled"
    np.testing.assert_allclose(rescaled.volume.array, hu.volume.array, atol=1e-3)
    assert to_hu(reading, slope=None, intercept=None, state="auto").state == "hu"


@pytest.mark.parametrize("name", NIFTI)
def test_real_volume_comes_back_from_its_recipe(real_data, name):
    volume = to_hu(read_nifti(real_data / name), slope=None, intercept=None, state="auto").volume
    stored, record = normalize(volume, RecipeSpec())
    np.testing.assert_array_equal(restore(stored, record).array, volume.array)
    finer, record = normalize(volume, RecipeSpec(spacing=(1.5, 1.5, 1.5)))
    back = restore(finer, record).array.astype(np.int32)
    assert np.abs(back - volume.array).mean() < 0.05 * np.std(volume.array)


def test_abdomen_is_turned_to_lps(real_data):
    reading = read_nifti(real_data / "totalsegmentator/example_ct.nii.gz")
    volume = to_hu(reading, slope=None, intercept=None, state="auto").volume
    assert nibabel.aff2axcodes(np.diag([-1, -1, 1, 1.0]) @ volume.affine) == ("S", "A", "R")
    stored, record = normalize(volume, RecipeSpec())
    assert record.flips == (False, True, True)
    np.testing.assert_array_equal(stored.array, volume.array[:, ::-1, ::-1])


def test_tilted_phantom_stands_upright(real_data):
    reading = read(real_data / "dcm_qa_ct/Philips_tilt")
    stored, record = normalize(reading.volume, RecipeSpec(min_slices=2))
    assert record.straightened
    axes = np.abs(stored.affine[:3, :3][[2, 1, 0]])
    np.testing.assert_allclose(axes, np.diag(stored.spacing), atol=1e-9)
    assert stored.spacing[0] == pytest.approx(2.3707, abs=1e-3)
    back = restore(stored, record).array.astype(np.int32)
    inner = back[1:-1, 64:-64, 64:-64] - reading.volume.array[1:-1, 64:-64, 64:-64]
    assert np.abs(inner).mean() < 25
