import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLSLossless, RLELossless, generate_uid

from ct3dlib.errors import VolumeError
from ct3dlib.scan.dicom import list_series, read_dicom


@pytest.fixture
def stored():
    return np.random.default_rng(0).integers(0, 2000, (12, 16, 20)).astype(np.uint16)


@pytest.fixture
def files(stored, write_slice):
    return [write_slice(f"{k:02}.dcm", plane, 2.5 * k) for k, plane in enumerate(stored)]


def refused(paths, reason, match):
    with pytest.raises(VolumeError, match=match) as caught:
        read_dicom(paths)
    assert caught.value.reason == reason


def multi_frame(path, stored, *, rescale=(1.0, -1024.0), rescale_type="HU", positions=None):
    """Turn a single-frame file into an enhanced one; the frames stand in reverse order."""
    dataset = pydicom.dcmread(path)
    count = len(stored)
    for tag in ("RescaleSlope", "RescaleIntercept", "ImagePositionPatient"):
        delattr(dataset, tag)
    orientation, spacing = dataset.ImageOrientationPatient, dataset.PixelSpacing
    del dataset.ImageOrientationPatient, dataset.PixelSpacing
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    dataset.NumberOfFrames = count

    def macro(name, **tags):
        outer, inner = Dataset(), Dataset()
        for tag, value in tags.items():
            setattr(inner, tag, value)
        setattr(outer, name, [inner])
        return outer

    shared = macro("PlaneOrientationSequence", ImageOrientationPatient=orientation)
    shared.update(macro("PixelMeasuresSequence", PixelSpacing=spacing))
    if rescale is not None:
        slope, intercept = rescale
        shared.update(
            macro(
                "PixelValueTransformationSequence",
                RescaleSlope=slope,
                RescaleIntercept=intercept,
                RescaleType=rescale_type,
            )
        )
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = [
        macro("PlanePositionSequence", ImagePositionPatient=[-10, -20, 2.5 * k])
        for k in reversed(range(positions or count))
    ]
    dataset.PixelData = stored[::-1].tobytes()
    dataset.save_as(path)
    return path


def test_series_comes_in_hu_on_its_geometry(files, stored):
    reading = read_dicom(files)
    np.testing.assert_array_equal(reading.volume.array, stored.astype(np.int16) - 1024)
    np.testing.assert_allclose(
        reading.volume.affine, [[0, 0, 0.7, -10], [0, 0.8, 0, -20], [2.5, 0, 0, 0], [0, 0, 0, 1]]
    )
    assert reading.volume.array.dtype == np.int16
    assert (reading.hu, reading.slope, reading.intercept) == (True, 1.0, -1024.0)
    assert reading.facts["slices"] == reading.facts["files"] == 12
    assert "Doe" not in str(reading.facts)
    assert "patient-7" not in str(reading.facts)


def test_neither_order_nor_names_nor_instance_numbers_count(stored, write_slice):
    files = [
        write_slice(f"{99 - k}.dcm", plane, -2.5 * k, InstanceNumber=1, SliceLocation=7)
        for k, plane in enumerate(stored)
    ]
    forward, backward = read_dicom(files), read_dicom(files[::-1])
    np.testing.assert_array_equal(forward.volume.array, stored[::-1].astype(np.int16) - 1024)
    np.testing.assert_array_equal(forward.volume.array, backward.volume.array)
    assert forward.volume.affine[2, 3] == -2.5 * 11
    assert forward.sha256 == backward.sha256


def test_rows_that_run_upward_turn_the_slice_axis(stored, write_slice):
    # Normal = row x column points to inferior: the first slice is the uppermost.
    files = [
        write_slice(f"{k}.dcm", plane, 2.5 * k, ImageOrientationPatient=[1, 0, 0, 0, -1, 0])
        for k, plane in enumerate(stored)
    ]
    volume = read_dicom(files).volume
    np.testing.assert_allclose(volume.affine[:3, 0], (0, 0, -2.5))
    np.testing.assert_allclose(volume.affine[:3, 1], (0, -0.8, 0))
    assert volume.array[0, 3, 4] == int(stored[11, 3, 4]) - 1024


def test_slope_and_intercept_are_each_slices_own(stored, write_slice):
    files = [
        write_slice(
            f"{k}.dcm", plane, 2.5 * k, RescaleSlope=1 + 0.5 * k, RescaleIntercept=-1000 - k
        )
        for k, plane in enumerate(stored[:4])
    ]
    reading = read_dicom(files)
    k = np.arange(4).reshape(4, 1, 1)
    np.testing.assert_array_equal(
        reading.volume.array, np.maximum(stored[:4] * (1 + 0.5 * k) - 1000 - k, -1024)
    )
    assert reading.volume.array.dtype == np.float32
    assert (reading.slope, reading.intercept, reading.hu) == (None, None, True)


