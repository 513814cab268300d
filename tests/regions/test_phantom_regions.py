"""Regions of the synthetic cohort against its truth."""

import numpy as np
import pytest

from ct3dlib.config import RegionsSpec
from ct3dlib.datasets.phantom_findings import make_patient
from ct3dlib.datasets.phantom_render import render
from ct3dlib.datasets.phantom_space import Grid
from ct3dlib.metrics.overlap import dice, union_dice
from ct3dlib.regions.label_map import LUNGS, REGIONS
from ct3dlib.scan.volume import Volume
from tests.regions.segmenting import segment

WANTED = {"trachea_bronchi": 0.75, "heart": 0.78, "liver_biliary": 0.85, "spine": 0.75}
MEAN = {"lungs": 0.95, "trachea_bronchi": 0.82, "heart": 0.82, "liver_biliary": 0.88, "spine": 0.8}
GRID = Grid((110, 120, 130), (3.0, 3.2, 3.0), (-205.0, -187.0, -195.0))
FINE = Grid((165, 200, 205), (2.0, 1.9, 1.9), (-205.0, -187.0, -195.0))
PATIENTS = {
    11: ("Cardiomegaly", "Pericardial effusion", "Lung opacity"),
    12: ("Emphysema", "Medical material", "Arterial wall calcification"),
    13: ("Lymphadenopathy", "Hiatal hernia", "Atelectasis"),
}


def scores_of(seed: int, findings: tuple[str, ...], grid: Grid) -> dict[str, float]:
    """Dice of the wanted regions and of both lungs together."""
    patient = make_patient(np.random.default_rng(seed), list(findings))
    hu, truth, _ = render(patient, grid)
    hu = hu + np.random.default_rng(8).normal(0, 25, hu.shape)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (*grid.spacing, 1)
    volume = Volume(np.clip(hu, -1024, 3071).astype(np.int16), affine)
    mask = segment(volume, RegionsSpec(recipe="native")).mask
    found = dice(mask, truth, [REGIONS.index(name) for name in WANTED])
    named = {REGIONS[i]: score for i, score in found.items()}
    return {"lungs": union_dice(mask, truth, LUNGS), **named}


@pytest.mark.parametrize(
    ("findings", "grid"),
    [((), GRID), (("Cardiomegaly", "Pleural effusion", "Consolidation"), GRID), ((), FINE)],
    ids=["healthy", "ill", "fine grid"],
)
def test_dice_on_a_synthetic_patient(findings, grid):
    scores = scores_of(7, findings, grid)
    assert scores["lungs"] > 0.9
    for name, wanted in WANTED.items():
        assert scores[name] > wanted, name


def test_mean_dice_over_patients_with_findings():
    found = [scores_of(seed, findings, GRID) for seed, findings in PATIENTS.items()]
    for name, wanted in MEAN.items():
        assert np.mean([scores[name] for scores in found]) > wanted, name
