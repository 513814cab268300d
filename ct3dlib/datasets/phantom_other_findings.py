"""Paint findings outside the lungs: nodes, hernia, calcifications and devices."""

import numpy as np

from ct3dlib.datasets.phantom_anatomy import SIDES, body, heart_points
from ct3dlib.datasets.phantom_body import Scene
from ct3dlib.datasets.phantom_canvas import paint_tubes
from ct3dlib.datasets.phantom_chest import MEDIASTINUM
from ct3dlib.datasets.phantom_findings import CORONARIES, Finding, Patient
from ct3dlib.datasets.phantom_shapes import Tube, capsule, ellipsoid
from ct3dlib.datasets.phantom_space import Coordinates, Field, Position
from ct3dlib.datasets.phantom_vessels import (
    AORTA,
    AORTA_PATH,
    ESOPHAGUS,
    aorta_scale,
    path_tubes,
)

METAL_HU, WIRE_HU = 3000.0, 2600.0
# Pieces of the aorta's path that a kind of calcification lies on.
_PLAQUES = {"aortic arch": (2, 8), "descending aorta": (7, 11), "thoracic aorta": (1, 11)}


def paint_nodes(scene: Scene, patient: Patient) -> None:
    """Paint enlarged lymph nodes."""
    for finding in patient.of("Lymphadenopathy"):
        radius = finding.size / 2
        x, y, z = finding.centre
        far = radius * 1.6 + 3
        window = scene.canvas.template((x - far, y - far, z - far), (x + far, y + far, z + far))
        if window is not None:
            node = ellipsoid(window.at, finding.centre, radii=(radius, radius * 1.1, radius * 1.5))
            window.paint(node, 40, region=MEDIASTINUM)


def paint_hernia(scene: Scene, patient: Patient) -> None:
    """Paint a hiatal hernia behind the heart: a wall, contents, and gas in front."""
    for finding in patient.of("Hiatal hernia"):
        radius = finding.size / 2
        centre = (6.0, 30.0, -116.0 + 0.55 * radius)
        window = scene.canvas.template((-70, -40, -165), (80, 90, -20))
        if window is None:
            return
        sac = ellipsoid(window.at, centre, radii=(radius * 1.1, radius * 0.75, radius))
        window.paint(sac, 42, region=ESOPHAGUS)
        gas = window.at.y - np.float32(centre[1] - 0.1 * radius)
        window.paint(np.maximum(sac + 4, gas), -940)
        window.paint(np.maximum(sac + 4, -gas), 18)


def paint_arterial_calcification(scene: Scene, patient: Patient) -> None:
    """Paint plaques in the wall of the aorta."""
    for finding in patient.of("Arterial wall calcification"):
        start, stop = _PLAQUES[finding.kind]
        field = Field.draw(np.random.default_rng(finding.seed), 15.0)
        level = np.float32(1.15 - finding.amount)
        for tube in path_tubes(scene, AORTA_PATH, grow_by=0.0, scale=aorta_scale(scene.anatomy))[
            start:stop
        ]:
            window = scene.canvas.around(tube, 4.0)
            if window is not None:
                wall = np.abs(capsule(window.at, tube) + np.float32(0.8)) - np.float32(1.5)
                plaque = np.maximum(wall, (level - field.on(window.at)) * 5)
                window.paint(plaque, 950, region=AORTA)


def paint_coronary_calcification(scene: Scene, patient: Patient) -> None:
    """Paint beads of calcium along the coronary arteries."""
    for finding in patient.of("Coronary artery wall calcification"):
        rng = np.random.default_rng(finding.seed)
        path = heart_points(np.array(CORONARIES[finding.kind], float), scene.anatomy)
        knots = np.arange(len(path))
        for _ in range(2 + round(5 * finding.amount)):
            here = rng.uniform(0, len(path) - 1.6)
            ends = [here, here + rng.uniform(0.2, 0.45)]
            bead = np.stack([np.interp(ends, knots, path[:, i]) for i in range(3)], axis=1)
            a, b = scene.canvas.pose.to_world(bead).tolist()
            radius = rng.uniform(1.8, 2.8)
            tube = Tube((a[0], a[1], a[2]), (b[0], b[1], b[2]), (radius, radius))
            paint_tubes(scene.canvas, [tube], hu=1000)


def _under_skin(scene: Scene, x: float, *, z: float, depth: float) -> Position:
    """Return the template point `depth` mm under the skin of the front."""
    y = np.linspace(-160, 0, 641).astype(np.float32)
    line = Coordinates(np.full_like(y, x), y, np.full_like(y, z))
    inside = np.flatnonzero(body(line, scene.anatomy) < -depth)
    return x, float(y[inside[0]]), z


def paint_devices(scene: Scene, patient: Patient) -> None:
    """Paint medical material."""
    for finding in patient.of("Medical material"):
        match finding.kind:
            case "pacemaker":
                _paint_pacemaker(scene)
            case "port":
                _paint_port(scene)
            case _:
                _paint_sternotomy(scene, finding)


def _paint_pacemaker(scene: Scene) -> None:
    x, y, z = _under_skin(scene, 84.0, z=52.0, depth=7.0)
    window = scene.canvas.template((x - 32, y - 12, z - 32), (x + 32, y + 16, z + 32))
    if window is not None:
        window.paint(ellipsoid(window.at, (x, y, z), radii=(23.0, 5.0, 21.0)), METAL_HU)
    lead: list[Position] = [
        (x, y, z), (70.0, -52.0, 100.0), (36, -42, 68), (8, -46, 51), (-26, -33, 42),
        (-30, -26, 0), (-28, -26, -48), (-12, -40, -88), (30, -52, -104),
    ]  # fmt: skip
    paint_tubes(scene.canvas, scene.tubes(lead, [1.3] * len(lead)), hu=WIRE_HU)


def _paint_port(scene: Scene) -> None:
    x, y, z = _under_skin(scene, -70.0, z=60.0, depth=6.0)
    window = scene.canvas.template((x - 20, y - 14, z - 20), (x + 20, y + 18, z + 20))
    if window is not None:
        window.paint(ellipsoid(window.at, (x, y, z), radii=(14.0, 6.0, 14.0)), 2200)
        window.paint(ellipsoid(window.at, (x, y - 1, z), radii=(8.0, 3.0, 8.0)), 300)
    line: list[Position] = [
        (x, y, z), (-66.0, -50.0, 96.0), (-44.0, -36.0, 84.0), (-28, -30, 44), (-29, -26, -30),
    ]  # fmt: skip
    paint_tubes(scene.canvas, scene.tubes(line, [1.5] * len(line)), hu=1500)


def _paint_sternotomy(scene: Scene, finding: Finding) -> None:
    """Paint wire loops around the sternum and clips along the heart."""
    rng = np.random.default_rng(finding.seed)
    for z in np.linspace(-62, 52, 6).tolist():
        x0, y0, _ = _under_skin(scene, 0.0, z=z, depth=4 + scene.anatomy.fat * 0.8)
        angles = np.linspace(0, 2 * np.pi, 9)
        loop: list[Position] = [
            (x0 + 17 * float(np.cos(a)), y0 + 10 + 9 * float(np.sin(a)), z) for a in angles
        ]
        paint_tubes(scene.canvas, scene.tubes(loop, [0.9] * len(loop)), hu=WIRE_HU)
    for _ in SIDES:
        x, y, z = rng.uniform((0, -66, -60), (30, -58, -20)).tolist()
        clip: list[Position] = [(x, y, z), (x + 3, y, z + 7)]
        paint_tubes(scene.canvas, scene.tubes(clip, [1.4, 1.4]), hu=METAL_HU)
