import numpy as np

from ct3dlib.regions.chest import find_airway, find_lungs
from ct3dlib.regions.working_grid import Scan

SPACING = (3.0, 2.5, 2.0)


def trunk() -> tuple[Scan, np.ndarray, np.ndarray]:
    """A trunk with a trachea of radius 9 mm down to 60 mm; and the axes' coordinates y, x."""
    shape = (50, 70, 100)
    z, y, x = np.meshgrid(
        *((np.arange(n) + 0.5) * s for n, s in zip(shape, SPACING, strict=True)),
        indexing="ij",
        sparse=True,
    )
    y, x = y - 87, x - 100
    hu = np.where((y / 75) ** 2 + (x / 92) ** 2 < 1, 40.0, -1000.0) + 0 * z
    lumen = (np.hypot(y, x) < 9) & (z > 60)
    hu[lumen] = -980
    return Scan(hu.astype(np.float32), SPACING), lumen, x + 0 * y + 0 * z


def test_airway_is_the_trachea():
    scan, lumen, _ = trunk()
    airway = find_airway(scan, scan.hu > -2000)
    assert 2 * (airway & lumen).sum() > 0.95 * (airway.sum() + lumen.sum())


def test_airway_leaves_out_a_leak():
    scan, lumen, x = trunk()
    leak = (x > 5) & (x < 50) & (np.arange(50)[:, None, None] < 26)
    leak &= (scan.hu > -100) & (np.arange(70)[:, None] > 30) & (np.arange(70)[:, None] < 40)
    hu = np.where(leak, -860, scan.hu).astype(np.float32)
    airway = find_airway(Scan(hu, SPACING), scan.hu > -2000)
    assert leak.sum() * 15e-3 > 25  # ml, so both together still have an airway's volume
    assert (airway & leak).sum() < 0.15 * leak.sum()
    assert airway[lumen].mean() > 0.95


def test_airway_does_not_reach_into_a_lungs_side():
    scan, lumen, x = trunk()
    tunnel = (np.abs(np.arange(70) - 34.5)[None, :, None] < 2) & (x > 0)
    tunnel = tunnel & (np.arange(50)[:, None, None] == 22)
    airway = find_airway(Scan(np.where(tunnel, -980, scan.hu), SPACING), scan.hu > -2000)
    assert x[airway].max() < 60
    assert airway[lumen].all()


def test_gas_of_no_height_is_no_airway():
    scan, lumen, _ = trunk()
    hu = np.where(lumen & (np.arange(50)[:, None, None] < 42), 40, scan.hu).astype(np.float32)
    assert not find_airway(Scan(hu, SPACING), scan.hu > -2000).any()


def test_a_dome_that_lung_rings_is_no_lung_and_a_mass_inside_it_is():
    shape, spacing = (50, 70, 100), (3.0, 3.0, 3.0)
    z, y, x = np.meshgrid(*(np.arange(n) * 3.0 for n in shape), indexing="ij")
    lung = (z > 20) & (np.hypot(y - 105, x - 80) < 55)
    hu = np.where((np.hypot(y - 105, (x - 150) * 0.7) < 95), 40.0, -1000.0)
    hu[lung] = -850
    dome = lung & (np.hypot(np.hypot(y - 105, x - 80), z - 20) < 30)
    mass = np.hypot(np.hypot(y - 105, x - 80), z - 100) < 15
    vessel = (np.hypot(y - 105, z - 75) < 4) & (x > 80) & lung
    hu[dome | mass | vessel] = 40
    body = hu > -900
    found = find_lungs(Scan(hu.astype(np.float32), spacing), body, np.zeros(shape, bool)).both
    assert found[mass].all()
    assert found[vessel & (x < 120)].all()
    assert found[dome].mean() < 0.1
    rest = lung & ~dome & ~mass & ~vessel
    assert found[rest].mean() > 0.97
