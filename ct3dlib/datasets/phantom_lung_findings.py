"""Paint findings of the lungs: density of the parenchyma, bronchi, nodules, effusion."""

from collections.abc import Sequence

import numpy as np

from ct3dlib.datasets.phantom_anatomy import LOBES, cage_back
from ct3dlib.datasets.phantom_canvas import paint_tubes
from ct3dlib.datasets.phantom_chest import FLUID_HU, PLEURA, Chest
from ct3dlib.datasets.phantom_findings import Finding, Patient
from ct3dlib.datasets.phantom_shapes import Tube, ellipsoid
from ct3dlib.datasets.phantom_space import Array, Field


def _field(chest: Chest, finding: Finding, *, step: float) -> Array:
    """Return a finding's own field of `step` mm in the chest's window."""
    d, h, w = chest.window.box
    axes = chest.canvas.grid.axes
    field = Field.draw(np.random.default_rng([finding.seed, int(step)]), step)
    return field.on(type(axes)(axes.x[:, :, w], axes.y[:, h], axes.z[d]))


def _lines(field: Array, width: float) -> Array:
    """Return sheets along the zero levels of a field, 0 to 1: a network of cells."""
    return np.exp(-((field / np.float32(width)) ** 2))


def _cover(distance: Array, edge: float) -> Array:
    return np.clip(np.float32(0.5) - distance / np.float32(edge), 0, 1)


def _side(chest: Chest, finding: Finding) -> Array:
    """Return 1 on the side of a finding, 0 on the other."""
    x = chest.window.at.x
    match finding.side:
        case "left":
            return (x > 0).astype(np.float32)
        case "right":
            return (x < 0).astype(np.float32)
        case _:
            return np.ones_like(x)


def density(chest: Chest, hu: Array, *, patient: Patient) -> Array:
    """Return the lungs' HU with every finding that changes their density.

    Args:
        chest: Of the patient.
        hu: Healthy lung in the chest's window.
        patient: Whose findings to apply, the faint ones first.
    """
    order = (
        "Mosaic attenuation pattern",
        "Emphysema",
        "Interlobular septal thickening",
        "Pulmonary fibrotic sequela",
        "Lung opacity",
        "Atelectasis",
        "Consolidation",
    )
    for label in order:
        for finding in patient.of(label):
            hu = _apply(chest, hu, finding=finding)
    return hu


def _apply(chest: Chest, hu: Array, *, finding: Finding) -> Array:
    match finding.label:
        case "Mosaic attenuation pattern":
            return hu + (30 + 55 * finding.amount) * np.tanh(4 * _field(chest, finding, step=30.0))
        case "Emphysema":
            return _emphysema(chest, hu, finding=finding)
        case "Interlobular septal thickening":
            base = np.clip((30 - chest.window.at.z) / 80, 0.25, 1)
            lines = _lines(_field(chest, finding, step=13.0), 0.16)
            return hu + finding.amount * base * (380 * lines + 25)
        case "Pulmonary fibrotic sequela":
            return _fibrosis(chest, hu, finding=finding)
        case "Lung opacity":
            distance = _blob(chest, finding)
            haze = -590 + 45 * chest.texture[chest.window.box]
            return hu + _cover(distance, 9.0) * np.maximum(haze - hu, 0)
        case "Atelectasis":
            return _atelectasis(chest, hu, finding=finding)
        case _:
            solid = _cover(_blob(chest, finding), 4.0) * (chest.lobe == finding.region)
            return hu + solid * (34 + 6 * chest.texture[chest.window.box] - hu)


def _blob(chest: Chest, finding: Finding) -> Array:
    """Return the distance to a rounded region with an uneven edge."""
    radius = finding.size / 2
    uneven = 0.28 * radius * _field(chest, finding, step=14.0)
    shape = (radius, radius * 0.9, radius * 0.85)
    return ellipsoid(chest.window.at, finding.centre, radii=shape) + uneven.astype(np.float32)


def _emphysema(chest: Chest, hu: Array, *, finding: Finding) -> Array:
    at = chest.window.at
    where = np.clip((at.z + 90) / 130, 0.2, 1)
    if finding.kind == "paraseptal":
        where = where * np.clip(1.5 + chest.depth / 22, 0.25, 1.2)
    holes = _cover(1.25 - 1.5 * finding.amount * where - _field(chest, finding, step=10.0), 0.5)
    hu = hu + holes * (-985 - hu) - 22 * finding.amount * where
    if finding.kind == "bullous":
        for x in (-44.0, 46.0):
            bulla = ellipsoid(at, (x, 6.0, 82.0), radii=(20.0, 24.0, 12 + 16 * finding.amount))
            hu = hu + _cover(np.abs(bulla) - 0.8, 3.0) * 120
            hu = hu + _cover(bulla, 3.0) * (-1000 - hu)
    return hu


