"""Shapes of the synthetic cohort as distances to their surface, mm, negative inside."""

from dataclasses import dataclass

import numpy as np

from ct3dlib.datasets.phantom_space import Array, Coordinates, Number, Position


@dataclass(frozen=True)
class Tube:
    """A straight piece of a round structure in world mm; the radius runs from end to end."""

    start: Position
    stop: Position
    radii: tuple[Number, Number]


def capsule(at: Coordinates, tube: Tube) -> Array:
    """Return the distance to a tube with round ends."""
    start, along = np.asarray(tube.start), np.subtract(tube.stop, tube.start)
    dx, dy, dz = (
        (axis - np.float32(centre)) for axis, centre in zip(at, start.tolist(), strict=True)
    )
    unit = (along / max(float(along @ along), 1e-6)).astype(np.float32)
    t = np.clip(dx * unit[0] + dy * unit[1] + dz * unit[2], 0, 1)
    ax, ay, az = along.astype(np.float32)
    square = (dx - t * ax) ** 2 + (dy - t * ay) ** 2 + (dz - t * az) ** 2
    first, last = tube.radii
    return np.sqrt(square) - (np.float32(first) + t * np.float32(last - first))


def ellipsoid(at: Coordinates, centre: Position, *, radii: Position) -> Array:
    """Return the distance to an axis-aligned ellipsoid along the ray from its centre."""
    square, scaled = np.float32(0), np.float32(0)
    for axis, middle, radius in zip(at, centre, radii, strict=True):
        offset = (axis - np.float32(middle)) ** 2
        square = square + offset
        scaled = scaled + offset / np.float32(radius**2)
    # Near the centre the ray has no direction; the smallest radius is the distance there.
    ratio = np.sqrt(np.maximum(scaled, np.float32(1e-6)))
    radius = np.sqrt(np.maximum(square, np.float32(1e-6 * min(radii) ** 2)))
    return radius - radius / ratio


def smooth_union(first: Array, second: Array, *, width: Number) -> Array:
    """Return the union of two distances with a fillet of `width` mm."""
    h = np.clip(width - np.abs(first - second), 0, None)
    return np.minimum(first, second) - h * h / np.float32(4 * width)
