import io

import matplotlib.image
import numpy as np
import pytest

from ct3dlib.regions.label_map import COLORS
from ct3dlib.report.pictures import above, beside, difference, planes, png

CUBE = (1.6, 1.6, 1.6)  # one pixel a voxel


def split(picture: np.ndarray, widths: list[int]) -> list[np.ndarray]:
    starts = np.cumsum([0, *(w + 4 for w in widths[:-1])])
    return [picture[:, a : a + w] for a, w in zip(starts, widths, strict=True)]


def test_planes_show_the_patient_as_a_radiologist_sees_him():
    hu = np.full((7, 9, 11), -1000.0)
    hu[3, 1, 5] = hu[6, 4, 5] = hu[3, 4, 0] = 1000  # front, head, right; all on the middle cuts
    axial, coronal, sagittal = split(planes(hu, CUBE)[..., 0], [11, 11, 9])
    assert np.argwhere(axial == 255).tolist() == [[1, 5], [4, 0]]
    assert np.argwhere(coronal == 255).tolist() == [[1, 5], [4, 0]]
    assert np.argwhere(sagittal == 255).tolist() == [[1, 4], [4, 1]]


def test_planes_keep_proportions():
    picture = planes(np.zeros((10, 20, 30)), (8.0, 1.6, 3.2))
    assert picture.shape == (50, 60 + 4 + 60 + 4 + 20, 3)


def test_planes_cut_where_asked():
    hu = np.zeros((4, 4, 4))
    hu[3] = 1000
    assert planes(hu, CUBE, at=(1.0, 0.5, 0.5))[:, :4].min() == 255
    assert planes(hu, CUBE, at=(0.0, 0.5, 0.5))[:, :4].max() == 127


def test_window_maps_to_black_and_white():
    hu = np.array([-160, 40, 240, 2000])[None, None].repeat(4, 1).repeat(4, 0)
    row = planes(hu, CUBE, window=(-160.0, 240.0))[0, :4, 0]
    assert row.tolist() == [0, 127, 255, 255]


def test_regions_are_laid_over_in_their_colour():
    regions = np.zeros((3, 3, 3), np.uint8)
    regions[1, 1, 1] = 8
    picture = planes(np.full((3, 3, 3), -1000.0), CUBE, regions=regions)
    assert picture[1, 1] == pytest.approx(np.multiply(COLORS[8], 0.4), abs=1)
    assert picture[0, 0].tolist() == [0, 0, 0]


def test_difference_is_red_above_and_blue_below():
    first = np.zeros((3, 3, 4), np.int16)
    second = first.copy()
    second[..., 0], second[..., 1] = 500, -250
    picture = difference(first, second, CUBE)
    assert picture[1, :3].tolist() == [[255, 0, 0], [0, 0, 127], [0, 0, 0]]


def test_pictures_join_with_dark_gaps():
    white = np.full((2, 3, 3), 255, np.uint8)
    tall = np.full((4, 2, 3), 255, np.uint8)
    row = beside([white, tall])
    assert row.shape == (4, 9, 3)
    assert row[:, 0, 0].tolist() == [0, 255, 255, 0]
    assert row[:, 3:7].max() == 0
    column = above([white, tall])
    assert column.shape == (10, 3, 3)
    assert column[2:6].max() == 0
    assert column[6, :, 0].tolist() == [255, 255, 0]


def test_png_gives_the_picture_back():
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    read = matplotlib.image.imread(io.BytesIO(png(picture)))
    np.testing.assert_array_equal(np.round(read[..., :3] * 255), picture)


def test_a_single_slice_is_seen_from_above_alone():
    slices = np.arange(20.0).reshape(1, 4, 5)
    assert (
        planes(slices, CUBE, window=(0.0, 20.0)).shape[1]
        < planes(np.concatenate([slices, slices]), CUBE, window=(0.0, 20.0)).shape[1]
    )
    assert difference(slices, slices, CUBE).shape == planes(slices, CUBE).shape


def test_a_difference_is_full_at_a_quarter_of_the_window():
    first = np.zeros((1, 1, 2))
    second = np.array([[[64.0, -32.0]]])
    picture = difference(first, second, CUBE, window=(0.0, 256.0))
    assert picture[..., 0].max() == 255
    assert 120 < picture[..., 2].max() < 135
