"""Paint the organs of the synthetic chest: lungs, pleura, heart and mediastinum."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ct3dlib.datasets.phantom_anatomy import (
    CHAMBERS,
    CHEST_HIGH,
    CHEST_LOW,
    CHEST_WALL,
    Anatomy,
    cavity,
    diaphragm,
    fissures,
    heart,
    in_heart,
    lobes,
    pericardium,
    spine_y,
)
from ct3dlib.datasets.phantom_body import FAT_HU, Scene
from ct3dlib.datasets.phantom_canvas import Canvas, Window
from ct3dlib.datasets.phantom_shapes import capsule, ellipsoid
from ct3dlib.datasets.phantom_space import Array
from ct3dlib.datasets.phantom_vessels import AORTA_PATH, aorta_scale, path_tubes

HEART, PERICARDIUM, MEDIASTINUM, PLEURA, THYROID = 8, 9, 12, 13, 14
PLEURA_WIDTH = 3.0  # mm of the shell that counts as pleura; the true one is thinner than a voxel
FLUID_HU = 9.0


class Chest(Scene):
    """A scene whose grid meets the chest, with the lungs' distance and lobes.

    Args:
        canvas: Painted in place.
        anatomy: The patient.

    Raises:
        ValueError: The grid lies wholly outside the chest.
    """

    def __init__(self, canvas: Canvas, anatomy: Anatomy) -> None:
        super().__init__(canvas, anatomy)
        window = canvas.template(CHEST_LOW, CHEST_HIGH)
        if window is None:
            raise ValueError(
                f"the grid from {canvas.grid.origin} mm does not meet the chest; "
                f"the carina lies at (0, 0, 0)"
            )
        self.window: Window = window

    @cached_property
    def heart(self) -> tuple[Window, Array] | None:
        """The window around the heart and the distance to it; None outside the grid."""
        window = self.canvas.template((-90, -105, -150), (115, 60, 5))
        return None if window is None else (window, heart(window.at, self.anatomy))

    @cached_property
    def depth(self) -> Array:
        """Distance to the lungs in the chest's window, negative inside."""
        outside = np.full(self.canvas.grid.shape, 99, np.float32)
        outside[self.window.box] = cavity(self.window.at, self.cage[self.window.box])
        if self.heart is not None:
            window, distance = self.heart
            sac = pericardium(window.at, self.anatomy, distance=distance)
            outside[window.box] = np.maximum(outside[window.box], -2 - sac)
        for tube in path_tubes(self, AORTA_PATH, grow_by=3.0, scale=aorta_scale(self.anatomy)):
            near = self.canvas.around(tube, 12)
            if near is not None:
                pressed = np.maximum(outside[near.box], -capsule(near.at, tube))
                outside[near.box] = pressed
        return outside[self.window.box]

    @cached_property
    def lobe(self) -> NDArray[np.uint8]:
        """Id of the lobe in the chest's window, whether or not a voxel is lung."""
        return lobes(self.window.at, self.anatomy)


def healthy_lung(chest: Chest) -> Array:
    """Return the HU of healthy lung in the chest's window: gravity, texture and fissures."""
    at, anatomy, box = chest.window.at, chest.anatomy, chest.window.box
    hu = anatomy.lung_hu + 9 * chest.texture[box] + 8 * chest.coarse[box]
    hu = hu + np.float32(0.42) * (at.y - 10) - np.float32(0.12) * (at.z + 40)
    oblique, horizontal = fissures(at, anatomy)
    right_front = (at.x < 0) & (oblique > 0)
    nearest = np.where(right_front, np.minimum(np.abs(oblique), np.abs(horizontal)), oblique)
    return hu + 150 * np.clip(1.6 - np.abs(nearest), 0, 1)


def paint_lungs(chest: Chest, hu: Array) -> None:
    """Paint lungs, their lobes' ids and the shell of the pleura."""
    window = chest.window
    inside = chest.depth < 0
    window.regions[~inside & (chest.depth < PLEURA_WIDTH)] = PLEURA
    window.paint(chest.depth, hu)
    window.regions[inside] = chest.lobe[inside]


def paint_mediastinum(chest: Chest) -> None:
    """Paint the fat between the lungs and the thyroid."""
    window, at = chest.window, chest.window.at
    inner = chest.cage[window.box] + np.float32(CHEST_WALL)
    between = np.maximum(np.maximum(inner, 2 - diaphragm(at)), np.maximum(-chest.depth, at.z - 95))
    between = np.maximum(between, at.y - spine_y(at.z))
    window.paint(between, FAT_HU + 5 * chest.texture[window.box], region=MEDIASTINUM)
    low, high = (-32.0, -22.0, 100.0), (32.0, 22.0, 158.0)
    neck = chest.canvas.template(low, high)
    if neck is None:
        return
    for x in (-17.0, 17.0):
        lobe = ellipsoid(neck.at, (x, -1.0, 128.0), radii=(8.5, 11.0, 21.0))
        neck.paint(lobe, 105, region=THYROID)


def paint_heart(chest: Chest) -> None:
    """Paint pericardium with its fluid, epicardial fat and the chambers."""
    anatomy = chest.anatomy
    if chest.heart is None:
        return
    window, distance = chest.heart
    at = window.at
    sac = pericardium(at, anatomy, distance=distance)
    floor = 1.5 - diaphragm(at)
    clipped = np.maximum(np.maximum(sac, floor), chest.cage[window.box] + 10)
    window.paint(clipped, 20, region=PERICARDIUM)
    if anatomy.pericardial_fluid > 0:
        window.paint(clipped + 1.5, FLUID_HU)
    fat = np.maximum(distance - 3.5, floor)
    window.paint(np.maximum(fat, clipped + 1.5), FAT_HU)
    window.paint(np.maximum(distance, floor), -20, region=HEART)
    local = in_heart(at, anatomy)
    for centre, radii, hu in CHAMBERS:
        window.paint(np.maximum(ellipsoid(local, centre, radii=radii) - 1.5, floor), hu + 5)
        window.paint(np.maximum(ellipsoid(local, centre, radii=radii) + 7, floor), hu - 3)
