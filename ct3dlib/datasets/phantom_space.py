"""Where the synthetic cohort lives: axial grids, smooth random fields, the pose of a patient.

World positions are LPS mm (x, y, z); arrays are D H W.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]  # float32 in all that is D H W
Points = NDArray[np.float64]
Number = float | int
Position = tuple[Number, Number, Number]
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

    def nearest(self, position: Position) -> tuple[int, int, int] | None:
        """Return the voxel (d, h, w) that holds a position; None outside the grid."""
        offset = np.subtract(position, self.origin)[::-1] / self.spacing
        d, h, w = np.rint(offset).astype(np.int64).tolist()
        inside = all(0 <= n < count for n, count in zip((d, h, w), self.shape, strict=True))
        return (d, h, w) if inside else None

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
    def draw(cls, rng: np.random.Generator, step: float, *, reach: float = 330.0) -> "Field":
        """Draw a field whose features are `step` mm wide, over [-reach, reach] mm."""
        count = int(np.ceil(2 * reach / step)) + 4
        lattice = rng.standard_normal((count, count, count), dtype=np.float32)
        return cls(lattice / np.float32(_SPLINE_GAIN**1.5), -reach - 1.5 * step, step)

    def _weights(self, position: NDArray[np.floating]) -> Array:
        nodes = self.origin + self.step * np.arange(len(self.lattice))
        u = np.abs(position.ravel()[:, None] - nodes) / self.step
        return _spline(u).astype(np.float32)

    def on(self, axes: Coordinates) -> Array:
        """Return the field on an open grid, D H W.

        einsum does without BLAS, whose sums change with its number of threads.
        """
        rows = np.einsum("zyk,wk->zyw", self.lattice, self._weights(axes.x))
        planes = np.einsum("hk,zkw->hzw", self._weights(axes.y), rows)
        return np.einsum("dk,hkw->dhw", self._weights(axes.z), planes)

    def at(self, points: Points) -> Points:
        """Return the field at N points, N 3 -> N."""
        spot = (points - self.origin) / self.step
        near = np.floor(spot).astype(np.int64)[:, :, None] + np.arange(-1, 3)  # N 3 4
        weights = _spline(np.abs(spot[:, :, None] - near))
        x, y, z = np.clip(near, 0, len(self.lattice) - 1).transpose(1, 0, 2)
        values = self.lattice[z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]]
        for axis in range(3):  # x, then y, then z
            values = (values * weights[:, axis].reshape(-1, *(1,) * (2 - axis), 4)).sum(axis=-1)
        return values.astype(np.float64)


def _spline(u: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the cubic B-spline at distances from its middle, in lattice steps."""
    near = 2 / 3 - u**2 + u**3 / 2
    far = np.clip(2 - u, 0, None) ** 3 / 6
    return np.where(u < 1, near, far)


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
