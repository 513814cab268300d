import numpy as np
import pytest

from ct3dlib.regions.bones import Spine
from ct3dlib.regions.mediastinum import Thorax, find_heart
from ct3dlib.regions.working_grid import Scan

SPACING = (3.0, 3.0, 3.0)
SHAPE = (90, 70, 100)
Z, Y, X = np.meshgrid(
    *((np.arange(n) + 0.5) * 3 - c for n, c in zip(SHAPE, (0, 105, 150), strict=True)),
    indexing="ij",
    sparse=True,
)  # mm; Y and X from the middle
CARINA = 170.0


def chest(heart: np.ndarray, *, fluid: np.ndarray) -> Thorax:
    """Two lungs beside a core of fat, an airway, a spine's course; a heart with fluid around it."""
    body = (Y / 100) ** 2 + (X / 145) ** 2 < 1 + 0 * Z
    inner = (Y / 85) ** 2 + (X / 125) ** 2 < 1
    lungs = inner & (np.abs(X) > 30) & (Z > 20) & (Z < 255) & ~heart & ~fluid
    hu = np.select([lungs, heart, fluid, body], [-850, 42, 8, -100], -1000)
    ring = np.abs(np.hypot(Y / 93, X / 133) - 1) < 0.04
    hu[np.broadcast_to(ring, SHAPE)] = 500
    airway = (np.hypot(Y - 5, X) < 9) & (Z > CARINA)
    sides = np.abs(np.abs(X) - np.clip(CARINA - Z, 0, 40)) < 9
    airway |= sides & (np.abs(Y - 5) < 8) & (Z <= CARINA) & (Z > 140)
    spine = Spine(lungs, np.full(SHAPE[0], 105 + 60.0), np.full(SHAPE[0], 150.0))
    return Thorax(Scan(hu.astype(np.float32), SPACING), body, lungs & ~airway, airway, spine)


def ball(radius: float) -> np.ndarray:
    return np.sqrt((Z - 95) ** 2 + (Y + 25) ** 2 + (X - 20) ** 2) < radius


NOTHING = np.zeros(SHAPE, bool)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_carina_is_where_the_airway_widens():
    assert chest(ball(50), fluid=NOTHING).carina == pytest.approx(CARINA - 6, abs=7)


def test_a_leak_to_one_side_is_no_carina():
    thorax = chest(ball(50), fluid=NOTHING)
    leak = (X > 0) & (X < 40) & (np.abs(Y) < 20) & (Z > 195) & (Z < 210)
    leaking = Thorax(
        thorax.scan, thorax.body, thorax.lungs & ~leak, thorax.airway | leak, thorax.spine
    )
    assert leaking.carina == thorax.carina


def test_without_an_airway_the_carina_comes_from_the_lungs():
    thorax = chest(ball(50), fluid=NOTHING)
    without = Thorax(thorax.scan, thorax.body, thorax.lungs, NOTHING, thorax.spine)
    assert without.carina == pytest.approx(21 + 0.6 * 231, abs=5)


@pytest.mark.parametrize("radius", [45.0, 62.0])
def test_heart_is_found_small_and_large(radius):
    heart = ball(radius)
    thorax = chest(heart, fluid=NOTHING)
    assert dice(find_heart(thorax, NOTHING), heart & (thorax.axes[0] < -18)) > 0.85


def test_noise_makes_no_hole_in_the_heart():
    heart = ball(50)
    thorax = chest(heart, fluid=NOTHING)
    noise = np.random.default_rng(0).normal(0, 25, SHAPE)
    noisy = Scan((thorax.scan.hu + noise).astype(np.float32), SPACING)
    found = find_heart(
        Thorax(noisy, thorax.body, thorax.lungs, thorax.airway, thorax.spine), NOTHING
    )
    assert dice(found, find_heart(thorax, NOTHING)) > 0.95


def test_fluid_around_the_heart_is_not_heart():
    heart = ball(45)
    fluid = ball(62) & ~heart
    found = find_heart(chest(heart, fluid=fluid), NOTHING)
    assert dice(found, heart) > 0.8
    assert (found & fluid).sum() < 0.35 * fluid.sum()


def test_cage_holds_what_parts_the_lungs_from_the_front():
    thorax = chest(ball(62), fluid=NOTHING)
    inside = np.zeros(SHAPE, bool)
    inside[30, 12, 57] = True  # heart behind the front wall
    assert thorax.cage[inside].all()
    assert not thorax.cage[30, 5, 50]  # the wall
    assert (thorax.cage & ~thorax.hull).any()
