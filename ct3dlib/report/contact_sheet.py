"""One picture of all volumes of a shard, to find by eye what no number shows."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ct3dlib.cohort.statistics import FACTS, HEAVY_LOSS
from ct3dlib.cohort.store import StoredVolume, read_status, records, stored_volumes

Row = Mapping[str, Any]
Color = tuple[int, int, int]
Flag = tuple[str, Color]
Window = tuple[float, float]

MAX_TILES = 128
_COLUMNS = 4
_SIDE = 112  # pixels that the longest side of a volume takes
_GAP = 4
_LINE = 16
_TILE = (3 * _SIDE + 3 * _GAP, _SIDE + 2 * _LINE + _GAP)
_LOW_CONTRAST = 0.25  # of the window's width
_BLACK, _WHITE, _GRAY = (0, 0, 0), (235, 235, 235), (140, 140, 140)
_RED, _ORANGE, _VIOLET = (255, 90, 80), (255, 180, 60), (200, 140, 255)


def draw_sheet(table: Path, window: Window | None) -> bytes:
    """Return a PNG of a shard's stored volumes: middle axial, coronal and sagittal planes.

    Each volume keeps its proportions in mm and stands over its name and flags, framed in the
    colour of the first flag. Only the chunks of
    the planes are read. Of more than 128 volumes the flagged ones come first.

    Args:
        table: Status table of a shard of volumes.
        window: What is drawn from black to white; each volume's own percentiles without one.

    Raises:
        StoreError: The table or a volume cannot be read.
    """
    rows = {row["volume"]: row for row in records(read_status(table)) if row["status"] == "stored"}
    volumes = [(v, _flags(rows[v.volume], window)) for v in stored_volumes([table])]
    shown = sorted(volumes, key=lambda entry: not entry[1])[:MAX_TILES]
    num_rows = -(-len(shown) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _TILE[0] + _GAP, num_rows * _TILE[1] + 2 * _LINE))
    place = "/".join(table.with_suffix("").parts[-3:])
    num_flagged = sum(bool(flags) for _, flags in volumes)
    more = f", {len(shown)} shown" if len(shown) < len(volumes) else ""
    text = f"{place}: {len(volumes)} stored, {num_flagged} flagged{more}"
    _write(sheet, (_GAP, _GAP), [(text, _WHITE)])
    for i, (volume, flags) in enumerate(shown):
        corner = (_GAP + i % _COLUMNS * _TILE[0], 2 * _LINE + i // _COLUMNS * _TILE[1])
        sheet.paste(_tile(volume, flags, window=window or _own(rows[volume.volume])), corner)
    file = io.BytesIO()
    sheet.save(file, format="png")
    return file.getvalue()


def _flags(row: Row, window: Window | None) -> list[Flag]:
    """Return what is odd about a stored volume, with its colour."""
    facts, intensity = json.loads(row["facts"]), json.loads(row["intensity"])
    flags = []
    if row["lost"] > HEAVY_LOSS:
        flags.append((f"lost {row['lost']:.0%}", _RED))
    if FACTS["interpolated"](facts):
        flags.append((f"{len(facts['interpolated'])} interpolated", _ORANGE))
    if FACTS["tilted"](facts):
        flags.append((f"tilt {facts['tilt']:.1f} deg", _ORANGE))
    low, high = window or (intensity["min"], intensity["max"])
    if intensity["p99.5"] - intensity["p0.5"] < _LOW_CONTRAST * (high - low):
        flags.append(("low contrast", _VIOLET))
    return flags


def _own(row: Row) -> Window:
    """Return the percentiles of a volume as its window."""
    intensity = json.loads(row["intensity"])
    low, high = intensity["p0.5"], intensity["p99.5"]
    return low, max(high, low + 1)


def _tile(volume: StoredVolume, flags: Sequence[Flag], *, window: Window) -> Image.Image:
    """Return the planes of a volume over its name and flags."""
    tile = Image.new("RGB", _TILE, _BLACK)
    extent = [n * s for n, s in zip(volume.shape, volume.spacing, strict=True)]  # mm
    for axis in range(3):
        height, width = (
            max(1, round(length / max(extent) * _SIDE))
            for i, length in enumerate(extent)
            if i != axis
        )
        plane = Image.fromarray(_plane(volume, axis, window))
        scaled = plane.resize((width, height), Image.Resampling.BILINEAR)
        left = axis * (_SIDE + _GAP) + (_SIDE - width) // 2
        tile.paste(scaled.convert("RGB"), (left, (_SIDE - height) // 2))
    if flags:
        frame = (0, 0, 3 * _SIDE + 2 * _GAP - 1, _SIDE - 1)
        ImageDraw.Draw(tile).rectangle(frame, outline=flags[0][1], width=2)
    _write(tile, (0, _SIDE), [(volume.volume, _WHITE)])
    shape = " x ".join(str(n) for n in volume.shape)
    _write(tile, (0, _SIDE + _LINE), [(shape, _GRAY), *flags])
    return tile


def _plane(volume: StoredVolume, axis: int, window: Window) -> np.ndarray:
    """Return the middle plane across an axis as uint8, the head on top."""
    middle = volume.shape[axis] // 2
    start = [middle if i == axis else 0 for i in range(3)]
    stop = [middle + 1 if i == axis else n for i, n in enumerate(volume.shape)]
    values = volume.read(start, stop).squeeze(axis).astype(np.float32)
    low, high = window
    gray = np.clip((values - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    # Slices run from foot to head.
    return gray if axis == 0 else np.ascontiguousarray(gray[::-1])


def _write(picture: Image.Image, corner: tuple[int, int], words: Sequence[Flag]) -> None:
    """Write words in their colours beside each other."""
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(12)
    left, top = corner
    for text, color in words:
        draw.text((left, top), text, fill=color, font=font)
        left += round(draw.textlength(text, font=font)) + 3 * _GAP
