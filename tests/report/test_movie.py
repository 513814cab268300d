"""Movies through slices: how many frames, which grey, and that files play what was drawn."""

import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from ct3dlib.config import RecipeSpec
from ct3dlib.report.movie import comparison_frames, slice_frames, write_movie
from ct3dlib.scan.mp4 import read_mp4


def frames_of(path) -> list[np.ndarray]:
    with Image.open(io.BytesIO(path.read_bytes())) as file:
        return [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)]


@pytest.mark.parametrize(
    ("depth", "every", "count"), [(10, 1, 10), (10, 2, 5), (11, 2, 6), (7, 3, 3), (2, 5, 1)]
)
def test_there_is_a_frame_for_every_n_slices_rounded_up(depth: int, every: int, count: int):
    volume = np.arange(depth, dtype=np.int16)[:, None, None] * np.ones((1, 4, 6), np.int16)
    frames = slice_frames(volume, (0.0, 255.0), every=every)
    assert frames.shape == (count, 4, 6)
    assert frames[:, 0, 0].tolist() == list(range(0, depth, every))


def test_the_window_of_the_contract_decides_what_is_black_and_white():
    hu = np.array([[[-3000, -1000, -200, 600, 3000]]], np.int16)
    window = RecipeSpec(window=(-1000, 600)).window
    assert slice_frames(hu, window).tolist() == [[[0, 0, 128, 255, 255]]]  # 255 * 800 / 1600
    assert slice_frames(hu, (-200.0, 3000.0)).tolist() == [[[0, 0, 0, 64, 255]]]  # 63.75


def test_a_comparison_shows_both_and_their_difference():
    original = np.array([[[-1000, 0, 1000, 5000]]], np.int16)
    made = np.array([[[-1000.0, 100, 500, 1000]]], np.float32)
    frames = comparison_frames(original, made, (-1000.0, 1000.0))
    assert frames.shape == (1, 1, 3 * 4 + 2 * 4, 3)
    row = frames[0, 0]
    assert row[:4, 0].tolist() == [0, 128, 255, 255]
    assert row[8:12, 0].tolist() == [0, 140, 191, 255]  # 255 * (0, 1100, 1500, 2000) / 2000
    assert (row[4:8] == 0).all()
    assert (row[12:16] == 0).all()
    # Full colour is 63.75 greys: 12 of them are 48 of red, -64 more than all of blue; what
    # the window clips is no error.
    assert row[16:].tolist() == [[0, 0, 0], [48, 0, 0], [0, 0, 255], [0, 0, 0]]


def test_volumes_of_two_grids_are_not_compared():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and \(2, 3, 5\) voxels; compare them on"):
        comparison_frames(np.zeros((2, 3, 4)), np.zeros((2, 3, 5)), (0.0, 1.0))
    with pytest.raises(ValueError, match="every must be positive, not 0"):
        slice_frames(np.zeros((2, 3, 4)), (0.0, 1.0), every=0)


def test_a_grey_gif_holds_every_frame_exactly_also_those_that_are_alike(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (6, 8, 10), dtype=np.uint8)
    frames[3] = frames[2]
    frames[4] = frames[2]
    write_movie(tmp_path / "a.gif", frames, fps=20)
    found = frames_of(tmp_path / "a.gif")
    assert len(found) == 6
    for frame, wanted in zip(found, frames, strict=True):
        np.testing.assert_array_equal(frame, np.repeat(wanted[..., None], 3, axis=-1))
    with Image.open(tmp_path / "a.gif") as file:
        assert file.info["duration"] == 50
        assert file.info["loop"] == 0


def test_a_coloured_gif_is_near_its_frames(tmp_path):
    ramp = np.tile(np.linspace(-1000, 1000, 64), (9, 32, 1)).astype(np.int16)
    frames = comparison_frames(ramp, ramp + np.float32(150), (-1000.0, 1000.0), every=2)
    write_movie(tmp_path / "a.gif", frames)
    found = np.stack(frames_of(tmp_path / "a.gif"))
    assert found.shape == frames.shape == (5, 32, 200, 3)
    assert np.abs(found.astype(int) - frames).max() <= 12
    assert np.abs(found.astype(int) - frames).mean() < 1.5


def test_one_frame_is_a_movie_too(tmp_path):
    write_movie(tmp_path / "a.gif", np.full((1, 4, 4), 9, np.uint8))
    assert [frame[0, 0, 0] for frame in frames_of(tmp_path / "a.gif")] == [9]


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_odd_frames_become_even_and_the_same_frames_the_same_bytes(tmp_path, suffix: str):
    frames = np.full((3, 15, 21), 200, np.uint8)
    for name in ("a", "b"):
        write_movie(tmp_path / f"new/{name}{suffix}", frames)
    files = sorted((tmp_path / "new").iterdir())
    assert [path.name for path in files] == [f"a{suffix}", f"b{suffix}"]
    assert files[0].read_bytes() == files[1].read_bytes()
    if suffix == ".mp4":
        movie = read_mp4(files[0])
        assert (movie.frames.shape, movie.fps) == ((3, 16, 22), 10.0)
        found = movie.frames
    else:
        found = np.stack(frames_of(files[0]))[..., 0]
        assert found.shape == (3, 16, 22)
    assert np.abs(found[:, :14, :20].astype(int) - 200).mean() < 4


@pytest.mark.parametrize(
    ("name", "count", "fps"),
    [("a.webm", 1, 10), ("a.gif", 0, 10), ("a.gif", 1, 0)],
    ids=["name", "no frames", "rate"],
)
def test_what_makes_no_movie_is_refused(tmp_path, name: str, count: int, fps: float):
    with pytest.raises(ValueError, match=r"a name that ends in \.gif or \.mp4"):
        write_movie(tmp_path / name, np.zeros((count, 2, 2), np.uint8), fps=fps)
