"""Pictures, folders of them and movies as stacks, and stacks as what they were read from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ct3dlib.errors import ConfigError, VolumeError
from ct3dlib.scan.mp4 import write_mp4
from ct3dlib.scan.picture import GreyStack, check_target, picture_files, read_stack, write_stack

GREY = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7) * 7


def save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path)
    return path


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_grey_of_any_mode_is_read_exactly(tmp_path, mode: str):
    stack = read_stack(save(tmp_path / "a.PNG", GREY, mode))
    assert (stack.kind, stack.names) == ("picture", ("a.PNG",))
    np.testing.assert_array_equal(stack.array, GREY[None])


def test_colour_becomes_luminance_by_hand(tmp_path):
    colour = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]]], np.uint8)
    found = read_stack(save(tmp_path / "a.png", colour)).array
    # 0.299 * 255 = 76.2, 0.587 * 255 = 149.7, 0.114 * 255 = 29.1, 2.99 + 11.74 + 3.42 = 18.15
    assert found.tolist() == [[[76, 150, 29, 18]]]


def test_black_and_white_becomes_0_and_255(tmp_path):
    found = read_stack(save(tmp_path / "a.png", GREY > 100)).array
    np.testing.assert_array_equal(found[0], np.where(GREY > 100, 255, 0))


def test_a_folder_is_sorted_as_people_count(tmp_path):
    names = ["slice_10.png", "slice_2.png", "Slice_1.png", "slice_2b.png", "slice_02.png"]
    for level, name in enumerate(names):
        save(tmp_path / "in" / name, np.full((2, 3), level, np.uint8))
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / ".hidden.png").write_text("no picture")
    (tmp_path / "in" / "more.png").mkdir()
    wanted = ["Slice_1.png", "slice_02.png", "slice_2.png", "slice_2b.png", "slice_10.png"]
    assert [path.name for path in picture_files(tmp_path / "in")] == wanted
    stack = read_stack(tmp_path / "in")
    assert (stack.kind, stack.names) == ("folder", tuple(wanted))
    assert stack.array[:, 0, 0].tolist() == [2, 4, 1, 3, 0]


def test_a_folder_is_written_under_the_same_names(tmp_path):
    for level in range(3):
        save(tmp_path / "in" / f"{level}.png", np.full((4, 3), level, np.uint8))
    stack = read_stack(tmp_path / "in")
    (tmp_path / "out").mkdir()
    write_stack(tmp_path / "out", replace(stack, array=stack.array + np.uint8(50)))
    back = read_stack(tmp_path / "out")
    assert back.names == ("0.png", "1.png", "2.png")
    np.testing.assert_array_equal(back.array, stack.array + 50)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_jpeg_is_nearly_kept_and_png_exactly(tmp_path):
    smooth = np.add.outer(np.arange(32), np.arange(40)).astype(np.uint8) * 3
    stack = GreyStack(smooth[None], "picture", ("a.png",))
    for name, most in (("a.png", 0), ("a.jpg", 6), ("b.JPEG", 6)):
        write_stack(tmp_path / "deep" / name, stack)
        found = read_stack(tmp_path / "deep" / name).array[0]
        assert np.abs(found.astype(int) - smooth).max() <= most
    with Image.open(tmp_path / "deep" / "b.JPEG") as picture:
        assert (picture.format, picture.mode) == ("JPEG", "L")


def test_a_movie_comes_back_as_a_movie(tmp_path):
    frames = np.full((4, 15, 20), 90, np.uint8)
    write_mp4(tmp_path / "a.mp4", frames, fps=8)
    stack = read_stack(tmp_path / "a.mp4")
    assert (stack.kind, stack.fps, stack.names) == ("movie", 8.0, ("a.mp4",))
    write_stack(tmp_path / "b.mp4", replace(stack, array=255 - stack.array))
    back = read_stack(tmp_path / "b.mp4")
    assert (back.array.shape, back.fps) == ((4, 15, 20), 8.0)
    assert np.abs(back.array.astype(int) - 165).max() <= 2


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        (None, "FILE_MISSING", r"a\.png: no such file"),
        (b"", "FILE_TRUNCATED", r"a\.png: the file is cut short, it ends within the picture"),
        (b"not a picture", "FILE_UNREADABLE", r"a\.png: no PNG or JPEG picture, or damaged"),
    ],
    ids=["missing", "empty", "text"],
)
def test_what_is_no_picture_is_said(tmp_path, content, reason: str, message: str):
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(VolumeError, match=message) as error:
        read_stack(tmp_path / "a.png")
    assert error.value.reason == reason


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_picture_that_is_cut_short_is_said(tmp_path, name: str):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    whole = save(tmp_path / name, noise).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VolumeError, match="cut short, it ends within the picture"):
        read_stack(tmp_path / name)


def test_pixels_of_16_bits_are_refused(tmp_path):
    path = save(tmp_path / "a.png", GREY.astype(np.uint16) * 200)
    with pytest.raises(VolumeError, match=r"a\.png: pixels of mode I;16.*, wanted grey") as error:
        read_stack(path)
    assert error.value.reason == "NOT_8_BIT"


def test_a_picture_larger_than_any_slice_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(VolumeError, match=r"more pixels than any slice has .* scale it down"):
        read_stack(save(tmp_path / "a.png", GREY))


def test_pictures_of_two_sizes_are_refused(tmp_path):
    save(tmp_path / "in/1.png", np.zeros((4, 3), np.uint8))
    save(tmp_path / "in/2.png", np.zeros((3, 4), np.uint8))
    with pytest.raises(VolumeError, match=r"2\.png: 3 x 4 pixels, wanted the 4 x 3 of 1\.png"):
        read_stack(tmp_path / "in")


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(VolumeError, match=r"no pictures, wanted files \.png, \.jpg, \.jpeg"):
        read_stack(tmp_path)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("picture", "a.mp4", r"a\.mp4: the name must end with \.png or \.jpg or \.jpeg, as x is a"),
        ("movie", "a.gif", r"a\.gif: the name must end with \.mp4, as x is a movie"),
    ],
)
def test_a_name_of_another_kind_is_refused(tmp_path, kind, name: str, message: str):
    stack = GreyStack(GREY[None], kind, ("x",))
    with pytest.raises(ConfigError, match=message):
        check_target(tmp_path / name, stack)


def test_no_picture_is_written_over_what_is_there(tmp_path):
    save(tmp_path / "in/1.png", GREY)
    stack = read_stack(tmp_path / "in")
    for there in (tmp_path / "in", tmp_path / "in/1.png"):
        with pytest.raises(FileExistsError, match="is there already; pictures go to a folder"):
            write_stack(there, stack)
    np.testing.assert_array_equal(read_stack(tmp_path / "in").array[0], GREY)
