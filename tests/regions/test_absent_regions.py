"""What is not in a scan is absent, whatever else it shows."""

import numpy as np
import pytest

from ct3dlib.config import RegionsSpec
from ct3dlib.regions.label_map import LUNGS, REGIONS
from ct3dlib.scan.volume import Volume
from tests.regions.analytic_chest import chest
from tests.regions.segmenting import segment

SPEC = RegionsSpec(recipe="native")
SPACING = (3.0, 2.6, 2.4)
SHAPE = (70, 90, 100)
Z, Y, X = np.meshgrid(
    *((np.arange(n) + 0.5 - n / 2) * s for n, s in zip(SHAPE, SPACING, strict=True)),
    indexing="ij",
    sparse=True,
)  # mm from the middle
CHEST_ORGANS = set(REGIONS[1:15])


@pytest.fixture(scope="module")
def patient():
    volume, truth = chest(SPACING)
    return volume.array, truth, volume.affine


def found(hu: np.ndarray, affine: np.ndarray | None = None) -> set[str]:
    """Names of the regions that are not absent; noise of 15 HU is added."""
    if affine is None:
        affine = np.zeros((4, 4))
        affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (*SPACING, 1)
    noisy = hu + np.random.default_rng(0).normal(0, 15, hu.shape)
    volume = Volume(np.clip(noisy, -1024, 3071).astype(np.int16), affine)
    status = segment(volume, SPEC).status
    return {name for name, state in status.items() if state != "absent"}


def cylinder() -> np.ndarray:
    """A water phantom."""
    return np.where(np.hypot(Y, X) < 100, 0.0, -1000.0) + 0 * Z


def rods() -> np.ndarray:
    """A quality phantom with rods of bone, air, fat and acrylic."""
    hu = cylinder()
    for y, x, value in ((0, 60, -95), (60, 0, 120), (-60, 0, -1000), (0, -60, 955), (45, 5, 955)):
        hu[np.broadcast_to(np.hypot(Y - y, X - x) < 12.5, SHAPE)] = value
    return hu


def head() -> np.ndarray:
    """A skull with a nasal cavity, over a neck with an airway."""
    far = np.sqrt((Z / 100) ** 2 + (Y / 95) ** 2 + (X / 75) ** 2)
    neck = (np.hypot(Y, X) < 55) & (Z < -50)
    cavity = ((np.abs(Z + 40) < 25) & (np.hypot(Y + 60, X) < 18)) | (
        (Z < -30) & (np.hypot(Y - 10, X) < 9)
    )
    places = [cavity, (far > 0.88) & (far < 0.96), (far < 1) | neck]
    return np.select(places, [-980.0, 900.0, 40.0], -1000.0)


def legs() -> np.ndarray:
    """Two thighs."""
    side = np.hypot(Y, np.abs(X) - 62) + 0 * Z
    return np.select([side < 13, side < 55], [900.0, 45.0], -1000.0)


@pytest.mark.parametrize("make", [cylinder, rods, head, legs])
def test_what_is_no_trunk_has_no_regions(make):
    assert found(make()) == set()


@pytest.mark.parametrize("value", [-1024, -1000])
def test_air_has_no_regions(value):
    assert found(np.full(SHAPE, value)) == set()


def test_eight_slices_have_no_organ_that_takes_more(patient):
    hu, _, affine = patient
    for start in (25, 60, 90):
        names = found(hu[start : start + 8], affine)
        assert not names & {"heart", "liver_biliary", "stomach_bowel", "spleen_pancreas"}, start
    assert found(hu[60:61], affine) == set()


def test_chest_cut_above_the_diaphragm_has_no_abdomen(patient):
    hu, _, affine = patient
    names = found(hu[45:], affine)
    assert names >= {REGIONS[i] for i in LUNGS} | {"trachea_bronchi", "spine", "aorta"}
    assert not names & {"liver_biliary", "stomach_bowel", "spleen_pancreas"}


@pytest.mark.parametrize(("lost", "kept"), [(2, "right"), (5, "left")])
def test_lost_lung_is_absent_and_the_other_stays(patient, lost, kept):
    hu, truth, affine = patient
    names = found(np.where(truth == lost, 40, hu), affine)
    lungs = {REGIONS[i] for i in LUNGS}
    assert names & lungs == {name for name in lungs if name.endswith(kept)}
    assert names >= {"trachea_bronchi", "spine", "ribs_chest_wall"}


def test_lungs_without_air_leave_no_organs_without_edges(patient):
    hu, truth, affine = patient
    names = found(np.where(np.isin(truth, (2, 5)), 40, hu), affine)
    assert not names & CHEST_ORGANS
    assert names <= {"spine", "stomach_bowel", "liver_biliary", "spleen_pancreas"}


def test_prone_patient_has_the_same_regions(patient):
    hu, _, affine = patient
    table = hu[:, 98:].copy()
    prone = hu.copy()
    prone[:, 97:] = -1000
    prone[:, : table.shape[1]] = np.maximum(prone[:, : table.shape[1]], table)
    assert found(prone, affine) == found(hu, affine)