def _fibrosis(chest: Chest, hu: Array, *, finding: Finding) -> Array:
    """Paint reticulation that fades from the pleura, and scars running to it."""
    lobe = chest.lobe == finding.region
    near = np.exp(np.clip(chest.depth, -80, 0) / 16)
    reach = _cover(
        ellipsoid(
            chest.window.at, finding.centre, radii=(finding.size, finding.size, finding.size)
        ),
        14.0,
    )
    lines = _lines(_field(chest, finding, step=8.0), 0.2)
    scar = _lines(_field(chest, finding, step=24.0), 0.09) * np.clip(near + 0.35, 0, 1)
    return hu + lobe * reach * (430 * lines * near + 640 * scar + 60 * near)


def _atelectasis(chest: Chest, hu: Array, *, finding: Finding) -> Array:
    at, box = chest.window.at, chest.window.box
    if finding.kind == "dependent":
        low = np.clip((20 - at.z) / 50, 0, 1)
        layer = cage_back(at.z) - finding.size * low - at.y + 3 * chest.coarse[box]
        cover = _cover(layer, 6.0) * _side(chest, finding)
        return hu + cover * (-30 + 30 * chest.texture[box] - hu)
    x, y, z = finding.centre
    tilt = np.random.default_rng(finding.seed).uniform(-0.45, 0.45, 2)
    plane = at.z - z - np.float32(tilt[0]) * (at.x - x) - np.float32(tilt[1]) * (at.y - y)
    plane = plane + 3 * chest.coarse[box]
    far = np.hypot(at.x - x, at.y - y) - np.float32(finding.size / 2)
    cover = _cover(np.maximum(np.abs(plane) - 3.2, far), 3.0)
    return hu + cover * (chest.lobe == finding.region) * (15 - hu)


def bronchi(patient: Patient) -> tuple[dict[int, float], dict[int, float]]:
    """Return the thickness of bronchial walls, mm, and the calibre of bronchi, by lobe."""
    thickened = [2.4 + 1.8 * found.amount for found in patient.of("Peribronchial thickening")]
    walls: dict[int, float] = {lobe: max([0.9, *thickened]) for lobe in LOBES}
    lumens: dict[int, float] = dict.fromkeys(LOBES, 1.0)
    for finding in patient.of("Bronchiectasis"):
        lumens[finding.region] = finding.size
        walls[finding.region] = max(1.6, walls[finding.region])
    return walls, lumens


def paint_nodules(chest: Chest, patient: Patient) -> None:
    """Paint nodules: solid, spiculated or calcified.

    Their bodies, spicules left out, are lesions 1 to n: what a nodule covers at least half. Of two
    that overlap the later one is seen, so that it has the voxel.
    """
    nodules = patient.of("Lung nodule")
    for number, finding in enumerate(nodules, start=1):
        radius = finding.size / 2
        low = [edge - radius - 4 for edge in finding.centre]
        high = [edge + radius + 4 for edge in finding.centre]
        window = chest.canvas.template((low[0], low[1], low[2]), (high[0], high[1], high[2]))
        if window is None:
            continue
        rng = np.random.default_rng(finding.seed)
        shape = (radius * rng.uniform(0.9, 1.0), radius, radius * rng.uniform(0.85, 1.0))
        distance = ellipsoid(window.at, finding.centre, radii=shape)
        window.paint(distance, 38, edge=min(window.pixel, 2.0))
        window.lesions[distance <= 0] = number
        if finding.kind == "calcified":
            window.paint(distance + 0.3 * radius, 420)
        if finding.kind == "spiculated":
            _paint_spicules(chest, finding, rng=rng)
    _mark_unseen(chest, nodules)


def _mark_unseen(chest: Chest, nodules: Sequence[Finding]) -> None:
    """Give a nodule that is smaller than a voxel, or behind others, the voxel of its centre."""
    lesions = chest.canvas.lesions
    for number, finding in enumerate(nodules, start=1):
        x, y, z = chest.canvas.pose.to_world(np.array([finding.centre], float))[0].tolist()
        voxel = chest.canvas.grid.nearest((x, y, z))
        if voxel is not None and not (lesions == number).any():
            lesions[voxel] = number


def _paint_spicules(chest: Chest, finding: Finding, *, rng: np.random.Generator) -> None:
    directions = rng.normal(size=(9, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    middle = np.array(finding.centre)
    for direction in directions:
        ends = np.stack([middle, middle + direction * finding.size * rng.uniform(0.7, 1.05)])
        start, stop = chest.canvas.pose.to_world(ends).tolist()
        paint_tubes(chest.canvas, [Tube(tuple(start), tuple(stop), (1.6, 0.5))], hu=20)


def paint_effusion(chest: Chest, patient: Patient) -> None:
    """Paint pleural fluid, which layers behind the lung and thins out upwards."""
    window, at = chest.window, chest.window.at
    for finding in patient.of("Pleural effusion"):
        top = np.float32(-75 + 2.2 * finding.size)
        rise = np.clip((top - at.z) / 70, 0, 1)
        # The meniscus: fluid creeps up along the chest wall.
        rim = 0.75 + 0.5 * (at.x / 110) ** 2
        thickness = finding.size * rise * rim + 1.2 * chest.coarse[window.box]
        level = cage_back(at.z) - thickness - at.y
        other = 99 * (1 - _side(chest, finding))
        fluid = np.maximum(np.maximum(chest.depth, level), other + 3 - 30 * rise)
        window.paint(fluid, FLUID_HU, region=PLEURA)
