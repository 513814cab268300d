import numpy as np
import pytest
import SimpleITK

from ct3dlib.scan.geometry import shear
from ct3dlib.scan.itk import read_itk
from ct3dlib.scan.itk_grid import read_grid
from ct3dlib.scan.itk_header import read_text_header
from ct3dlib.scan.nifti import read_nifti
from tests.scan.itk_files import (
    ARRAY,
    DIRECTIONS,
    LANDMARK,
    LPS,
    SHAPE,
    STEPS,
    meta,
    nrrd,
    picture,
    refused,
    save,
)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd", "a.nii.gz"])
def test_a_landmark_lies_where_itk_puts_it(tmp_path, name, direction):
    array = np.full(SHAPE, -1000, np.int16)
    array[LANDMARK] = 2000
    path = save(tmp_path / name, picture(array, DIRECTIONS[direction]))
    volume = (read_nifti if name.endswith("gz") else read_itk)(path).volume
    (place,) = np.argwhere(volume.array == 2000).tolist()
    assert place == list(LANDMARK)
    want = SimpleITK.ReadImage(str(path)).TransformIndexToPhysicalPoint(LANDMARK[::-1])
    np.testing.assert_allclose((volume.affine @ (*place, 1))[:3], want, atol=1e-3)
    np.testing.assert_allclose(volume.spacing, (2.5, 0.8, 0.7), rtol=1e-5)


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (1, 1, 1)),
        ("right-anterior-superior", (-1, -1, 1)),
        ("RAS", (-1, -1, 1)),
        ("left-anterior-superior", (1, -1, 1)),
    ],
)
def test_the_space_of_an_nrrd_becomes_lps(tmp_path, space, signs):
    path = nrrd(tmp_path / "a.nrrd", f"space: {space}", *LPS[1:])
    reading = read_itk(path)
    # Voxel i, j, k = 2, 3, 4: 1 + 2 * 0.7, 2 + 3 * 0.8, 3 + 4 * 2.5 in the file's space.
    want = np.array([2.4, 4.4, 13.0]) * signs
    np.testing.assert_allclose((reading.volume.affine @ (4, 3, 2, 1))[:3], want)
    assert "assumed_orientation" not in reading.facts


def test_what_says_no_orientation_is_taken_as_lps_and_noted(tmp_path):
    for path in (
        nrrd(tmp_path / "a.nrrd", "spacings: 0.7 0.8 2.5"),
        nrrd(tmp_path / "b.nrrd", "space dimension: 3", *LPS[1:]),
        meta(tmp_path / "a.mha", STEPS[0]),
        meta(tmp_path / "b.mha", "ElementSize = 0.7 0.8 2.5"),
    ):
        reading = read_itk(path)
        assert reading.volume.spacing == pytest.approx((2.5, 0.8, 0.7))
        assert reading.facts["assumed_orientation"] is True


def test_a_sheared_grid_keeps_its_shear(tmp_path):
    path = nrrd(tmp_path / "a.nrrd", LPS[0], "space directions: (0.7,0,0) (0,0.8,0) (0,0.5,2.5)")
    volume = read_itk(path).volume
    np.testing.assert_allclose(volume.affine[:3, 0], (0, 0.5, 2.5))
    assert shear(volume.affine) == pytest.approx(0.5 / np.hypot(0.5, 2.5))


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("thicknesses: 1 1 2",),
        ("spacings: nan 0.8 2.5",),
    ],
    ids=["nothing", "thicknesses", "nan"],
)
def test_an_nrrd_without_spacing_takes_one_from_the_metadata_or_none(tmp_path, lines):
    path = nrrd(tmp_path / "a.nrrd", *lines)
    refused(path, "NO_GEOMETRY", "states no spacing and none is known; add it to the metadata")
    reading = read_itk(path, spacing=(3.0, 0.5, 0.4))
    assert reading.volume.spacing == (3.0, 0.5, 0.4)
    assert reading.facts["blank_header"] is True
    assert read_grid(read_text_header(path)).affine is None


def test_a_metaimage_without_spacing_is_blank_too(tmp_path):
    refused(meta(tmp_path / "a.mha"), "NO_GEOMETRY", "states no spacing")
    assert read_itk(meta(tmp_path / "b.mha", *STEPS), spacing=(9.0, 9.0, 9.0)).volume.spacing == (
        pytest.approx((2.5, 0.8, 0.7))
    )


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("ElementSpacing = 0 0.8 2.5", r"spacing \[0.0, 0.8, 2.5\], wanted positive numbers"),
        ("ElementSpacing = -0.7 0.8 2.5", "wanted positive numbers"),
        ("ElementSpacing = nan 0.8 2.5", "wanted positive numbers"),
        ("ElementSpacing = 0.7 0.8 2500", "2500 mm apart, wanted 0.01 to 100 mm"),
        (f"{STEPS[0]}\nTransformMatrix = 1 0 0 1 0 0 0 0 1", "its affine is singular"),
        (f"{STEPS[0]}\nDistanceUnits = ell", "distances in ell, wanted one of m, cm, mm"),
    ],
)
def test_a_broken_geometry_is_refused(tmp_path, line, match):
    refused(meta(tmp_path / "a.mha", line), "BAD_GEOMETRY", match)


