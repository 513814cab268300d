"""Volumes as movies: one frame a slice, as GIF or MP4.

Letters: N frames, D H W voxels, d h w those of what is compared to them.

D runs from foot to head, and a frame is drawn as a radiologist sees it.
"""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Num, UInt8
from PIL import GifImagePlugin, Image

from ct3dlib.scan.intensity import apply_window
from ct3dlib.scan.mp4 import write_mp4

Window = tuple[float, float]

_GAP = 4  # pixels between pictures
_ERROR = 0.25  # of the window's width: a difference that is drawn in full colour
_GREYS = bytes(level for level in range(256) for _ in "rgb")
_SAMPLE = 16  # frames that the colours of a GIF are chosen from
_TICK = 10  # ms; GIF counts in hundredths of a second


def slice_frames(
    volume: Num[np.ndarray, "D H W"], window: Window, *, every: int = 1
) -> UInt8[np.ndarray, "N H W"]:
    """Return the first of every so many slices as grey frames, N = ceil(D / every).

    Args:
        volume: HU, or grey values.
        window: Values shown from black to white, such as the recipe's.
        every: Slices that one frame stands for.

    Raises:
        ValueError: `every` is not positive.
    """
    if every < 1:
        raise ValueError(f"every must be positive, not {every}")
    return np.rint(apply_window(volume[::every], window, onto=(0.0, 255.0))).astype(np.uint8)


def comparison_frames(
    original: Num[np.ndarray, "D H W"],
    reconstructed: Num[np.ndarray, "d h w"],
    window: Window,
    *,
    every: int = 1,
) -> UInt8[np.ndarray, "N H W2 3"]:
    """Return frames of original, reconstruction and their difference side by side.

    Where the reconstruction is higher the difference is red, where lower blue; full colour stands
    for a quarter of the window. The original is windowed as the model saw it before the two are
    compared: what lies outside the window is no error.

    Args:
        original: HU, or grey values.
        reconstructed: On the same grid.
        window: As for `slice_frames`.
        every: As for `slice_frames`.

    Raises:
        ValueError: The shapes differ, or `every` is not positive.
    """
    if original.shape != reconstructed.shape:
        raise ValueError(
            f"volumes of {original.shape} and {reconstructed.shape} voxels; compare them on one "
            f"grid"
        )
    pair = [slice_frames(volume, window, every=every) for volume in (original, reconstructed)]
    share = (pair[1].astype(np.float32) - pair[0]) / (255 * _ERROR)
    red, blue = (np.rint(np.clip(s, 0, 1) * 255).astype(np.uint8) for s in (share, -share))
    pictures = [np.repeat(frames[..., None], 3, axis=-1) for frames in pair]
    pictures.append(np.stack((red, np.zeros_like(red), blue), axis=-1))
    gap = np.zeros((*red.shape[:2], _GAP, 3), np.uint8)
    return np.concatenate((pictures[0], gap, pictures[1], gap, pictures[2]), axis=2)


def write_movie(
    path: Path, frames: UInt8[np.ndarray, "N H W *rgb"], *, fps: int | float = 10
) -> None:
    """Write frames as a GIF or an MP4, by the ending of the name; it appears whole or not at all.

    The same frames give the same bytes; frames that are alike stay frames of their own. Frames of
    odd size get a black row or column, as players want even ones. A GIF shows grey as it is and
    other frames in 256 colours.

    Args:
        path: Ends in .gif or .mp4.
        frames: Grey, or with a last axis of red, green and blue.
        fps: Frames per second; a GIF rounds their time to 0.01 s.

    Raises:
        ValueError: No frames, another ending, or a rate that is not positive.
        OSError: ffmpeg is missing or fails.
    """
    kind = path.suffix.lower()
    if kind not in (".gif", ".mp4") or not len(frames) or fps <= 0:
        raise ValueError(
            f"{path}: {len(frames)} frames at {fps} per second; wanted some, a positive rate, and "
            f"a name that ends in .gif or .mp4"
        )
    sides = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2)]
    even = np.pad(frames, sides + [(0, 0)] * (frames.ndim - 3))
    if kind == ".mp4":
        write_mp4(path, even, fps=fps)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(_gif(even, fps))
    partial.replace(path)


def _gif(frames: UInt8[np.ndarray, "N H W *rgb"], fps: int | float) -> bytes:
    """Return the bytes of a GIF that runs for ever.

    Pillow's `save_all` would join frames that are alike, so frames are put together here.
    """
    duration = max(1, round(1000 / fps / _TICK)) * _TICK
    pictures = _in_palette(frames)
    header, _ = GifImagePlugin.getheader(pictures[0], info={"loop": 0, "duration": duration})
    file = io.BytesIO()
    file.writelines(header)
    for picture in pictures:
        file.writelines(GifImagePlugin.getdata(picture, duration=duration))
    file.write(b";")
    return file.getvalue()


def _in_palette(frames: UInt8[np.ndarray, "N H W *rgb"]) -> list[Image.Image]:
    """Return frames in one palette: all greys, or the 256 colours nearest to some of the frames."""
    pictures = [Image.fromarray(frame) for frame in frames]
    if frames.ndim == 3:
        for picture in pictures:
            picture.putpalette(_GREYS)
        return pictures
    some = frames[:: max(1, len(frames) // _SAMPLE)]
    palette = Image.fromarray(some.reshape(-1, *some.shape[2:])).quantize(256)
    return [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
