"""Paint what surrounds the chest's organs: table, wall, bones and upper abdomen."""

from functools import cached_property

import numpy as np

from ct3dlib.datasets.phantom_anatomy import (
    CHEST_WALL,
    Anatomy,
    body,
    cage,
    cage_middle,
    diaphragm,
    spine_y,
)
from ct3dlib.datasets.phantom_canvas import Canvas, Window, paint_tubes
from ct3dlib.datasets.phantom_shapes import Tube, ellipsoid
from ct3dlib.datasets.phantom_space import Array, Coordinates, Number, Position

LIVER, SPLEEN, STOMACH, KIDNEY, SPINE, RIBS = 15, 16, 17, 18, 19, 20
FAT_HU, MUSCLE_HU = -102.0, 54.0
VERTEBRA_PITCH, FIRST_RIB = 26.0, 98.0
# Last rib angle of bone and of cartilage, radians from the back, by rib.
_BONE_END = np.array([2.3] * 7 + [2.15, 2.05, 1.95, 1.5, 1.0], np.float32)
_CARTILAGE_END = np.array([2.85] * 7 + [2.6, 2.45, 2.3, 1.6, 1.05], np.float32)


class Scene:
    """A canvas, its patient, and the distances that several structures share.

    Args:
        canvas: Painted in place.
        anatomy: The patient; its pose is the canvas's.
    """

    def __init__(self, canvas: Canvas, anatomy: Anatomy) -> None:
        self.canvas = canvas
        self.anatomy = anatomy

    @cached_property
    def cage(self) -> Array:
        """Distance to the outer face of the ribs, D H W."""
        return cage(self.canvas.whole().at)

    @cached_property
    def texture(self) -> Array:
        """Fine structure, D H W."""
        return self.anatomy.texture.on(self.canvas.grid.axes)

    @cached_property
    def coarse(self) -> Array:
        """Coarse structure, D H W."""
        return self.anatomy.coarse.on(self.canvas.grid.axes)

    def tubes(self, points: list[Position], radii: list[Number]) -> list[Tube]:
        """Return the tubes along template points, in world positions."""
        world = [tuple(p) for p in self.canvas.pose.to_world(np.array(points, float)).tolist()]
        return [
            Tube(world[i], world[i + 1], (radii[i], radii[i + 1])) for i in range(len(world) - 1)
        ]


def paint_table(scene: Scene) -> None:
    """Paint the mattress and the curved table below the patient."""
    x, y, z = scene.canvas.grid.axes
    pose, anatomy = scene.canvas.pose, scene.anatomy
    back = (118 + anatomy.fat * 0.8) * pose.scale[1] + 3
    depth = y - back + x * x / 1500 + 0 * z  # mm below the table's top
    window = scene.canvas.whole()
    for top, bottom, hu in ((-2, 12, -940), (12, 14, -450), (14, 36, -890), (36, 39, -250)):
        sheet = np.maximum(top - depth, depth - bottom)
        window.paint(np.maximum(sheet, np.abs(x) - 215), float(hu))


def _muscle(at: Coordinates) -> Array:
    """Return the thickness of muscle outside the rib cage, mm."""
    x, y, z = at
    back = 17 * np.exp(-(((np.abs(x) - 26) / 24) ** 2)) * (y > 20)
    lateral = np.exp(-(((np.abs(x) - 95) / 38) ** 2)) * np.clip((y + 5) / 40, 0, 1)
    scapular = 24 * lateral * np.clip((z + 45) / 50, 0, 1)
    chest = np.exp(-(((np.abs(x) - 62) / 34) ** 2)) * np.clip((-y - 25) / 30, 0, 1)
    pectoral = 13 * chest * np.exp(-(((z - 30) / 42) ** 2))
    shoulder = 80 * np.clip((z - 48) / 55, 0, 1)
    return 8 + back + scapular + pectoral + shoulder


def paint_wall(scene: Scene) -> None:
    """Paint skin, fat, muscle and what fills the rib cage."""
    window, anatomy, ribs = scene.canvas.whole(), scene.anatomy, scene.cage
    at, texture = window.at, scene.texture
    skin = body(at, anatomy)
    window.paint(skin, 5)
    window.paint(skin + 1.8, FAT_HU + 7 * texture)
    # Zero levels of a smooth field are thin sheets, as the fat between muscles.
    sheets = np.exp(-((scene.coarse / np.float32(0.10)) ** 2)) * np.clip((ribs - 1) / 5, 0, 1)
    thickness = _muscle(at) * (1 + 0.12 * scene.coarse)
    muscle = np.maximum(skin + np.float32(3 + 0.55 * anatomy.fat), ribs - thickness)
    window.paint(muscle, MUSCLE_HU + 4 * texture - 100 * sheets)
    window.paint(np.abs(ribs + 4) - 3.5, 30 + 15 * texture)
    neck = np.clip((at.z - 96) / 25, 0, 1)
    window.paint(ribs + np.float32(CHEST_WALL - 1), FAT_HU + 6 * texture + 120 * neck)
    if anatomy.sex == "F":
        for x in (-72.0, 72.0):
            gland = ellipsoid(at, (x, -98.0 - anatomy.fat, -50.0), radii=(30.0, 13.0, 26.0))
            window.paint(np.maximum(gland + 5 * texture, skin + 5), 15)


