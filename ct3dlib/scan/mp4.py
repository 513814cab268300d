"""MP4 movies as stacks of grey frames, by the ffmpeg that imageio-ffmpeg brings along."""

import subprocess
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import IO, NamedTuple

import imageio_ffmpeg
import numpy as np
from jaxtyping import UInt8

from ct3dlib.errors import VolumeError
from ct3dlib.scan.reading import check_size

_CRF = 8  # of x264: 0 loses nothing, 18 is called visually lossless
_RATES = 10_000  # largest denominator of a rate: 30000/1001 stays what it is


class Movie(NamedTuple):
    """A movie.

    Args:
        frames: Luminance, 0 black to 255 white.
        fps: Frames per second.
    """

    frames: UInt8[np.ndarray, "N H W"]
    fps: float


def read_mp4(path: Path) -> Movie:
    """Read the first video of an MP4 file; every frame once, whatever its time.

    Raises:
        VolumeError: `FILE_MISSING`, `FILE_UNREADABLE` or `TOO_LARGE`.
        FileNotFoundError: There is no ffmpeg.
    """
    if not path.is_file():
        raise VolumeError("FILE_MISSING", f"{path}: no such file; correct the path")
    # A stream of Y4M says its size and rate itself: no words of ffmpeg need to be understood.
    command = [_ffmpeg(), "-v", "error", "-xerror", "-f", "mp4", "-i", f"file:{path}"]
    command += ["-map", "0:v:0", "-fps_mode", "passthrough"]
    command += ["-f", "yuv4mpegpipe", "-pix_fmt", "gray", "-"]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
        ) as process,
    ):
        stream = process.stdout
        if stream is None:
            raise OSError(f"{command[0]}: its output cannot be read; try again")
        fields = _fields(stream.readline())
        try:
            frames = list(_frames(stream, path, fields))
        finally:
            stream.close()
        if process.wait() or not frames:
            log.seek(0)
            raise VolumeError(
                "FILE_UNREADABLE",
                f"{path}: no MP4 with a video, or damaged ({_last_line(log.read())}); fetch it "
                f"again",
            )
    return Movie(np.stack(frames), float(Fraction(fields["F"].replace(":", "/"))))


def write_mp4(path: Path, frames: UInt8[np.ndarray, "N H W *rgb"], *, fps: int | float) -> None:
    """Write frames as H.264; the file appears whole or not at all.

    The same frames give the same bytes. Grey values come back within 2 of what they were where
    neighbours are alike. Frames of even size are 4:2:0, which every player shows; odd ones 4:4:4.

    Args:
        path: Ends in .mp4.
        frames: Grey, or with a last axis of red, green and blue.
        fps: Frames per second.

    Raises:
        ValueError: No frames, another ending, or a rate that is not positive.
        OSError: ffmpeg fails; FileNotFoundError: there is none.
    """
    count, height, width, *channels = frames.shape
    if path.suffix.lower() != ".mp4" or not count or channels not in ([], [3]) or fps <= 0:
        raise ValueError(
            f"{path}: frames {frames.shape} at {fps} per second; wanted a name that ends in .mp4, "
            f"frames N H W or N H W 3 with N > 0, and a positive rate"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    even = height % 2 == 0 and width % 2 == 0
    command = [_ffmpeg(), "-v", "error", "-f", "rawvideo"]
    command += ["-pix_fmt", "rgb24" if channels else "gray", "-s", f"{width}x{height}"]
    command += ["-r", str(Fraction(fps).limit_denominator(_RATES)), "-i", "-"]
    command += ["-c:v", "libx264", "-crf", str(_CRF), "-pix_fmt", "yuv420p" if even else "yuv444p"]
    # One thread and no version in the file: the bytes depend on the frames alone.
    command += ["-threads", "1", "-bitexact", "-movflags", "+faststart"]
    command += ["-f", "mp4", "-y", f"file:{partial}"]
    data = np.ascontiguousarray(frames).reshape(-1).data
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path}: ffmpeg cannot write it ({_last_line(done.stderr)}); make room")
    partial.replace(path)


def _ffmpeg() -> str:
    """Return the program.

    Raises:
        FileNotFoundError: There is none.
    """
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise FileNotFoundError(
            "MP4 needs ffmpeg, and there is none; install imageio-ffmpeg from a wheel, or name "
            "the program in IMAGEIO_FFMPEG_EXE"
        ) from error


def _fields(header: bytes) -> dict[str, str]:
    """Return the fields of the first line of a Y4M stream, W H F ..., by their letter."""
    return {field[:1]: field[1:] for field in header.decode("ascii", "replace").split()[1:]}


def _frames(
    stream: IO[bytes], path: Path, fields: dict[str, str]
) -> Iterator[UInt8[np.ndarray, "H W"]]:
    """Yield the frames of a Y4M stream; nothing where it has no header."""
    if not {"W", "H"} <= set(fields):
        return
    height, width = int(fields["H"]), int(fields["W"])
    count = 0
    while stream.readline():
        data = stream.read(height * width)
        if len(data) < height * width:
            return
        count += 1
        check_size(path, (count, height, width))
        yield np.frombuffer(data, np.uint8).reshape(height, width)


def _last_line(log: bytes) -> str:
    """Return what ffmpeg said last."""
    lines = log.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else "it holds no frame"
