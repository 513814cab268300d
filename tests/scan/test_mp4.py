"""MP4 files of grey and colour frames, written and read back."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest

from ct3dlib.errors import VolumeError
from ct3dlib.scan import mp4
from ct3dlib.scan.mp4 import read_mp4, write_mp4

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (5, 48, 1))  # N H W
RAMP[1::2] = RAMP[1::2, :, ::-1]


def test_grey_frames_come_back_nearly_as_they_were_black_and_white_included(tmp_path):
    write_mp4(tmp_path / "a.mp4", RAMP, fps=12.5)
    movie = read_mp4(tmp_path / "a.mp4")
    assert movie.frames.shape == RAMP.shape
    assert movie.fps == 12.5
    assert np.abs(movie.frames.astype(int) - RAMP).max() <= 3
    assert movie.frames.min() <= 1
    assert movie.frames.max() >= 251


def test_frames_that_are_alike_stay_frames_of_their_own(tmp_path):
    write_mp4(tmp_path / "a.mp4", np.full((7, 16, 16), 100, np.uint8), fps=30000 / 1001)
    movie = read_mp4(tmp_path / "a.mp4")
    assert movie.fps == pytest.approx(30000 / 1001, rel=1e-12)
    assert movie.frames.shape == (7, 16, 16)
    assert (np.abs(movie.frames.astype(int) - 100) <= 1).all()


@pytest.mark.parametrize(("height", "width"), [(15, 20), (16, 21), (1, 1), (17, 33)])
def test_odd_sizes_are_kept(tmp_path, height: int, width: int):
    frames = np.full((3, height, width), 77, np.uint8)
    frames[:, : height // 2] = 180
    write_mp4(tmp_path / "a.mp4", frames, fps=10)
    found = read_mp4(tmp_path / "a.mp4").frames
    assert found.shape == frames.shape
    assert np.abs(found.astype(int) - frames).mean() < 2


def test_colour_becomes_luminance(tmp_path):
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    frames[..., 1] = 200
    write_mp4(tmp_path / "a.mp4", frames, fps=10)
    found = read_mp4(tmp_path / "a.mp4").frames
    assert np.abs(found.astype(int) - round(0.587 * 200)).max() <= 2


def test_the_same_frames_are_the_same_bytes_and_nothing_else_is_left(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_mp4(tmp_path / name, RAMP, fps=10)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_frames_of_a_changing_rate_are_read_once_each(tmp_path):
    write_mp4(tmp_path / "a.mp4", RAMP, fps=10)
    # The last frames are shown later: a player, and ffmpeg by default, would fill the gap.
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(tmp_path / "a.mp4")]
    command += ["-vf", "setpts='if(gt(N,2),PTS+1/TB,PTS)'", "-fps_mode", "vfr"]
    subprocess.run([*command, str(tmp_path / "b.mp4")], check=True)
    assert len(read_mp4(tmp_path / "b.mp4").frames) == 5


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        (None, "FILE_MISSING", r"a\.mp4: no such file"),
        (b"", "FILE_UNREADABLE", r"a\.mp4: no MP4 with a video, or damaged \(.+\); fetch it again"),
        (b"GIF89a" * 99, "FILE_UNREADABLE", "no MP4 with a video, or damaged"),
    ],
    ids=["missing", "empty", "another kind"],
)
def test_what_is_no_movie_is_said(tmp_path, content, reason: str, message: str):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VolumeError, match=message) as error:
        read_mp4(path)
    assert error.value.reason == reason


def test_a_movie_that_is_cut_short_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (9, 64, 64), dtype=np.uint8)
    write_mp4(tmp_path / "a.mp4", noise, fps=10)
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VolumeError, match="damaged"):
        read_mp4(tmp_path / "b.mp4")


def test_a_movie_larger_than_any_scan_is_not_read_into_memory(tmp_path, monkeypatch):
    write_mp4(tmp_path / "a.mp4", RAMP, fps=10)
    monkeypatch.setattr("ct3dlib.scan.reading.MAX_VOXELS", 2 * 48 * 64)
    with pytest.raises(VolumeError, match=r"a\.mp4: the header states") as error:
        read_mp4(tmp_path / "a.mp4")
    assert error.value.reason == "TOO_LARGE"


@pytest.mark.parametrize(
    ("name", "shape", "fps"),
    [
        ("a.avi", (1, 2, 2), 10),
        ("a.mp4", (0, 2, 2), 10),
        ("a.mp4", (1, 2, 2), 0),
        ("a.mp4", (1, 2, 2, 4), 1),
    ],
    ids=["name", "no frames", "rate", "channels"],
)
def test_frames_that_are_none_are_refused(tmp_path, name: str, shape, fps: float):
    with pytest.raises(ValueError, match=r"wanted a name that ends in \.mp4, frames N H W"):
        write_mp4(tmp_path / name, np.zeros(shape, np.uint8), fps=fps)


def test_without_ffmpeg_the_way_out_is_named(tmp_path, monkeypatch):
    def none() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    write_mp4(tmp_path / "a.mp4", RAMP, fps=10)
    monkeypatch.setattr(mp4.imageio_ffmpeg, "get_ffmpeg_exe", none)
    with pytest.raises(FileNotFoundError, match="install imageio-ffmpeg from a wheel, or name"):
        read_mp4(tmp_path / "a.mp4")
    with pytest.raises(FileNotFoundError, match="MP4 needs ffmpeg, and there is none"):
        write_mp4(tmp_path / "b.mp4", RAMP, fps=10)


def test_an_ffmpeg_that_fails_leaves_no_file(tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\ncat > /dev/null\necho 'No space left on device' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    with pytest.raises(OSError, match=r"b\.mp4: ffmpeg cannot write it \(No space left"):
        write_mp4(tmp_path / "b.mp4", RAMP, fps=10)
    assert [path.name for path in tmp_path.iterdir()] == ["ffmpeg"]
