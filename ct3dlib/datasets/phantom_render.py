"""Render a synthetic patient on a grid: HU before the scanner, truth of regions and lesions."""

import numpy as np
from numpy.typing import NDArray

from ct3dlib.datasets.phantom_body import paint_abdomen, paint_bones, paint_table, paint_wall
from ct3dlib.datasets.phantom_canvas import Canvas
from ct3dlib.datasets.phantom_chest import (
    Chest,
    healthy_lung,
    paint_heart,
    paint_lungs,
    paint_mediastinum,
)
from ct3dlib.datasets.phantom_findings import Patient
from ct3dlib.datasets.phantom_lung_findings import (
    bronchi,
    density,
    paint_effusion,
    paint_nodules,
)
from ct3dlib.datasets.phantom_other_findings import (
    paint_arterial_calcification,
    paint_coronary_calcification,
    paint_devices,
    paint_hernia,
    paint_nodes,
)
from ct3dlib.datasets.phantom_space import Array, Grid
from ct3dlib.datasets.phantom_vessels import (
    grow_trees,
    paint_airway,
    paint_esophagus,
    paint_great_vessels,
    paint_lung_vessels,
)


def render(patient: Patient, grid: Grid) -> tuple[Array, NDArray[np.uint8], NDArray[np.uint8]]:
    """Render a patient.

    Args:
        patient: Whom.
        grid: Where; the carina lies near world (0, 0, 0).

    Returns:
        Noiseless HU, region ids 0-20, and lesion ids: i + 1 where lung nodule i of the patient is,
        0 elsewhere; all D H W.

    Raises:
        ValueError: The grid does not meet the chest.
    """
    canvas = Canvas(grid, patient.anatomy.pose)
    chest = Chest(canvas, patient.anatomy)
    trees = grow_trees(patient.anatomy)
    walls, lumens = bronchi(patient)
    paint_table(chest)
    paint_wall(chest)
    paint_abdomen(chest)
    paint_mediastinum(chest)
    paint_lungs(chest, density(chest, healthy_lung(chest), patient=patient))
    paint_lung_vessels(chest, trees)
    paint_nodes(chest, patient)
    paint_heart(chest)
    paint_great_vessels(chest)
    paint_esophagus(chest)
    paint_hernia(chest, patient)
    paint_airway(chest, trees, walls=walls, lumens=lumens)
    paint_nodules(chest, patient)
    paint_effusion(chest, patient)
    paint_bones(chest)
    paint_arterial_calcification(chest, patient)
    paint_coronary_calcification(chest, patient)
    paint_devices(chest, patient)
    return canvas.hu, canvas.regions, canvas.lesions