def test_padding_under_air_becomes_minus_1024(stored, write_slice):
    padded = stored.astype(np.int16)
    padded[:, :2] = -2000
    files = [
        write_slice(f"{k}.dcm", plane, 2.5 * k, PixelPaddingValue=-1)
        for k, plane in enumerate(padded)
    ]
    array = read_dicom(files).volume.array
    assert (array[:, :2] == -1024).all()
    np.testing.assert_array_equal(array[:, 2:], padded[:, 2:] - 1024)


def test_monochrome1_changes_the_display_and_not_the_values(stored, write_slice, files):
    inverted = [
        write_slice(f"i{k}.dcm", plane, 2.5 * k, PhotometricInterpretation="MONOCHROME1")
        for k, plane in enumerate(stored)
    ]
    np.testing.assert_array_equal(read_dicom(inverted).volume.array, read_dicom(files).volume.array)


def test_without_rescale_the_values_are_of_unknown_state(stored, write_slice):
    files = [
        write_slice(f"{k}.dcm", plane, 2.5 * k, RescaleSlope=None, RescaleIntercept=None)
        for k, plane in enumerate(stored)
    ]
    reading = read_dicom(files)
    assert reading.hu is None
    np.testing.assert_array_equal(reading.volume.array, stored)


def test_tilted_gantry_gives_its_true_sheared_grid(stored, write_slice):
    # Slices tilted by 18.5 degrees about x, 2.5 mm apart along the table (z).
    angle = np.deg2rad(18.5)
    cosines = [1, 0, 0, 0, float(np.cos(angle)), float(-np.sin(angle))]
    files = [
        write_slice(f"{k}.dcm", plane, 2.5 * k, ImageOrientationPatient=cosines)
        for k, plane in enumerate(stored)
    ]
    reading = read_dicom(files)
    np.testing.assert_allclose(reading.volume.affine[:3, 0], (0, 0, 2.5), atol=1e-9)
    np.testing.assert_allclose(reading.volume.affine[:3, 1], 0.8 * np.array(cosines[3:]), atol=1e-9)
    assert reading.facts["tilt"] == pytest.approx(18.5, abs=1e-3)


def test_spacing_comes_from_positions_and_not_from_thickness(stored, write_slice):
    files = [
        write_slice(f"{k}.dcm", plane, 1.0 * k, SliceThickness=1.25, SpacingBetweenSlices=-4)
        for k, plane in enumerate(stored)
    ]
    assert read_dicom(files).volume.spacing[0] == pytest.approx(1.0)


def test_positions_rounded_to_a_tenth_are_even(stored, write_slice):
    files = [write_slice(f"{k}.dcm", plane, round(0.625 * k, 1)) for k, plane in enumerate(stored)]
    assert read_dicom(files).volume.spacing[0] == pytest.approx(0.625, abs=0.01)


def test_one_missing_slice_is_interpolated_and_told(files, stored):
    reading = read_dicom(files[:5] + files[6:])
    assert reading.facts["interpolated"] == [5]
    assert reading.volume.shape == (12, 16, 20)
    hu = stored.astype(np.int32) - 1024
    np.testing.assert_array_equal(reading.volume.array[5], np.rint((hu[4] + hu[6]) / 2))
    np.testing.assert_array_equal(np.delete(reading.volume.array, 5, 0), np.delete(hu, 5, 0))


def test_more_missing_slices_are_refused(files):
    refused(files[:5] + files[7:], "UNEVEN_SPACING", "10 slices 2.50 to 7.50 mm apart")
    refused(files[:2] + files[3:5] + files[6:], "UNEVEN_SPACING", "wanted 2.50 mm throughout")


def test_shifted_slice_is_refused(files, stored, write_slice):
    files[5] = write_slice("05.dcm", stored[5], 2.5 * 5 + 0.4)
    refused(files, "UNEVEN_SPACING", "2.10 to 2.90 mm apart")


def test_slices_that_slide_in_their_plane_are_refused(stored, write_slice):
    files = [
        write_slice(f"{k}.dcm", plane, 0, ImagePositionPatient=[9.0 * (k == 5), 0, 2.5 * k])
        for k, plane in enumerate(stored)
    ]
    refused(files, "UNEVEN_SPACING", "12 slices")


def test_identical_copies_are_dropped(files, stored, write_slice):
    copies = [write_slice("copy.dcm", stored[3], 7.5)]
    reading = read_dicom(files + copies)
    np.testing.assert_array_equal(reading.volume.array, read_dicom(files).volume.array)
    assert (reading.facts["duplicates"], reading.facts["files"]) == (1, 13)


