import numpy as np

from ct3dlib.regions.abdomen import find_bowel, find_liver, find_spleen
from ct3dlib.regions.bones import Spine
from ct3dlib.regions.working_grid import Scan

SPACING = (4.0, 4.0, 4.0)


def trunk(height: int, radius: float, hu: float = 60.0) -> tuple[Scan, np.ndarray, Spine]:
    """Fat with a ball of an organ right of a straight spine."""
    z, y, x = np.ogrid[:height, :60, :80]
    z, y, x = ((a - n / 2 + 0.5) * 4 for a, n in ((z, height), (y, 60), (x, 80)))
    ball = z**2 + y**2 + (x + 65) ** 2 < radius**2
    field = np.where(ball, hu, -100).astype(np.float32)
    course = np.full(height, 200.0), np.full(height, 160.0)
    return Scan(field, SPACING), ball, Spine(ball, *course)


def test_liver_is_the_ball():
    scan, ball, spine = trunk(40, 70.0)
    liver = find_liver(scan, np.ones_like(ball), spine)
    assert 2 * (liver & ball).sum() > 0.95 * (liver.sum() + ball.sum())


def test_tissue_without_end_is_no_liver_and_no_spleen():
    scan, ball, spine = trunk(70, 500.0)
    assert not find_liver(scan, np.ones_like(ball), spine).any()
    assert not find_spleen(scan, np.ones_like(ball), spine).any()


def test_slab_has_neither_liver_nor_bowel():
    for height, wanted in ((12, False), (14, True)):
        scan, ball, spine = trunk(height, 70.0)
        assert find_liver(scan, np.ones_like(ball), spine).any() == wanted
        gas = Scan(np.where(ball, -980, scan.hu).astype(np.float32), SPACING)
        assert find_bowel(gas, np.ones_like(ball)).any() == wanted


def test_liver_lies_right_of_the_spine():
    scan, ball, spine = trunk(40, 55.0)
    mirrored = Scan(scan.hu[..., ::-1], SPACING)
    assert not find_liver(mirrored, np.ones_like(ball), spine).any()
