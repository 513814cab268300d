"""What the synthetic cohort is painted with: grids, smooth random fields, shapes with soft edges.

Structures are implicit: a function gives the distance to the surface in mm, negative inside.
World positions are LPS mm (x, y, z); arrays are D H W.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Points = NDArray[np.float64]
Position = tuple[float, float, float]
Box = tuple[slice, slice, slice]

# Share of the variance of white noise that a cubic B-spline leaves, per axis.
_SPLINE_GAIN = 0.479


class Coordinates(NamedTuple):
    """Positions, mm; three arrays that broadcast to the same shape."""

    x: Array
    y: Array
    z: Array


@dataclass(frozen=True)
class Grid:
    """An axial grid whose axes run along z, y and x.

    Args:
        shape: Voxels (D, H, W).
        spacing: Distance of voxel centres (D, H, W), mm.
        origin: Centre of voxel (0, 0, 0), LPS (x, y, z) mm.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: Position

    @property
    def affine(self) -> NDArray[np.float64]:
        """Matrix from a voxel (d, h, w, 1) to LPS mm."""
        affine = np.zeros((4, 4))
        affine[[2, 1, 0], [0, 1, 2]] = self.spacing
        affine[:3, 3] = self.origin
        affine[3, 3] = 1
        return affine

    @cached_property
    def axes(self) -> Coordinates:
        """Voxel centres along each axis, open: (1, 1, W), (1, H, 1), (D, 1, 1)."""
        z, y, x = (
            (start + step * np.arange(count)).astype(np.float32)
            for start, step, count in zip(self.origin[::-1], self.spacing, self.shape, strict=True)
        )
        return Coordinates(x[None, None, :], y[None, :, None], z[:, None, None])

    def box(self, low: Position, high: Position) -> Box | None:
        """Return the voxels whose centres lie between two corners; None where there are none."""
        box = []
        for axis in range(3):
            start, step = self.origin[2 - axis], self.spacing[axis]
            first = max(0, int(np.ceil((low[2 - axis] - start) / step)))
            stop = min(self.shape[axis], int(np.floor((high[2 - axis] - start) / step)) + 1)
            if first >= stop:
                return None
            box.append(slice(first, stop))
        return box[0], box[1], box[2]


@dataclass(frozen=True, eq=False)
class Field:
    """A smooth random function of position with mean 0 and deviation about 1.

    Cubic B-splines blend normal values on a lattice, so its values on an axial grid are three
    matrix products.

    Args:
        lattice: Values, nz ny nx.
        origin: Position of the first value along every axis, mm.
        step: Distance of lattice values, mm: the size of the field's features.
    """

    lattice: Array
    origin: float
    step: float

    @classmethod
    def draw(cls, rng: np.random.Generator, step: float, reach: float = 330.0) -> "Field":
        """Draw a field whose features are `step` mm wide, over [-reach, reach] mm."""
        count = int(np.ceil(2 * reach / step)) + 4
        lattice = rng.standard_normal((count, count, count), dtype=np.float32)
        return cls(lattice / np.float32(_SPLINE_GAIN**1.5), -reach - 1.5 * step, step)

    def _weights(self, position: NDArray[np.floating]) -> Array:
        nodes = self.origin + self.step * np.arange(len(self.lattice))
        u = np.abs(position.ravel()[:, None] - nodes) / self.step
        near = 2 / 3 - u**2 + u**3 / 2
        far = np.clip(2 - u, 0, None) ** 3 / 6
        return np.where(u < 1, near, far).astype(np.float32)

    def on(self, axes: Coordinates) -> Array:
        """Return the field on an open grid, D H W."""
        rows = np.tensordot(self.lattice, self._weights(axes.x), axes=(2, 1))  # nz ny W
        planes = np.tensordot(self._weights(axes.y), rows, axes=(1, 1))  # H nz W
        return np.tensordot(self._weights(axes.z), planes, axes=(1, 1))  # D H W

    def at(self, points: Points) -> Points:
        """Return the field at N points, N 3 -> N."""
        x, y, z = (self._weights(points[:, axis]).astype(np.float64) for axis in range(3))
        return np.einsum("nz,ny,nx,zyx->n", z, y, x, self.lattice, optimize=True)


@dataclass(frozen=True, eq=False)
class Pose:
    """How a patient differs in shape from the template: a scale per axis and a smooth warp.

    Args:
        scale: World mm per template mm along (x, y, z).
        warp: One field per axis.
        amplitude: Deviation of the warp, mm.
    """

    scale: Position
    warp: tuple[Field, Field, Field]
    amplitude: float

    @property
    def reach(self) -> float:
        """Largest displacement that boxes allow for, mm."""
        return 3.5 * self.amplitude

    def to_template(self, axes: Coordinates) -> Coordinates:
        """Return the template positions of an open world grid, each D H W."""
        return Coordinates(
            *(
                axis / np.float32(scale)
                + np.clip(field.on(axes) * np.float32(self.amplitude), -self.reach, self.reach)
                for axis, scale, field in zip(axes, self.scale, self.warp, strict=True)
            )
        )

    def to_world(self, points: Points) -> Points:
        """Return the world positions of template points, N 3, by fixed-point iteration."""
        scale = np.asarray(self.scale)
        world = points * scale
        for _ in range(4):
            moved = np.stack([field.at(world) for field in self.warp], axis=1) * self.amplitude
            world = (points - np.clip(moved, -self.reach, self.reach)) * scale
        return world


