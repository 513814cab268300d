"""What the synthetic cohort is painted on: HU, region ids and lesions of a grid."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct3dlib.datasets.phantom_shapes import Tube, capsule
from ct3dlib.datasets.phantom_space import Array, Box, Coordinates, Grid, Number, Pose, Position


@dataclass(frozen=True, eq=False)
class Window:
    """A box of a canvas to paint in.

    Args:
        at: Positions of its voxels, mm.
        hu: View of the canvas's HU, D H W.
        regions: View of the canvas's region ids, D H W.
        lesions: View of the canvas's lesion ids, D H W.
        pixel: In-plane spacing, mm: the width of a soft edge.
        slab: Distance of slices, mm.
        box: Where it lies in the canvas.
    """

    at: Coordinates
    hu: Array
    regions: NDArray[np.uint8]
    lesions: NDArray[np.uint8]
    pixel: float
    slab: float
    box: Box

    def paint(
        self,
        distance: Array,
        hu: Array | Number,
        *,
        region: int | None = None,
        edge: Number | None = None,
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
    """HU, region and lesion ids of one grid, on which a patient is painted back to front.

    Args:
        grid: Where the voxels lie.
        pose: Shape of the patient.
    """

    def __init__(self, grid: Grid, pose: Pose) -> None:
        self.grid = grid
        self.pose = pose
        self.hu: Array = np.full(grid.shape, -1000, dtype=np.float32)
        self.regions: NDArray[np.uint8] = np.zeros(grid.shape, dtype=np.uint8)
        self.lesions: NDArray[np.uint8] = np.zeros(grid.shape, dtype=np.uint8)
        self._template = pose.to_template(grid.axes)

    def _window(self, box: Box, at: Coordinates) -> Window:
        slab, pixel, _ = self.grid.spacing
        views = self.hu[box], self.regions[box], self.lesions[box]
        return Window(at, *views, pixel, slab, box)

    def world(self, low: Position, high: Position) -> Window | None:
        """Return the window between two world corners with world positions, None outside."""
        box = self.grid.box(low, high)
        if box is None:
            return None
        d, h, w = box
        x, y, z = self.grid.axes
        return self._window(box, Coordinates(x[:, :, w], y[:, h], z[d]))

    def around(self, tube: Tube, margin: Number) -> Window | None:
        """Return the world window of a tube and `margin` mm around it, None outside."""
        (x0, y0, z0), (x1, y1, z1), far = tube.start, tube.stop, max(tube.radii) + margin
        return self.world(
            (min(x0, x1) - far, min(y0, y1) - far, min(z0, z1) - far),
            (max(x0, x1) + far, max(y0, y1) + far, max(z0, z1) + far),
        )

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
        self, chosen: NDArray[np.bool_], distance: Array, *, hu: Number, region: int | None = None
    ) -> None:
        """Paint only chosen voxels, with distances in their order."""
        cover = np.clip(np.float32(0.5) - distance / np.float32(self.grid.spacing[1]), 0, 1)
        before = self.hu[chosen]
        self.hu[chosen] = before + cover * (np.float32(hu) - before)
        if region is not None:
            self.regions[chosen] = np.where(distance < 0, region, self.regions[chosen])


def paint_tubes(
    canvas: Canvas, tubes: list[Tube], *, hu: Number, region: int | None = None
) -> None:
    """Paint tubes; those thinner than a pixel as the share of each voxel that they fill."""
    pixel = canvas.grid.spacing[1]
    thin = [sum(tube.radii) < 1.4 * pixel for tube in tubes]
    _splat(canvas, [tube for tube, is_thin in zip(tubes, thin, strict=True) if is_thin], hu=hu)
    for tube, is_thin in zip(tubes, thin, strict=True):
        if is_thin and region is None:
            continue
        window = canvas.around(tube, pixel)
        if window is None:
            continue
        distance = capsule(window.at, tube)
        if not is_thin:
            window.paint(distance, hu, region=region)
        elif region is not None:
            window.regions[distance < 0] = region


def _splat(canvas: Canvas, tubes: list[Tube], *, hu: Number) -> None:
    """Spread the volume of thin tubes over the voxels around their axes."""
    if not tubes:
        return
    grid = canvas.grid
    start = np.array([tube.start[::-1] for tube in tubes])
    stop = np.array([tube.stop[::-1] for tube in tubes])
    length = np.linalg.norm(stop - start, axis=1)
    count = np.ceil(length / (0.4 * min(grid.spacing))).astype(np.int64) + 1
    owner = np.repeat(np.arange(len(tubes)), count)
    first = np.repeat(np.cumsum(count) - count, count)
    t = (np.arange(len(owner)) - first + 0.5) / count[owner]
    radii = np.array([tube.radii for tube in tubes])[owner]
    volume = np.pi * (radii[:, 0] + t * (radii[:, 1] - radii[:, 0])) ** 2 * (length / count)[owner]
    spot = start[owner] + t[:, None] * (stop - start)[owner]
    spot = (spot - np.array(grid.origin[::-1])) / grid.spacing  # N 3, in voxels (d, h, w)
    base = np.floor(spot).astype(np.int64)
    share = np.zeros(grid.shape, np.float32)
    for corner in np.ndindex(2, 2, 2):
        voxel = base + corner
        weight = np.prod(1 - np.abs(spot - voxel), axis=1) * volume / np.prod(grid.spacing)
        valid = ((voxel >= 0) & (voxel < grid.shape)).all(axis=1)
        d, h, w = voxel[valid].T
        np.add.at(share, (d, h, w), weight[valid].astype(np.float32))
    touched = share > 0
    cover = np.minimum(share[touched], 1)
    canvas.hu[touched] += cover * (np.float32(hu) - canvas.hu[touched])