def paint_bones(scene: Scene) -> None:
    """Paint spine, ribs, sternum and shoulder girdle."""
    spine = scene.canvas.template((-62, 20, -260), (62, 128, 165))
    if spine is not None:
        _paint_spine(spine, scene.anatomy)
    _paint_ribs(scene)
    _paint_sternum(scene)
    _paint_shoulders(scene)


def _paint_spine(window: Window, anatomy: Anatomy) -> None:
    x, z = np.abs(window.at.x), window.at.z
    y = window.at.y - spine_y(z)
    level = (z - FIRST_RIB - 4) / VERTEBRA_PITCH
    dz = (level - np.rint(level)) * np.float32(VERTEBRA_PITCH)
    waist = 1.6 * (1 - (dz / 11) ** 2)
    column = ellipsoid(
        Coordinates(window.at.x, y, np.zeros((1, 1, 1), np.float32)),
        (0, 0, 0),
        radii=(17.5, 14.5, 1e3),
    )
    window.paint(column, 88, region=SPINE)
    vertebra = np.maximum(column + waist, np.abs(dz) - 10.5)
    window.paint(vertebra, 430, region=SPINE)
    window.paint(vertebra + 2.2, anatomy.bone_hu + 25 * np.sin(dz))
    ring = np.hypot(x * np.float32(0.9), y - 23)
    arch = np.maximum(np.maximum(ring - 14.5, np.abs(dz + 2) - 9), 8 - y)
    pedicle = np.maximum(np.maximum(np.abs(x - 11) - 3.5, np.abs(y - 14) - 7), np.abs(dz - 4) - 6)
    back = np.clip(y - 33, 0, 30)
    spinous = np.maximum(
        np.maximum(x - 3.4, np.abs(y - 44) - 12), np.abs(dz + 5 + 0.45 * back) - 5.5
    )
    out = np.clip(x, 8, 35)
    transverse = np.hypot((y - 22 - 0.35 * out) * np.float32(1.1), dz - 2)
    transverse = np.maximum(transverse - 5.2, x - 35)
    for part in (arch, pedicle, spinous, transverse):
        window.paint(part, 330, region=SPINE)
        window.paint(part + 2.4, anatomy.bone_hu + 40)
    canal = np.hypot(x * np.float32(0.85), y - 23) - np.float32(9.3)
    window.paint(canal, -35, region=SPINE)
    window.paint(canal + 2.5, 32)


def _paint_ribs(scene: Scene) -> None:
    at = scene.canvas.whole().at
    shell = (scene.cage > -10) & (scene.cage < 3) & (at.z < 125)
    x, y, z = (axis[shell] for axis in at)
    depth = scene.cage[shell] + np.float32(3.8)
    angle = np.arctan2(np.abs(x), y - cage_middle(z))  # 0 at the back, pi at the front
    # Ribs fall towards the front, less so where the cage is narrow; cartilage rises again.
    drop = 20 * angle + 34 * (1 - np.cos(angle)) - 80 * np.clip(angle - 2.4, 0, 1)
    drop = drop * np.clip((np.float32(150) - z) / 130, 0.3, 1)
    level = (np.float32(FIRST_RIB) - z - drop) / np.float32(VERTEBRA_PITCH)
    number = np.clip(np.rint(level), 0, 11).astype(np.int32)
    height = (level - number) * np.float32(VERTEBRA_PITCH * 0.62)
    radius = np.hypot(height, depth)
    bone = np.maximum(radius - 3.9, (angle - _BONE_END[number]) * 100)
    cartilage = np.maximum(radius - 4.2, (angle - _CARTILAGE_END[number]) * 60)
    old = max(0, scene.anatomy.age - 45)
    scene.canvas.paint_at(shell, cartilage, hu=95.0 + 2 * old, region=RIBS)
    scene.canvas.paint_at(shell, bone, hu=620.0, region=RIBS)
    scene.canvas.paint_at(shell, bone + 2.3, hu=scene.anatomy.bone_hu + 60)


def _paint_sternum(scene: Scene) -> None:
    window = scene.canvas.template((-36, -115, -95), (36, -10, 80))
    if window is None:
        return
    x, z = np.abs(window.at.x), window.at.z
    ribs = scene.cage[window.box]
    width = np.where(z > 34, 17 + (z - 34) * 0.28, 15 - 0.06 * np.abs(z + 30)).astype(np.float32)
    plate = np.maximum(np.hypot(np.maximum(x - width + 5, 0), ribs + 2) - 5.5, np.abs(z + 8) - 80)
    plate = np.maximum(plate, window.at.y - 10)
    window.paint(plate, 330, region=RIBS)
    window.paint(plate + 2.2, scene.anatomy.bone_hu * 0.7)


