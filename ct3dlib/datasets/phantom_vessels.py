"""Bronchi and vessels of the synthetic chest: central paths and trees that fill the lobes."""

from typing import NamedTuple

import numpy as np

from ct3dlib.datasets.phantom_anatomy import (
    LEFT_LOWER,
    LEFT_UPPER,
    RIGHT_LOWER,
    RIGHT_MIDDLE,
    RIGHT_UPPER,
    Anatomy,
    lobe_points,
)
from ct3dlib.datasets.phantom_body import Scene
from ct3dlib.datasets.phantom_canvas import paint_tubes
from ct3dlib.datasets.phantom_shapes import Tube
from ct3dlib.datasets.phantom_space import Number, Points, Position

AIRWAY, ESOPHAGUS, AORTA, GREAT_VESSELS = 6, 7, 10, 11
BLOOD_HU, LUMEN_HU = 42.0, -985.0


class Path(NamedTuple):
    """Template points of a structure and its radius at each, mm."""

    points: list[Position]
    radii: list[Number]


TRACHEA = Path([(0, -3, 150), (1, 1, 80), (0, 5, 10), (0, 6, 0)], [8.6, 8.6, 8.8, 9.0])
CENTRAL_BRONCHI = (
    Path([(0, 6, 2), (-26, 12, -20)], [7.6, 6.8]),
    Path([(0, 6, 2), (38, 16, -26)], [7.0, 5.8]),
    Path([(-26, 12, -20), (-34, 16, -44)], [6.2, 5.6]),
)
LOBAR_BRONCHI = {
    LEFT_UPPER: Path([(38, 16, -26), (54, -2, -24)], [5.0, 4.3]),
    LEFT_LOWER: Path([(38, 16, -26), (50, 38, -60)], [5.0, 4.2]),
    RIGHT_UPPER: Path([(-24, 11, -18), (-46, 8, -6)], [4.9, 4.3]),
    RIGHT_MIDDLE: Path([(-34, 15, -44), (-54, -14, -56)], [4.2, 3.4]),
    RIGHT_LOWER: Path([(-34, 16, -44), (-46, 36, -70)], [5.1, 4.3]),
}
AORTA_PATH = Path(
    [
        (4, -34, -58), (-10, -40, -32), (-14, -38, 0), (-9, -31, 20), (6, -24, 33),
        (24, -4, 31), (30, 18, 21), (28, 36, 3), (25, 42, -20), (23, 42, -70),
        (16, 38, -120), (8, 26, -180), (4, 16, -260),
    ],
    [15.5, 16.5, 16, 15.5, 14.5, 13.5, 13, 12.5, 12.2, 12, 11.5, 10.5, 10],
)  # fmt: skip
GREAT_PATHS = (
    Path([(-4, -26, 38), (-14, -16, 75), (-26, -8, 120)], [6.2, 5.8, 5]),
    Path([(10, -20, 42), (16, -10, 80), (24, -4, 150)], [4.2, 3.9, 3.8]),
    Path([(22, -6, 40), (28, 4, 80), (42, 4, 108), (85, -12, 112)], [5.5, 5.2, 5, 4.5]),
    Path([(-28, -30, 45), (-30, -26, 0), (-28, -26, -46)], [9, 9.8, 10.5]),
    Path([(85, -44, 106), (38, -42, 68), (8, -46, 51), (-26, -34, 43)], [5.5, 6.5, 6.5, 7]),
    Path([(-85, -42, 108), (-40, -34, 82), (-28, -31, 45)], [5.5, 7, 8.5]),
    Path([(-32, -18, 150), (-40, -32, 84)], [6, 6.5]),
    Path([(34, -18, 150), (38, -38, 70)], [5.5, 6]),
    Path([(-20, 0, -92), (-24, 8, -150), (-20, 12, -260)], [13, 12.5, 11]),
    Path([(-9, 40, -160), (-11, 43, 10), (-20, 20, 15), (-28, -20, 14)], [3, 3.6, 4, 4]),
    Path([(12, -54, -56), (16, -38, -28), (13, -22, -15)], [13.5, 14, 13]),
    Path([(13, -22, -15), (-8, -12, -22), (-34, -3, -26)], [11.5, 10.8, 9.5]),
    Path([(13, -22, -15), (32, -6, -7), (46, 12, -13)], [11.5, 10.8, 9.5]),
    Path([(-34, -3, -26), (-44, 12, -50), (-52, 32, -70)], [8.6, 7.6, 6.2]),
    Path([(46, 12, -13), (55, 26, -40), (57, 38, -60)], [8.6, 7.6, 6.2]),
    Path([(-20, 0, -48), (-42, -8, -36)], [7, 6]),
    Path([(-20, 10, -58), (-44, 24, -66)], [7, 6]),
    Path([(28, -2, -46), (50, -16, -36)], [7, 6]),
    Path([(28, 10, -58), (48, 26, -66)], [7, 6]),
)
# Where arteries and veins of a lobe start: point and radius of each.
_ARTERY_ROOT = {
    LEFT_UPPER: ((48, 2, -12), 5.8),
    LEFT_LOWER: ((57, 38, -60), 6.0),
    RIGHT_UPPER: ((-40, -2, -22), 5.6),
    RIGHT_MIDDLE: ((-47, 2, -50), 4.4),
    RIGHT_LOWER: ((-52, 32, -70), 6.0),
}
_VEIN_ROOT = {
    LEFT_UPPER: ((50, -16, -36), 5.2),
    LEFT_LOWER: ((48, 26, -66), 5.4),
    RIGHT_UPPER: ((-42, -8, -36), 5.0),
    RIGHT_MIDDLE: ((-40, -10, -40), 4.0),
    RIGHT_LOWER: ((-44, 24, -66), 5.4),
}
ESOPHAGUS_PATH = Path(
    [(3, 17, 150), (6, 24, 80), (6, 28, 20), (4, 30, -20), (9, 33, -80), (22, 14, -116),
     (44, -4, -140)],
    [7, 7, 7.5, 7.5, 8, 8.5, 9],
)  # fmt: skip


