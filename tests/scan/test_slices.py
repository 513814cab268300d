import hashlib

import numpy as np
import pytest
from PIL import Image

from ct3dlib.errors import VolumeError
from ct3dlib.scan.slices import (
    key_place,
    read_key_slices,
    read_mask,
    read_slices,
    read_slices_shape,
    write_mask,
)

SHAPE = (3, 40, 56)


def ramp(number, shape=SHAPE[1:]):
    """Return smooth grey values that JPEG keeps to a few units."""
    rows, columns = np.indices(shape)
    return (20 + 40 * number + rows + columns).astype(np.uint8)


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, quality=95, **options)
    return path


@pytest.fixture
def stack(tmp_path):
    return [save(tmp_path / f"{n}.jpg", ramp(n)) for n in range(SHAPE[0])]


def refused(paths, reason, match):
    with pytest.raises(VolumeError, match=match) as caught:
        read_slices(paths)
    assert caught.value.reason == reason


def test_slices_become_a_volume_of_grey_values_in_the_order_given(stack):
    reading = read_slices(stack)
    volume = reading.volume
    assert (volume.array.dtype, volume.shape, volume.domain) == (np.uint8, SHAPE, "window8")
    want = np.stack([ramp(n) for n in range(3)]).astype(int)
    assert np.abs(volume.array.astype(int) - want).max() <= 2
    assert np.array_equal(read_slices(stack[::-1]).volume.array, volume.array[::-1])
    assert (reading.slope, reading.intercept, reading.hu) == (None, None, False)
    digests = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in stack)
    assert reading.sha256 == hashlib.sha256("".join(digests).encode()).hexdigest()


def test_a_landmark_lies_at_its_slice_row_and_column(tmp_path):
    paths = []
    for number in range(3):
        pixels = np.zeros(SHAPE[1:], np.uint8)
        if number == 2:
            pixels[8:16, 24:32] = 255  # one block of JPEG, so that no other is touched
        paths.append(save(tmp_path / f"{number}.jpg", pixels))
    volume = read_slices(paths, spacing=(5.0, 0.5, 0.25)).volume
    assert np.argwhere(volume.array > 127).min(axis=0).tolist() == [2, 8, 24]
    assert np.argwhere(volume.array > 127).max(axis=0).tolist() == [2, 15, 31]
    # x = 24 columns of 0.25 mm, y = 8 rows of 0.5 mm, z = 2 slices of 5 mm.
    assert (volume.affine @ (2, 8, 24, 1)).tolist() == [6.0, 4.0, 10.0, 1.0]


def test_an_unknown_spacing_is_1_mm_and_noted(stack):
    reading = read_slices(stack)
    assert reading.volume.spacing == (1.0, 1.0, 1.0)
    assert reading.facts == {
        "format": "pictures",
        "files": 3,
        "assumed_orientation": True,
        "assumed_spacing": True,
    }
    assert "assumed_spacing" not in read_slices(stack, spacing=(2.0, 1.0, 1.0)).facts


@pytest.mark.parametrize(
    ("colour", "grey"),
    # 0.299 R + 0.587 G + 0.114 B
    [((200, 200, 200), 200), ((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29)],
)
def test_colour_becomes_luminance(tmp_path, colour, grey):
    pixels = np.full((16, 24, 3), colour, np.uint8)
    array = read_slices([save(tmp_path / "0.jpg", pixels)]).volume.array
    assert np.abs(array.astype(int) - grey).max() <= 1


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to look at it
    plain = read_slices([save(tmp_path / "0.jpg", ramp(0))])
    turned = read_slices([save(tmp_path / "1.jpg", ramp(0), exif=exif)])
    assert turned.volume.shape == (1, 40, 56)
    assert np.array_equal(turned.volume.array, plain.volume.array)


def test_the_shape_needs_the_first_header_only(stack):
    stack[1].write_bytes(b"")
    stack[0].write_bytes(stack[0].read_bytes()[:-200])
    assert read_slices_shape(stack) == SHAPE


def test_slices_of_another_size_are_refused(stack, tmp_path):
    other = save(tmp_path / "other.jpg", ramp(0, (40, 48)))
    refused([*stack, other], "MIXED_SERIES", "40 x 48 pixels, wanted the 40 x 56 of 0.jpg")


def test_damaged_files_have_their_reason(stack, tmp_path):
    whole = stack[1].read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 50):
        stack[1].write_bytes(whole[:length])
        refused(stack, "FILE_TRUNCATED", "1.jpg: the file is cut short, it ends within the pict")
    stack[1].write_bytes(b"no picture")
    refused(stack, "FILE_UNREADABLE", "1.jpg: no PNG or JPEG picture, or damaged .*fetch it again")
    refused([tmp_path / "none.jpg"], "FILE_MISSING", "none.jpg: no such file")


