"""Where the organs of a synthetic chest lie, as distances in template millimetres.

The template is an adult lying supine with arms up; its origin is the carina. A patient is the
template seen through a `Pose`, with the sizes that `Anatomy` holds.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ct3dlib.datasets.phantom_shapes import ellipsoid, smooth_union
from ct3dlib.datasets.phantom_space import Array, Coordinates, Field, Points, Pose

Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("left", "right")
LEFT_UPPER, LEFT_LOWER, RIGHT_UPPER, RIGHT_MIDDLE, RIGHT_LOWER = 1, 2, 3, 4, 5
LOBES: tuple[int, ...] = (LEFT_UPPER, LEFT_LOWER, RIGHT_UPPER, RIGHT_MIDDLE, RIGHT_LOWER)
CHEST_WALL = 8.0  # mm from the outer face of the ribs to the pleura
CHEST_LOW, CHEST_HIGH = (-150.0, -115.0, -215.0), (150.0, 115.0, 125.0)

_CAGE_Z = np.array([-250.0, -150, -80, -20, 40, 75, 100, 118, 130])
_CAGE_WIDTH = np.array([128.0, 135, 133, 126, 105, 82, 60, 42, 34])
_CAGE_DEPTH = np.array([90.0, 93, 91, 84, 68, 53, 40, 29, 24])
_CAGE_Y = np.array([0.0, -1, 0, 2, 8, 14, 20, 23, 24])
_BODY_Z = np.array([-260.0, -150, -60, 0, 45, 80, 105, 130, 165])
_BODY_WIDTH = np.array([142.0, 149, 149, 148, 152, 164, 176, 172, 140])
_BODY_DEPTH = np.array([104.0, 107, 106, 101, 92, 82, 70, 62, 60])
_BODY_Y = np.array([3.0, 4, 6, 8, 12, 17, 22, 25, 26])
_SPINE_Z = np.array([-250.0, -150, -50, 30, 100, 160])
_SPINE_Y = np.array([36.0, 46, 60, 62, 50, 36])


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One patient.

    Args:
        sex: Of the patient.
        age: Years.
        pose: Shape against the template.
        fat: Subcutaneous fat, mm.
        heart: Size of the heart against the template's.
        pericardial_fluid: Thickness of a pericardial effusion, mm; 0: none.
        lung_hu: Mean of healthy lung.
        liver_hu: Of the liver; low in steatosis.
        bone_hu: Of the marrow of vertebrae.
        fissure_shift: Height of the fissures against the template's, mm.
        texture: Field of fine structure, features of 11 mm.
        coarse: Field of coarse structure, features of 34 mm.
        seed: Of the trees of bronchi and vessels.
    """

    sex: Literal["F", "M"]
    age: int
    pose: Pose
    fat: float
    heart: float
    pericardial_fluid: float
    lung_hu: float
    liver_hu: float
    bone_hu: float
    fissure_shift: float
    texture: Field
    coarse: Field
    seed: int


def draw_anatomy(
    rng: np.random.Generator, *, heart: tuple[float, float], pericardial_fluid: float
) -> Anatomy:
    """Draw a patient.

    Args:
        rng: Source of every draw.
        heart: Smallest and largest size of the heart.
        pericardial_fluid: Thickness, mm.
    """
    sex: Literal["F", "M"] = "F" if rng.random() < 0.45 else "M"
    size = rng.normal(0.95 if sex == "F" else 1.02, 0.035)
    scale = np.clip(size * rng.normal(1, 0.035, 3), 0.85, 1.12).tolist()
    age = int(np.clip(rng.normal(56, 16), 19, 91))
    warp = (Field.draw(rng, 85.0), Field.draw(rng, 85.0), Field.draw(rng, 85.0))
    fat = float(np.clip(rng.gamma(4.0, 3.6) + (5 if sex == "F" else 0), 5, 36))
    return Anatomy(
        sex=sex,
        age=age,
        pose=Pose((scale[0], scale[1], scale[2]), warp, 3.2),
        fat=fat,
        heart=float(rng.uniform(*heart)),
        pericardial_fluid=pericardial_fluid,
        lung_hu=float(rng.uniform(-875, -825)),
        liver_hu=float(np.clip(rng.normal(56, 7), 40, 68)),
        bone_hu=float(np.clip(280 - 2.0 * age + rng.normal(0, 20), 80, 260)),
        fissure_shift=float(rng.normal(0, 6)),
        texture=Field.draw(rng, 11.0),
        coarse=Field.draw(rng, 34.0),
        seed=int(rng.integers(2**31)),
    )