class Branch(NamedTuple):
    """A straight branch: template ends, radii at both, and how many leaves hang on it."""

    start: Points
    stop: Points
    radii: tuple[Number, Number]


def grow(root: Points, targets: Points, *, radius: float) -> list[Branch]:
    """Return a tree from a root to every target, by halving the targets.

    Each branch goes part of the way to the middle of its targets, which are then cut in two along
    their longest direction. Radii follow Murray's law with exponent 3.3 (C. D. Murray, PNAS 12,
    1926, has 3).

    Args:
        root: Where it starts, xyz.
        targets: Leaves, N 3.
        radius: At the root, mm.
    """
    branches: list[Branch] = []
    waiting = [(root, targets, radius)]
    while waiting:
        start, leaves, thick = waiting.pop()
        if len(leaves) == 1:
            branches.append(Branch(start, leaves[0], (thick, thick * 0.8)))
            continue
        stop = start + 0.42 * (leaves.mean(axis=0) - start)
        branches.append(Branch(start, stop, (thick, thick * 0.93)))
        spread = leaves - leaves.mean(axis=0)
        # Sums by einsum: those of BLAS change with its number of threads.
        axis = np.linalg.eigh(np.einsum("ni,nj->ij", spread, spread))[1][:, -1]
        order = np.argsort(np.einsum("ni,i->n", spread, axis), kind="stable")
        half = len(leaves) // 2
        for part in (order[:half], order[half:]):
            share = (len(part) / len(leaves)) ** (1 / 3.3)
            waiting.append((stop, leaves[part], thick * share))
    return branches


class Trees(NamedTuple):
    """Branches of a patient in template mm; bronchi by lobe."""

    bronchi: dict[int, list[Branch]]
    arteries: list[Branch]
    veins: list[Branch]


