"""Regions of the synthetic cohort against its truth."""

import numpy as np
import pytest

from ct3dlib.config import RegionsSpec
from ct3dlib.datasets.phantom_findings import make_patient
from ct3dlib.datasets.phantom_render import render
from ct3dlib.datasets.phantom_space import Grid
from ct3dlib.metrics.overlap import dice, union_dice
from ct3dlib.regions import segment
from ct3dlib.regions.label_map import LUNGS, REGIONS
from ct3dlib.scan.volume import Volume

WANTED = {"trachea_bronchi": 0.75, "heart": 0.7, "liver_biliary": 0.85, "spine": 0.75}
GRID = Grid((110, 120, 130), (3.0, 3.2, 3.0), (-205.0, -187.0, -195.0))


@pytest.mark.parametrize("findings", [(), ("Cardiomegaly", "Pleural effusion", "Consolidation")])
def test_dice_on_a_synthetic_patient(findings):
    patient = make_patient(np.random.default_rng(7), list(findings))
    hu, truth = render(patient, GRID)
    hu = hu + np.random.default_rng(8).normal(0, 25, hu.shape)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (*GRID.spacing, 1)
    volume = Volume(np.clip(hu, -1024, 3071).astype(np.int16), affine)
    regions = segment(volume, RegionsSpec(recipe="native"))
    assert union_dice(regions.mask, truth, LUNGS) > 0.9
    scores = dice(regions.mask, truth, range(len(REGIONS)))
    for name, wanted in WANTED.items():
        assert scores[REGIONS.index(name)] > wanted, name