def _profile(z: Array, knots: Points, *, values: Points) -> Array:
    """Interpolate a profile along z from a table of 1 mm; faster than np.interp on a volume."""
    low, high = float(knots[0]), float(knots[-1])
    table = np.interp(np.arange(low, high + 1), knots, values).astype(np.float32)
    smooth = np.convolve(np.pad(table, 8, mode="edge"), np.ones(17, np.float32) / 17, mode="valid")
    index = np.clip(z - np.float32(low), 0, len(table) - 1).astype(np.int32)
    return smooth.astype(np.float32)[index]


def _oval(x: Array, y: Array, *, half_width: Array, half_depth: Array) -> Array:
    """Return the distance to an egg-shaped superellipse, along the ray from the middle.

    Its exponent is 9/4, and it is wider at the back than at the front.
    """
    egg = 1 + np.float32(0.12) * np.clip(y / half_depth, -1, 1)
    u, v = np.abs(x) / (half_width * egg), np.abs(y) / half_depth
    power = u * u * np.sqrt(np.sqrt(u)) + v * v * np.sqrt(np.sqrt(v))
    inverse = np.exp(np.log(power + np.float32(1e-6)) * np.float32(-1 / 2.25))
    return np.hypot(x, y) * (1 - inverse)


def cage_middle(z: Array) -> Array:
    """Return y of the middle of the rib cage."""
    return _profile(z, _CAGE_Z, values=_CAGE_Y)


def cage(at: Coordinates) -> Array:
    """Return the distance to the outer face of the rib cage, which has no top and no bottom."""
    y = at.y - cage_middle(at.z)
    return _oval(
        at.x,
        y,
        half_width=_profile(at.z, _CAGE_Z, values=_CAGE_WIDTH),
        half_depth=_profile(at.z, _CAGE_Z, values=_CAGE_DEPTH),
    )


def cage_back(z: Array) -> Array:
    """Return y of the most posterior pleura."""
    return cage_middle(z) + _profile(z, _CAGE_Z, values=_CAGE_DEPTH) - np.float32(CHEST_WALL)


def body(at: Coordinates, anatomy: Anatomy) -> Array:
    """Return the distance to the skin."""
    width = _profile(at.z, _BODY_Z, values=_BODY_WIDTH) + np.float32(anatomy.fat)
    depth = _profile(at.z, _BODY_Z, values=_BODY_DEPTH) + np.float32(anatomy.fat * 0.8)
    trunk = _oval(
        at.x, at.y - _profile(at.z, _BODY_Z, values=_BODY_Y), half_width=width, half_depth=depth
    )
    if anatomy.sex == "M":
        return trunk
    front = -88.0 - anatomy.fat * 0.8
    radii = (46 + anatomy.fat / 2, 20 + anatomy.fat * 0.6, 44 + anatomy.fat / 3)
    for x in (-72.0, 72.0):
        trunk = smooth_union(trunk, ellipsoid(at, (x, front, -48.0), radii=radii), width=22.0)
    return trunk


def spine_y(z: Array) -> Array:
    """Return y of the middle of the vertebral bodies."""
    return _profile(z, _SPINE_Z, values=_SPINE_Y)


def diaphragm(at: Coordinates) -> Array:
    """Return the distance to the diaphragm, negative below it."""
    right = -97 - 60 * (((at.x + 66) / 95) ** 2 + ((at.y + 24) / 95) ** 2)
    left = -111 - 60 * (((at.x - 66) / 95) ** 2 + ((at.y + 24) / 95) ** 2)
    blend = 1 / (1 + np.exp(np.clip(-at.x / np.float32(12), -30, 30)))
    return (at.z - (right + (left - right) * blend)) * np.float32(0.8)


HEART_CENTRE = (8.0, -26.0, -72.0)
# Chambers of the template's heart: centre, radii, HU.
CHAMBERS = (
    ((40.0, -33.0, -88.0), (42.0, 34.0, 34.0), 47.0),  # left ventricle
    ((12.0, -54.0, -86.0), (43.0, 21.0, 32.0), 40.0),  # right ventricle
    ((-25.0, -29.0, -78.0), (23.0, 28.0, 34.0), 39.0),  # right atrium
    ((6.0, 4.0, -55.0), (32.0, 19.0, 23.0), 41.0),  # left atrium
)


def in_heart(at: Coordinates, anatomy: Anatomy) -> Coordinates:
    """Return positions in the frame of a heart of the template's size."""
    size = np.float32(anatomy.heart)
    x, y, z = (
        (axis - np.float32(centre)) / size + np.float32(centre)
        for axis, centre in zip(at, HEART_CENTRE, strict=True)
    )
    return Coordinates(x, y, z)