def _paint_shoulders(scene: Scene) -> None:
    at = scene.canvas.whole().at
    chosen = (np.abs(scene.cage - 17) < 9) & (np.abs(at.z - 32) < 75) & (at.y > 0)
    x, y, z = (axis[chosen] for axis in at)
    angle = np.arctan2(np.abs(x), y - cage_middle(z))
    radius = np.hypot(x, y - cage_middle(z))
    half_width = 9 + 26 * np.clip((z + 35) / 110, 0, 1)
    blade = np.maximum(np.abs(scene.cage[chosen] - 17) - 2.2, np.abs(z - 32) - 66)
    blade = np.maximum(blade, np.abs(angle - 0.86) * radius - half_width)
    scene.canvas.paint_at(chosen, blade, hu=520.0, region=RIBS)
    for side in (-1.0, 1.0):
        clavicle: list[Position] = [
            (side * 20, -46.0, 72.0),
            (side * 62, -58.0, 88.0),
            (side * 105, -34.0, 108.0),
            (side * 135, -8.0, 122.0),
        ]
        humerus: list[Position] = [(side * 150, 12.0, 122.0), (side * 162, 4.0, 165.0)]
        spike: list[Position] = [(side * 92, 58.0, 62.0), (side * 138, 30.0, 112.0)]
        for points, radius_mm in ((clavicle, 6.5), (spike, 6.0), (humerus, 21.0)):
            tubes = scene.tubes(points, [radius_mm] * len(points))
            paint_tubes(scene.canvas, tubes, hu=480, region=RIBS)
            inner = scene.tubes(points, [radius_mm - 3] * len(points))
            paint_tubes(scene.canvas, inner, hu=scene.anatomy.bone_hu + 60)


def paint_abdomen(scene: Scene) -> None:
    """Paint diaphragm, liver, spleen, stomach, kidneys and a bowel loop."""
    window = scene.canvas.template((-145, -110, -260), (145, 110, -60))
    if window is None:
        return
    at, inner = window.at, scene.cage[window.box] + np.float32(CHEST_WALL)
    texture = scene.texture[window.box]
    below = diaphragm(at)
    window.paint(np.maximum(np.maximum(below, -3.5 - below), inner), 42)
    under = np.maximum(below + 3, inner + 1.5)
    left_edge = np.maximum(at.x - 58, 0.75 * at.x + 0.6 * at.y - 6)
    lower_edge = (-205 + 0.4 * (at.x + 60) - at.z) * np.float32(0.9)
    liver = np.maximum(np.maximum(under, left_edge), lower_edge)
    kidney_bed = 26 - np.hypot(np.hypot(at.x + 58, at.y - 56), np.clip(at.z + 185, 0, None))
    liver = np.maximum(liver, np.maximum(kidney_bed, 20 - np.hypot(at.x, at.y - spine_y(at.z))))
    spleen = np.maximum(under, ellipsoid(at, (90.0, 42.0, -152.0), radii=(36.0, 44.0, 50.0)))
    stomach = np.maximum(under, ellipsoid(at, (56.0, -22.0, -150.0), radii=(40.0, 46.0, 40.0)))
    stomach = np.maximum(stomach, 4 - spleen)
    window.paint(stomach, 42, region=STOMACH)
    window.paint(np.maximum(stomach + 4, at.y + 30), -985)
    window.paint(np.maximum(stomach + 4, -30 - at.y), 22 + 18 * texture)
    window.paint(spleen, 48 + 2 * texture, region=SPLEEN)
    window.paint(liver, scene.anatomy.liver_hu + 2 * texture, region=LIVER)
    window.paint(np.maximum(liver + 8, np.abs(scene.coarse[window.box]) * 14 - 0.7), 36)
    for x, z in ((-58.0, -208.0), (60.0, -200.0)):
        kidney = ellipsoid(at, (x, 54.0, z), radii=(24.0, 22.0, 44.0))
        window.paint(kidney, 33, region=KIDNEY)
        adrenal = scene.tubes([(x * 0.62, 42.0, z + 48), (x * 0.75, 46.0, z + 36)], [3.0, 3.5])
        paint_tubes(scene.canvas, adrenal, hu=25, region=KIDNEY)
    loop = [(112.0, -30.0, -168.0), (106.0, -52.0, -200.0), (70.0, -70.0, -222.0)]
    paint_tubes(scene.canvas, scene.tubes(loop, [15.0, 16.0, 15.0]), hu=35, region=STOMACH)
    paint_tubes(scene.canvas, scene.tubes(loop, [12.0, 13.0, 12.0]), hu=-960)