def test_other_units_than_mm_are_converted(tmp_path):
    units = 'space units: "cm" "cm" "cm"'
    directions = "space directions: (0.07,0,0) (0,0.08,0) (0,0,0.25)"
    path = nrrd(tmp_path / "a.nrrd", LPS[0], directions, units, "space origin: (1,2,3)")
    reading = read_itk(path)
    assert reading.volume.spacing == pytest.approx((2.5, 0.8, 0.7))
    assert reading.volume.affine[:3, 3].tolist() == [10.0, 20.0, 30.0]
    assert reading.facts["header_unit_mm"] == 10
    mixed = nrrd(tmp_path / "b.nrrd", *LPS, 'space units: "mm" "mm" "cm"')
    refused(mixed, "BAD_GEOMETRY", "for all axes; write the header anew")


def test_a_last_axis_of_one_is_dropped(tmp_path):
    lists = ("kinds: domain domain domain list", "space directions: (1,0,0) (0,1,0) (0,0,2) none")
    for path in (
        nrrd(tmp_path / "a.nrrd", "spacings: 1 1 2 1", sizes="7 6 5 1"),
        nrrd(tmp_path / "b.nrrd", LPS[0], *lists, sizes="7 6 5 1"),
        meta(tmp_path / "a.mha", "ElementSpacing = 1 1 2 1", sizes="7 6 5 1"),
    ):
        volume = read_itk(path).volume
        np.testing.assert_array_equal(volume.array, ARRAY)
        assert volume.spacing == (2.0, 1.0, 1.0)


@pytest.mark.parametrize("sizes", ["42 5", "7 3 2 5"])
def test_other_numbers_of_axes_are_refused(tmp_path, sizes):
    spacing = "ElementSpacing = " + "1 " * len(sizes.split())
    refused(meta(tmp_path / "a.mha", spacing, sizes=sizes), "NOT_3D", "wanted 3; split it")


def test_vectors_and_colours_are_refused(tmp_path):
    vector = (
        "kinds: vector domain domain domain",
        "space directions: none (1,0,0) (0,1,0) (0,0,1)",
    )
    for path in (
        nrrd(tmp_path / "a.nrrd", LPS[0], *vector, sizes="3 7 2 5"),
        meta(tmp_path / "a.mha", *STEPS, "ElementNumberOfChannels = 3", sizes="7 2 5"),
    ):
        refused(path, "NOT_SCALAR", r"3 values per voxel.*, wanted one number; convert it")


def test_headers_are_read_without_voxels(tmp_path):
    path = nrrd(tmp_path / "a.nrrd", *LPS, data=b"")
    grid = read_grid(read_text_header(path))
    assert grid.shape == SHAPE
    np.testing.assert_allclose(grid.affine[:3, 0], (0, 0, 2.5))


@pytest.mark.parametrize(
    "lines",
    [
        ("spacings: 0.7 0.8 2.5",),
        (LPS[0], "space directions: (0.5,0.1,0) (0.2,0.6,0) (0,0.5,2)", LPS[2]),
        ("space: scanner-xyz", *LPS[1:]),
        ("space: RAS", "space directions: (0,0.5,0) (0,0,-0.6) (2,0,0)", "space origin: (1,2,3)"),
    ],
    ids=["spacings", "sheared", "scanner", "turned"],
)
def test_an_nrrd_lies_where_itk_puts_it(tmp_path, lines):
    path = nrrd(tmp_path / "a.nrrd", *lines)
    image = SimpleITK.ReadImage(str(path))
    affine = read_itk(path).volume.affine
    for d, h, w in ((0, 0, 0), (4, 0, 0), (0, 5, 0), (0, 0, 6), (1, 2, 3)):
        want = image.TransformIndexToPhysicalPoint((w, h, d))
        np.testing.assert_allclose((affine @ (d, h, w, 1))[:3], want, atol=1e-9)


@pytest.mark.parametrize(
    ("line", "reason", "match"),
    [
        ("sizes: 7 six 5", "FILE_UNREADABLE", "sizes are '7 six 5' of '3' axes, wanted as many"),
        ("sizes: 7 6 5 1", "FILE_UNREADABLE", "wanted as many whole numbers"),
        ("kinds: domain domain", "FILE_UNREADABLE", "2 kinds and 3 directions of 3 axes"),
        ("space origin: (1,2)", "BAD_GEOMETRY", "'1 2' in its geometry, wanted at least 3 num"),
        ("space directions: (1,0,0) (0,a,0) (0,0,1)", "BAD_GEOMETRY", "'0 a 0' in its geometry"),
        ("space origin: (nan,nan,nan)", "BAD_GEOMETRY", "singular or not finite"),
    ],
    ids=["words", "axes", "kinds", "origin", "directions", "nan"],
)
def test_fields_that_contradict_each_other_are_refused(tmp_path, line, reason, match):
    refused(nrrd(tmp_path / "a.nrrd", *LPS, line), reason, match)


def test_time_points_are_no_volume(tmp_path):
    lines = (
        LPS[0],
        "space directions: none (1,0,0) (0,1,0) (0,0,2)",
        "kinds: time domain domain domain",
    )
    refused(
        nrrd(tmp_path / "a.nrrd", *lines, sizes="5 7 6 1"),
        "NOT_3D",
        "axis of kind time and length 5, wanted",
    )
