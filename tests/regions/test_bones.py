import numpy as np
import pytest

from ct3dlib.regions.bones import find_spine
from ct3dlib.regions.working_grid import Scan

SPACING = (4.0, 2.5, 2.0)


def column(radius: float, hu: float) -> tuple[Scan, np.ndarray]:
    """A trunk with an upright cylinder of bone 60 mm before its back."""
    y, x = np.ogrid[:80, :100]
    y, x = (y + 0.5) * SPACING[1] - 100, (x + 0.5) * SPACING[2] - 100
    plane = np.where((y / 90) ** 2 + (x / 95) ** 2 < 1, 40.0, -1000.0)
    plane[np.hypot(y - 30, x - 6) < radius] = hu
    return Scan(np.tile(plane.astype(np.float32), (30, 1, 1)), SPACING), plane == hu


def test_spine_is_the_column():
    scan, bone = column(20.0, 300)
    spine = find_spine(scan, scan.hu > -500)
    overlap = (spine.mask & bone).sum()
    assert 2 * overlap > 0.95 * (spine.mask.sum() + bone.sum() * len(spine.mask))
    assert spine.column == pytest.approx(np.full(30, 106), abs=3)


def test_bone_that_is_dense_throughout_is_no_spine():
    scan, _ = column(20.0, 900)
    spine = find_spine(scan, scan.hu > -500)
    assert not spine.found
    assert len(spine.row) == 30