@dataclass(frozen=True, eq=False)
class Window:
    """A box of a canvas to paint in.

    Args:
        at: Positions of its voxels, mm.
        hu: View of the canvas's HU, D H W.
        regions: View of the canvas's region ids, D H W.
        pixel: In-plane spacing, mm: the width of a soft edge.
        slab: Distance of slices, mm.
        box: Where it lies in the canvas.
    """

    at: Coordinates
    hu: Array
    regions: NDArray[np.uint8]
    pixel: float
    slab: float
    box: Box

    def paint(
        self,
        distance: Array,
        hu: Array | float,
        *,
        region: int | None = None,
        edge: float | None = None,
        strength: float = 1.0,
    ) -> None:
        """Blend a structure into the canvas.

        Args:
            distance: To its surface, mm, negative inside; D H W.
            hu: Its value.
            region: Its id, written where the distance is negative.
            edge: Width of the soft edge, mm; a pixel when absent.
            strength: Share of the value where a voxel is full.
        """
        width = np.float32(edge or self.pixel)
        cover = np.clip(np.float32(0.5) - distance / width, 0, np.float32(strength))
        self.hu[...] += cover * (hu - self.hu)
        if region is not None:
            self.regions[distance < 0] = region


class Canvas:
    """HU and region ids of one grid, on which a patient is painted back to front.

    Args:
        grid: Where the voxels lie.
        pose: Shape of the patient.
    """

    def __init__(self, grid: Grid, pose: Pose) -> None:
        self.grid = grid
        self.pose = pose
        self.hu: Array = np.full(grid.shape, -1000, dtype=np.float32)
        self.regions: NDArray[np.uint8] = np.zeros(grid.shape, dtype=np.uint8)
        self._template = pose.to_template(grid.axes)

    def _window(self, box: Box, at: Coordinates) -> Window:
        slab, pixel, _ = self.grid.spacing
        return Window(at, self.hu[box], self.regions[box], pixel, slab, box)

    def world(self, low: Position, high: Position) -> Window | None:
        """Return the window between two world corners with world positions, None outside."""
        box = self.grid.box(low, high)
        if box is None:
            return None
        d, h, w = box
        x, y, z = self.grid.axes
        return self._window(box, Coordinates(x[:, :, w], y[:, h], z[d]))

    def template(self, low: Position, high: Position) -> Window | None:
        """Return the window around two template corners with template positions, None outside."""
        scale, reach = self.pose.scale, self.pose.reach
        lows = [(edge - reach) * s for edge, s in zip(low, scale, strict=True)]
        highs = [(edge + reach) * s for edge, s in zip(high, scale, strict=True)]
        box = self.grid.box((lows[0], lows[1], lows[2]), (highs[0], highs[1], highs[2]))
        if box is None:
            return None
        x, y, z = self._template
        return self._window(box, Coordinates(x[box], y[box], z[box]))

    def whole(self) -> Window:
        """Return the window of the whole grid with template positions."""
        return self._window((slice(None), slice(None), slice(None)), self._template)


    def paint_at(
        self, chosen: NDArray[np.bool_], distance: Array, *, hu: float, region: int | None = None
    ) -> None:
        """Paint only chosen voxels, with distances in their order."""
        cover = np.clip(np.float32(0.5) - distance / np.float32(self.grid.spacing[1]), 0, 1)
        before = self.hu[chosen]
        self.hu[chosen] = before + cover * (np.float32(hu) - before)
        if region is not None:
            self.regions[chosen] = np.where(distance < 0, region, self.regions[chosen])


@dataclass(frozen=True)
class Tube:
    """A straight piece of a round structure in world mm; the radius runs from end to end."""

    start: Position
    stop: Position
    radii: tuple[float, float]


def capsule(at: Coordinates, tube: Tube, flat: float = 1.0) -> Array:
    """Return the distance to a tube with round ends.

    Args:
        at: Positions.
        tube: The piece.
        flat: Factor of distances along z; below 1 a thick slice sees what passes beside it.
    """
    start, along = np.asarray(tube.start), np.subtract(tube.stop, tube.start)
    dx, dy, dz = (
        (axis - np.float32(centre)) for axis, centre in zip(at, start.tolist(), strict=True)
    )
    unit = (along / max(float(along @ along), 1e-6)).astype(np.float32)
    t = np.clip(dx * unit[0] + dy * unit[1] + dz * unit[2], 0, 1)
    ax, ay, az = along.astype(np.float32)
    square = (dx - t * ax) ** 2 + (dy - t * ay) ** 2 + (np.float32(flat) * (dz - t * az)) ** 2
    first, last = tube.radii
    return np.sqrt(square) - (np.float32(first) + t * np.float32(last - first))


def ellipsoid(at: Coordinates, centre: Position, radii: Position) -> Array:
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


def smooth_union(first: Array, second: Array, width: float) -> Array:
    """Return the union of two distances with a fillet of `width` mm."""
    h = np.clip(width - np.abs(first - second), 0, None)
    return np.minimum(first, second) - h * h / np.float32(4 * width)


def paint_tubes(
    canvas: Canvas, tubes: list[Tube], hu: float, *, region: int | None = None
) -> None:
    """Paint tubes; one thinner than a voxel keeps its share of it."""
    pixel, slab = canvas.grid.spacing[1], canvas.grid.spacing[0]
    for tube in tubes:
        radius = max(tube.radii)
        flat = min(1.0, pixel / slab) if radius < slab else 1.0
        margin = np.array([1, 1, 1 / flat]) * (radius + pixel)
        low = np.minimum(tube.start, tube.stop) - margin
        high = np.maximum(tube.start, tube.stop) + margin
        window = canvas.world(
            (float(low[0]), float(low[1]), float(low[2])),
            (float(high[0]), float(high[1]), float(high[2])),
        )
        if window is not None:
            strength = min(1.0, (2 * radius / pixel) ** 0.7)
            window.paint(capsule(window.at, tube, flat), hu, region=region, strength=strength)