def grow_trees(anatomy: Anatomy) -> Trees:
    """Return the trees of a patient, always the same for the same anatomy."""
    rng = np.random.default_rng(anatomy.seed)
    inside = lobe_points(anatomy, rng, depth=6.0)
    trees = Trees({}, [], [])
    for lobe, points in inside.items():
        if len(points) < 60:
            trees.bronchi[lobe] = []
            continue
        count = 90 if lobe == RIGHT_MIDDLE else 190
        leaves = points[: min(count, len(points))]
        start, radius = _ARTERY_ROOT[lobe]
        trees.arteries.extend(grow(np.array(start, float), leaves, radius=radius))
        start, radius = _VEIN_ROOT[lobe]
        trees.veins.extend(
            grow(np.array(start, float), points[-len(leaves) * 2 // 3 :], radius=radius)
        )
        path = LOBAR_BRONCHI[lobe]
        tips = leaves[:: max(1, len(leaves) // 14)] * 0.94 + np.array(path.points[1]) * 0.06
        trees.bronchi[lobe] = grow(np.array(path.points[1], float), tips, radius=path.radii[1])
    return trees


def world_tubes(scene: Scene, branches: list[Branch], *, scale: float = 1.0) -> list[Tube]:
    """Return branches as tubes in world mm, radii times `scale`."""
    if not branches:
        return []
    ends = np.array([[branch.start, branch.stop] for branch in branches]).reshape(-1, 3)
    world = [(float(x), float(y), float(z)) for x, y, z in scene.canvas.pose.to_world(ends)]
    return [
        Tube(world[2 * i], world[2 * i + 1], (branch.radii[0] * scale, branch.radii[1] * scale))
        for i, branch in enumerate(branches)
    ]


def path_tubes(scene: Scene, path: Path, *, grow_by: float = 0.0, scale: float = 1.0) -> list[Tube]:
    """Return a path as tubes in world mm, radii times `scale` plus `grow_by`."""
    return scene.tubes(path.points, [radius * scale + grow_by for radius in path.radii])


def aorta_scale(anatomy: Anatomy) -> float:
    """Return the calibre of the aorta against the template's; it widens with age."""
    return 0.86 + 0.0025 * anatomy.age


def paint_lung_vessels(scene: Scene, trees: Trees) -> None:
    """Paint arteries and veins inside the lungs; they keep the id of their lobe."""
    for branches in (trees.arteries, trees.veins):
        paint_tubes(scene.canvas, world_tubes(scene, branches), hu=BLOOD_HU)


def paint_great_vessels(scene: Scene) -> None:
    """Paint the aorta, the central veins and the pulmonary trunk with its main branches."""
    scale = aorta_scale(scene.anatomy)
    for path in GREAT_PATHS:
        paint_tubes(scene.canvas, path_tubes(scene, path), hu=BLOOD_HU - 1, region=GREAT_VESSELS)
    paint_tubes(
        scene.canvas, path_tubes(scene, AORTA_PATH, scale=scale), hu=BLOOD_HU + 2, region=AORTA
    )


def paint_airway(
    scene: Scene, trees: Trees, *, walls: dict[int, float], lumens: dict[int, float]
) -> None:
    """Paint trachea and bronchi, first every wall, then every lumen.

    Args:
        scene: Painted in place.
        trees: Of the patient.
        walls: Thickness of the bronchial wall by lobe, mm.
        lumens: Calibre of the bronchi by lobe against the healthy one.
    """
    size = 0.86 if scene.anatomy.sex == "F" else 1.0
    central = [TRACHEA, *CENTRAL_BRONCHI]
    wall = max(1.6, 0.6 * max(walls.values()))
    for path in central:
        paint_tubes(scene.canvas, path_tubes(scene, path, grow_by=wall, scale=size), hu=25)
    for lobe, path in LOBAR_BRONCHI.items():
        paint_tubes(
            scene.canvas, path_tubes(scene, path, grow_by=0.8 * walls[lobe], scale=size), hu=15
        )
        for tube in world_tubes(scene, trees.bronchi[lobe], scale=lumens[lobe]):
            first, last = tube.radii
            shell = Tube(tube.start, tube.stop, (first + walls[lobe], last + walls[lobe]))
            if first > 0.9:
                paint_tubes(scene.canvas, [shell], hu=-60)
    for lobe, branches in trees.bronchi.items():
        tubes = [
            tube for tube in world_tubes(scene, branches, scale=lumens[lobe]) if tube.radii[0] > 0.9
        ]
        paint_tubes(scene.canvas, tubes, hu=-950)
    for path in [*central, *LOBAR_BRONCHI.values()]:
        tubes = path_tubes(scene, path, scale=size)
        paint_tubes(scene.canvas, tubes, hu=LUMEN_HU, region=AIRWAY)


def paint_esophagus(scene: Scene) -> None:
    """Paint the oesophagus, with air in it in half of the patients."""
    paint_tubes(scene.canvas, path_tubes(scene, ESOPHAGUS_PATH), hu=38, region=ESOPHAGUS)
    if scene.anatomy.seed % 2:
        gas = Path([(6, 25, 70), (6, 28, 20), (4, 29, -15)], [2.6, 3.2, 2.4])
        paint_tubes(scene.canvas, path_tubes(scene, gas), hu=-800)
