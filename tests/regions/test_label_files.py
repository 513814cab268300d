"""Label maps on disk become region ids, or are refused by name."""

import numpy as np
import pytest

from ct3dlib.errors import VolumeError
from ct3dlib.regions.label_files import read_label_map
from ct3dlib.regions.label_map import FOUND, REGIONS, TOTALSEGMENTATOR, region_of_class
from ct3dlib.scan.geometry import shifted
from tests.regions.label_maps import UPRIGHT, save_labels

CLASSES = {1: "spleen", 2: "heart_myocardium", 3: "pulmonary_artery", 4: "face", 90: "liver"}
# Region by class of TotalSegmentator's task total, version 2, written out by hand.
V2 = {
    10: 1,
    11: 2,
    12: 3,
    13: 4,
    14: 5,
    16: 6,
    15: 7,
    51: 8,
    61: 8,
    52: 10,
    17: 14,
    4: 15,
    5: 15,
    **dict.fromkeys([53, 54, 55, 56, 57, 58, 59, 60, 62, 63], 11),
    1: 16,
    7: 16,
    6: 17,
    18: 17,
    19: 17,
    20: 17,
    **dict.fromkeys([2, 3, 8, 9, 23, 24], 18),
    **dict.fromkeys([*range(25, 51), 79], 19),
    **dict.fromkeys([*range(69, 75), *range(92, 118)], 20),
}


def labels_of(*numbers, dtype=np.uint8, shape=(3, 4, 5)):
    labels = np.zeros(shape, dtype)
    labels.flat[: len(numbers)] = numbers
    return labels


def refused(path, reason, match, **options):
    with pytest.raises(VolumeError, match=match) as caught:
        read_label_map(path, **options)
    assert caught.value.reason == reason
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "i8", "f4", "f8"])
def test_names_in_the_header_say_what_numbers_mean(tmp_path, dtype):
    labels = labels_of(0, 1, 2, 3, 4, 90, dtype=dtype)
    found = read_label_map(save_labels(tmp_path / "a.nii.gz", labels, classes=CLASSES))
    assert found.volume.array.dtype == np.uint8
    assert found.volume.array.ravel()[:7].tolist() == [0, 16, 8, 11, 0, 15, 0]
    assert found.known == {8, 11, 15, 16}
    np.testing.assert_allclose(found.volume.affine, UPRIGHT, atol=1e-5)
    assert found.volume.domain == "uint8"


def test_a_class_without_a_voxel_was_looked_for(tmp_path):
    path = save_labels(tmp_path / "a.nii.gz", labels_of(1), classes=CLASSES)
    assert read_label_map(path).known == {8, 11, 15, 16}


def test_the_header_counts_more_than_the_config(tmp_path):
    path = save_labels(tmp_path / "a.nii.gz", labels_of(1, 2), classes={1: "aorta", 2: "trachea"})
    found = read_label_map(path, numbering="totalsegmentator_v2")
    assert found.volume.array.ravel()[:2].tolist() == [10, 6]


def test_every_number_of_version_2_has_its_region(tmp_path):
    labels = np.arange(118, dtype=np.uint8).reshape(1, 2, 59)
    path = save_labels(tmp_path / "a.nii.gz", labels)
    found = read_label_map(path, numbering="totalsegmentator_v2")
    assert found.volume.array.ravel().tolist() == [V2.get(i, 0) for i in range(118)]
    assert found.known == FOUND


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (1, "spleen"),
        (16, "trachea"),
        (25, "sacrum"),
        (31, "vertebrae_L1"),
        (51, "heart"),
        (79, "spinal_cord"),
        (91, "skull"),
        (92, "rib_left_1"),
        (115, "rib_right_12"),
        (117, "costal_cartilages"),
    ],
)
def test_numbers_of_version_2_are_those_that_are_published(number, name):
    assert TOTALSEGMENTATOR[number - 1] == name


def test_a_name_that_is_class_and_region_means_one_thing():
    for name in set(REGIONS) & set(TOTALSEGMENTATOR):
        assert V2[TOTALSEGMENTATOR.index(name) + 1] == REGIONS.index(name)
    assert region_of_class("lung_left") is None
    assert region_of_class("urinary_bladder") == 0


def test_numbers_may_be_the_regions_own(tmp_path):
    labels = np.arange(21, dtype=np.int16).reshape(1, 3, 7)
    found = read_label_map(save_labels(tmp_path / "a.nii", labels), numbering="regions")
    np.testing.assert_array_equal(found.volume.array, labels)
    assert found.known == set(range(1, 21))