def test_different_slices_at_one_position_are_refused(files, stored, write_slice):
    other = write_slice("other.dcm", stored[4], 7.5)
    refused([*files, other], "DUPLICATE_POSITIONS", "different slices at one position")


def test_all_slices_at_one_position_are_refused(stored, write_slice):
    files = [write_slice(f"{k}.dcm", plane, 5.0) for k, plane in enumerate(stored)]
    refused(files, "DUPLICATE_POSITIONS", "all its slices lie at one position")


def test_time_points_are_refused(files, stored, write_slice):
    later = [write_slice(f"t{k}.dcm", plane + 1, 2.5 * k) for k, plane in enumerate(stored)]
    refused(files + later, "FOUR_D", "2 different slices at every position")


@pytest.mark.parametrize(
    ("tags", "reason", "match"),
    [
        ({"Modality": "MR"}, "NOT_CT", "modality MR, wanted CT"),
        ({"RescaleType": "Z_EFF"}, "NOT_HU", "rescales to Z_EFF, wanted HU"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "LOCALIZER", "scout view"),
        ({"SamplesPerPixel": 3}, "NOT_CT", "a colour picture"),
        ({"ImagePositionPatient": None}, "NO_GEOMETRY", "no position, orientation or pixel"),
        ({"ImageOrientationPatient": None}, "NO_GEOMETRY", "no position, orientation or pixel"),
        ({"PixelSpacing": None}, "NO_GEOMETRY", "no position, orientation or pixel spacing"),
        ({"PixelSpacing": [0, 0.7]}, "BAD_GEOMETRY", "are no grid; fetch"),
        ({"PixelSpacing": [1e-7, 1e-7]}, "BAD_GEOMETRY", "wanted 0.01 to 100 mm"),
        ({"PixelSpacing": [8000, 8000]}, "BAD_GEOMETRY", "wanted 0.01 to 100 mm"),
        ({"PixelSpacing": [1e300, 1e300]}, "BAD_GEOMETRY", "is singular"),
        ({"ImagePositionPatient": [0, 2e6, 0]}, "BAD_GEOMETRY", r"wanted at most 1e\+06 mm"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "BAD_GEOMETRY", "are no grid"),
        ({"PixelSpacing": [800, 0.7]}, "BAD_GEOMETRY", "2.5 x 800 x 0.7 mm apart, wanted 0.01 to"),
        ({"RescaleSlope": 0}, "BAD_RESCALE", r"0\.dcm: slope 0 and intercept -1024, wanted"),
        ({"RescaleSlope": -1}, "BAD_RESCALE", "slope -1 .* a slope above 0; fetch it again"),
        ({"NumberOfFrames": 2, "Modality": "MR"}, "NOT_CT", "modality MR, wanted CT"),
        ({"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, "FILE_UNREADABLE", "640 pixels, its"),
        ({"RescaleSlope": 40}, "HU_OUT_OF_RANGE", "wanted HU within -3100 to 4100"),
        ({"Columns": 19000}, "FILE_TRUNCATED", "less than expected"),
        ({"Rows": 60000, "Columns": 60000, "NumberOfFrames": 9}, "TOO_LARGE", "32400000000"),
    ],
)
def test_series_that_is_no_volume_in_hu(stored, write_slice, tags, reason, match):
    files = [write_slice(f"{k}.dcm", plane, 2.5 * k, **tags) for k, plane in enumerate(stored)]
    refused(files, reason, match)


def test_single_slice(files):
    refused(files[:1], "SINGLE_SLICE", "a single slice, no volume; drop it")


def test_files_of_several_series(files, stored, write_slice):
    other = write_slice("other.dcm", stored[0], 60.0, SeriesInstanceUID=generate_uid())
    refused([*files, other], "MIXED_SERIES", "differ in series, matrix or orientation")
    coronal = write_slice("cor.dcm", stored[0], 60.0, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    refused([*files, coronal], "MIXED_SERIES", "give the files of one series")


@pytest.mark.parametrize("keep", [400, 0.5, -1])
def test_truncated_file(files, keep):
    whole = files[4].read_bytes()
    files[4].write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    refused(files, "FILE_TRUNCATED", r"04\.dcm.*; fetch it again")


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_files_decode_alike_and_their_truncation_shows(files, syntax):
    want = read_dicom(files).volume.array
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax)
        dataset.save_as(path)
    np.testing.assert_array_equal(read_dicom(files).volume.array, want)
    files[2].write_bytes(files[2].read_bytes()[:-60])
    refused(files, "FILE_TRUNCATED", r"02\.dcm: the file is cut short")


def test_retired_syntax_of_other_pixels_is_refused(files):
    dataset = pydicom.dcmread(files[3])
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.53"
    dataset.PixelData = pydicom.encaps.encapsulate([b"no jpeg"])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(files[3])
    refused(files, "UNSUPPORTED_SYNTAX", "cannot be decoded")


def test_missing_and_foreign_files(files, tmp_path):
    refused([*files, tmp_path / "no.dcm"], "FILE_MISSING", "no such file")
    (tmp_path / "note.txt").write_text("hello")
    refused([*files, tmp_path / "note.txt"], "FILE_UNREADABLE", "not a DICOM image")
    with pytest.raises(ValueError, match="at least one file"):
        read_dicom([])


def test_enhanced_multi_frame_equals_single_frames(files, stored):
    want = read_dicom(files)
    reading = read_dicom([multi_frame(files[0], stored)])
    np.testing.assert_array_equal(reading.volume.array, want.volume.array)
    np.testing.assert_allclose(reading.volume.affine, want.volume.affine)
    assert (reading.hu, reading.facts["slices"]) == (True, 12)


def test_multi_frame_without_rescale_is_of_unknown_state(files, stored):
    reading = read_dicom([multi_frame(files[0], stored, rescale=None)])
    assert reading.hu is None
    np.testing.assert_array_equal(reading.volume.array, stored)


def test_multi_frame_of_another_unit_or_with_frames_missing(files, stored):
    refused([multi_frame(files[0], stored, rescale_type="ED")], "NOT_HU", "rescales to ED")
    path = multi_frame(files[1], stored, positions=11)
    refused([path], "NO_GEOMETRY", "12 frames, but positions of 11")


def test_list_series_groups_by_header(files, stored, write_slice, tmp_path):
    coronal = write_slice("scout.dcm", stored[0], 9, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    uid = generate_uid()
    scouts = [
        write_slice(f"s{k}.dcm", stored[k], k, SeriesInstanceUID=uid, ImageType=["X", "LOCALIZER"])
        for k in range(2)
    ]
    (tmp_path / "dicom" / "notes.txt").write_text("x" * 500)
    (tmp_path / "dicom" / "junk.dcm").write_bytes(b"junk" * 100)
    deep = tmp_path / "dicom" / "deep" / "er"
    deep.mkdir(parents=True)
    files[3] = files[3].rename(deep / "03")
    (deep / "loop").symlink_to(tmp_path / "dicom")
    (tmp_path / "dicom" / "._00.dcm").write_bytes(b"a Mac's notes on 00.dcm")
    found = list_series(tmp_path / "dicom")
    (apart,) = (one for one in found if one.files == (coronal,))
    assert apart.problem[0] == "MIXED_SERIES"
    series = {one.uid: one for one in found if one is not apart}
    junk = series.pop("")
    assert junk.files == (tmp_path / "dicom" / "junk.dcm",)
    assert junk.problem[0] == "FILE_UNREADABLE"
    assert len(series) == 2
    scout, chest = series.pop(uid), series.popitem()[1]
    assert chest.files == tuple(sorted(files))
    assert (chest.rows, chest.columns, chest.num_slices) == (16, 20, 12)
    assert chest.spacing == pytest.approx((2.5, 0.8, 0.7))
    assert (chest.patient, chest.problem) == ("patient-7", None)
    assert scout.files == tuple(scouts)
    assert scout.problem[0] == "LOCALIZER"
    np.testing.assert_array_equal(read_dicom(chest.files).volume.shape, (12, 16, 20))


def test_list_series_keeps_patients_apart_who_share_a_series_id(stored, write_slice, tmp_path):
    for patient in ("p1", "p2"):
        for k in range(3):
            write_slice(f"{patient}-{k}.dcm", stored[k], 2.5 * k, PatientID=patient)
    assert [one.patient for one in list_series(tmp_path)] == ["p1", "p2"]


def test_list_series_lists_what_is_broken(files, tmp_path):
    files[4].write_bytes(files[4].read_bytes()[:400])
    broken, chest = sorted(list_series(tmp_path), key=lambda one: len(one.files))
    assert broken.files == (files[4],)
    assert broken.problem[0] == "FILE_TRUNCATED"
    assert "ends within its header" in broken.problem[1]
    assert len(chest.files) == 11


def test_list_series_survives_damaged_headers(files, tmp_path):
    whole = files[0].read_bytes()
    rng = np.random.default_rng(0)
    for path in files[1:]:
        path.unlink()
    for _ in range(150):
        damaged = bytearray(whole)
        for where in rng.integers(132, 1100, 6):
            damaged[where] = rng.integers(256)
        files[0].write_bytes(damaged)
        assert len(list_series(tmp_path)) <= 1


def test_list_series_of_no_dicom_is_empty(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"x" * 200)
    assert list_series(tmp_path) == []