def heart_points(points: Points, anatomy: Anatomy) -> Points:
    """Return where points of the template's heart lie in a patient's, N 3."""
    centre = np.asarray(HEART_CENTRE)
    return (points - centre) * anatomy.heart + centre


def heart(at: Coordinates, anatomy: Anatomy) -> Array:
    """Return the distance to the heart without its fat."""
    local = in_heart(at, anatomy)
    (centre, radii, _), *others = CHAMBERS
    distance = ellipsoid(local, centre, radii=radii)
    for centre, radii, _ in others:
        distance = smooth_union(distance, ellipsoid(local, centre, radii=radii), width=16.0)
    return distance * np.float32(anatomy.heart)


def pericardium(at: Coordinates, anatomy: Anatomy, *, distance: Array) -> Array:
    """Return the distance to the outer face of the pericardium.

    Args:
        at: Positions.
        anatomy: The patient.
        distance: To the heart, at the same positions.
    """
    # Fluid sinks: the layer is thicker behind and below the heart.
    low = np.clip(0.75 + (at.y - at.z - 46) / 160, 0.4, 1.3)
    return distance - np.float32(5) - np.float32(anatomy.pericardial_fluid) * low


def mediastinum(at: Coordinates) -> Array:
    """Return the distance to the core between the lungs, without the heart."""
    z = at.z
    half_width = np.float32(18) + np.float32(13) * np.exp(-(((z - 18) / 42) ** 2))
    half_depth = np.float32(56) + np.float32(14) * np.exp(-(((z + 40) / 70) ** 2))
    core = _oval(at.x, at.y - np.float32(6), half_width=half_width, half_depth=half_depth)
    behind = np.maximum(np.abs(at.x) - 23, spine_y(z) - 4 - at.y)
    # Fat widens the midline behind the sternum.
    front = np.abs(at.x) - (3 + 13 * np.clip((-60 - at.y) / 28, 0, 1))
    return np.minimum(np.minimum(core, behind), front)


def cavity(at: Coordinates, wall: Array) -> Array:
    """Return the distance to what the lungs could fill if there were no heart and no aorta.

    Args:
        at: Positions.
        wall: Distance to the rib cage at the same positions.
    """
    dome = ((np.abs(at.x) - 36) ** 2 + (at.y - 22) ** 2) / 55
    apex = (at.z - 114 + dome) * np.float32(0.8)
    inner = np.maximum(wall + np.float32(CHEST_WALL), -diaphragm(at))
    return np.maximum(inner, np.maximum(-mediastinum(at), apex))


def lungs(at: Coordinates, anatomy: Anatomy) -> Array:
    """Return the distance to both lungs, before the aorta presses on the left one."""
    sac = pericardium(at, anatomy, distance=heart(at, anatomy))
    return np.maximum(cavity(at, cage(at)), -2 - sac)


def fissures(at: Coordinates, anatomy: Anatomy) -> tuple[Array, Array]:
    """Return the distances to the oblique and the horizontal fissure, positive above them."""
    bend = 8 * np.sin(at.x / 30) + np.float32(anatomy.fissure_shift)
    oblique = (at.z - (np.float32(1.08) * at.y - 34 + bend)) * np.float32(0.68)
    horizontal = at.z + 30 - bend - np.float32(0.12) * at.y
    return oblique, horizontal


def lobes(at: Coordinates, anatomy: Anatomy) -> np.ndarray:
    """Return the id of the lobe that each position lies in, or would lie in outside the lungs."""
    oblique, horizontal = fissures(at, anatomy)
    left = np.where(oblique > 0, LEFT_UPPER, LEFT_LOWER)
    front = np.where(horizontal > 0, RIGHT_UPPER, RIGHT_MIDDLE)
    right = np.where(oblique > 0, front, RIGHT_LOWER)
    return np.where(at.x > 0, left, right).astype(np.uint8)


def lobe_points(anatomy: Anatomy, rng: np.random.Generator, *, depth: float) -> dict[int, Points]:
    """Return random template points of each lobe, at least `depth` mm inside the lung."""
    points = rng.uniform(CHEST_LOW, CHEST_HIGH, (24000, 3))
    x, y, z = points.astype(np.float32).T
    at = Coordinates(x, y, z)
    inside = lungs(at, anatomy) < -depth
    lobe = lobes(at, anatomy)
    return {region: points[inside & (lobe == region)] for region in LOBES}