def test_other_pictures_and_colours_are_refused(tmp_path):
    Image.fromarray(ramp(0)).save(tmp_path / "0.jpg", format="GIF")
    refused([tmp_path / "0.jpg"], "FILE_UNREADABLE", "no PNG or JPEG picture")
    Image.new("CMYK", (8, 8)).save(tmp_path / "1.jpg")
    refused([tmp_path / "1.jpg"], "NOT_SCALAR", "mode CMYK, wanted grey or RGB of 8 bits")


def test_a_picture_of_more_pixels_than_a_slice_is_refused(stack, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 56 - 1)
    refused(stack, "TOO_LARGE", "more pixels than any slice has")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused(stack, "TOO_LARGE", "more pixels than any slice has")


def test_a_stack_needs_a_slice():
    with pytest.raises(ValueError, match="a stack has at least one slice"):
        read_slices([])


def test_a_mask_comes_back_as_it_was_drawn(tmp_path):
    rows, columns = np.indices((64, 80))
    disc = (rows - 30) ** 2 + (columns - 41) ** 2 <= 36
    write_mask(tmp_path / "masks/1.jpg", disc)
    back = read_mask(tmp_path / "masks/1.jpg")
    assert back.dtype == np.bool_
    dice = 2 * (back & disc).sum() / (back.sum() + disc.sum())
    assert dice >= 0.99
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["1.jpg"]


@pytest.mark.parametrize(("value", "is_set"), [(127, False), (128, True)])
def test_a_mask_is_set_above_127(tmp_path, value, is_set):
    path = save(tmp_path / "0.jpg", np.full((16, 16), value, np.uint8))
    assert read_mask(path).all() == is_set
    assert read_mask(path).any() == is_set


def test_a_mask_picture_has_two_axes(tmp_path):
    with pytest.raises(ValueError, match=r"a mask picture has 2 axes \(H, W\), not 3"):
        write_mask(tmp_path / "0.jpg", np.zeros((2, 3, 4), bool))


def numbered(folder, *numbers):
    return [save(folder / f"{n}.jpg", np.full((16, 24), 100 + 20 * n, np.uint8)) for n in numbers]


@pytest.mark.parametrize(
    ("numbers", "count", "grey", "z_real"),
    [
        ((-4, -3, -2, -1, 0, 1, 2, 3, 4), 4, [80, 100, 120, 140], [True] * 4),
        ((-1, 0, 1), 4, [80, 100, 120, 100], [True, True, True, False]),
        ((0, 2), 4, [100, 100, 100, 140], [False, True, False, True]),
        ((-2, -1, 0, 1, 2), 3, [80, 100, 120], [True] * 3),
        ((-1, 0), 1, [100], [True]),
        ((0,), 4, [100] * 4, [False, True, False, False]),
    ],
)
def test_neighbours_stand_around_the_key_slice_or_it_stands_in(
    tmp_path, numbers, count, grey, z_real
):
    reading = read_key_slices(numbered(tmp_path, *numbers), count, spacing=(3.0, 1.0, 1.0))
    assert reading.volume.array[:, 8, 12].tolist() == pytest.approx(grey, abs=2)
    assert reading.facts["z_real"] == z_real
    assert z_real[key_place(count)]
    assert reading.volume.spacing == (3.0, 1.0, 1.0)


def test_a_picture_alone_is_the_key_slice_whatever_it_is_called(tmp_path):
    path = save(tmp_path / "case_7.jpg", ramp(1))
    reading = read_key_slices([path], 4)
    assert (reading.volume.array == read_slices([path]).volume.array).all()
    assert reading.facts["z_real"] == [False, True, False, False]


def test_slices_without_a_key_slice_are_refused(tmp_path):
    paths = numbered(tmp_path, -1, 1)
    with pytest.raises(VolumeError, match="none of these 2 pictures is the key slice 0") as caught:
        read_key_slices(paths, 4)
    assert caught.value.reason == "FILE_MISSING"
    with pytest.raises(ValueError, match="at least one slice"):
        read_key_slices([], 4)