def test_a_blank_header_takes_the_spacing_of_its_scan(tmp_path):
    path = save_labels(tmp_path / "a.nii.gz", labels_of(8), None)
    found = read_label_map(path, numbering="regions", spacing=(3.0, 2.0, 1.5))
    want = np.zeros((4, 4))
    want[[2, 1, 0, 3], [0, 1, 2, 3]] = 3.0, 2.0, 1.5, 1
    np.testing.assert_array_equal(found.volume.affine, want)
    refused(path, "NO_GEOMETRY", "states no geometry", numbering="regions")


def test_numbers_that_nothing_explains_are_refused(tmp_path):
    path = save_labels(tmp_path / "a.nii.gz", labels_of(1))
    refused(path, "UNKNOWN_CLASSES", "does not name its classes.*; state numbering: totalseg")


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (labels_of(1, 1.5, dtype="f4"), "values between whole numbers; no label map"),
        (labels_of(1, -1, dtype="i2"), "values from -1 to 1, wanted numbers of classes"),
        (labels_of(1, 1001, dtype="i2"), "values from 0 to 1001, wanted numbers of classes"),
        (labels_of(1, 70000, dtype="i4"), "values from 0 to 70000, wanted numbers of classes"),
        (labels_of(1, 5, 91), r"\[5, 91\] are none of its 5 classes; is it of another task"),
    ],
    ids=["fractions", "negative", "over-1000", "beyond-16-bits", "unknown-number"],
)
def test_values_that_are_no_class_are_refused(tmp_path, labels, match):
    path = save_labels(tmp_path / "a.nii.gz", labels, classes=CLASSES)
    refused(path, "BAD_LABELS", match)


@pytest.mark.parametrize(
    ("classes", "named"),
    [({1: "lung_vessels", 2: "body"}, "body, lung_vessels"), ({1: "pleura"}, "pleura")],
    ids=["other-task", "derived-alone"],
)
def test_classes_that_no_region_is_made_of_are_refused(tmp_path, classes, named):
    path = save_labels(tmp_path / "a.nii.gz", labels_of(1), classes=classes)
    refused(path, "UNKNOWN_CLASSES", rf"none of its classes \({named}\) is part of a region")


def test_a_folder_holds_a_file_per_class(tmp_path):
    first, both = labels_of(1, 1, 0), labels_of(0, 1, 1, dtype="f4")
    save_labels(tmp_path / "heart_myocardium.nii.gz", first)
    save_labels(tmp_path / "liver.nii", both * 255)
    save_labels(tmp_path / "kidney_left.nii.gz", labels_of())
    save_labels(tmp_path / "face.nii.gz", labels_of(7, 8, 9, shape=(1, 1, 3)))
    (tmp_path / "notes.txt").write_text("not a mask")
    found = read_label_map(tmp_path)
    assert found.volume.array.ravel()[:4].tolist() == [8, 8, 15, 0]  # heart is first by name
    assert found.known == {8, 15, 18}
    np.testing.assert_allclose(found.volume.affine, UPRIGHT, atol=1e-5)


def test_a_folder_of_another_kind_is_refused(tmp_path):
    refused(tmp_path, "UNKNOWN_CLASSES", r"none of its classes \(no file\) is part of a region")
    save_labels(tmp_path / "brain.nii.gz", labels_of(1))
    refused(tmp_path, "UNKNOWN_CLASSES", r"none of its classes \(brain\) is part of a region")


@pytest.mark.parametrize(
    ("labels", "affine"),
    [
        (labels_of(1, shape=(3, 4, 6)), UPRIGHT),
        (labels_of(1), shifted(UPRIGHT, (0, 0, 1))),
    ],
    ids=["shape", "place"],
)
def test_files_of_a_folder_lie_on_one_grid(tmp_path, labels, affine):
    save_labels(tmp_path / "aorta.nii.gz", labels_of(1))
    path = save_labels(tmp_path / "spleen.nii.gz", labels, affine)
    with pytest.raises(VolumeError, match="not on the grid of the files beside it") as caught:
        read_label_map(tmp_path)
    assert caught.value.reason == "BAD_LABELS"
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("values", [(1, 2), (0.25, 1), (-1,)], ids=["two", "soft", "negative"])
def test_a_file_of_a_folder_is_a_mask(tmp_path, values):
    save_labels(tmp_path / "aorta.nii.gz", labels_of(*values, dtype="f4"))
    with pytest.raises(VolumeError, match="several values, wanted a mask of one class") as caught:
        read_label_map(tmp_path)
    assert caught.value.reason == "BAD_LABELS"


@pytest.mark.parametrize("name", ["gone.nii.gz", "cut.nii.gz"])
def test_what_the_reader_refuses_keeps_its_reason(tmp_path, name):
    (tmp_path / "cut.nii.gz").write_bytes(b"")
    reason = "FILE_MISSING" if name == "gone.nii.gz" else "FILE_TRUNCATED"
    refused(tmp_path / name, reason, name)
