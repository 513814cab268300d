"""Shells around hand-made organs, and one rule for all who found them."""

import numpy as np
import pytest
from scipy import ndimage

from ct3dlib.config import RegionsSpec
from ct3dlib.regions import Segmenter
from ct3dlib.regions.derived import derived_regions, spine_course
from ct3dlib.regions.label_map import DERIVED, FOUND
from ct3dlib.regions.working_grid import Scan
from tests.regions.analytic_chest import chest
from tests.regions.providers import Told
from tests.regions.segmenting import segment

PERICARDIUM, MEDIASTINUM, PLEURA = 9, 12, 13
SPACING = (3.2, 2.0, 1.6)
SHAPE = (24, 40, 60)
SCAN = Scan(np.full(SHAPE, 40, np.float32), SPACING)  # the patient fills the view


def organs(*left_out):
    """Return two lungs with heart, airway and spine between them."""
    labels = np.zeros(SHAPE, np.uint8)
    for region, d, h, w in (
        (5, (4, 20), (6, 32), (5, 18)),
        (1, (4, 20), (6, 32), (42, 55)),
        (8, (8, 13), (12, 18), (26, 34)),
        (6, (14, 20), (18, 21), (28, 31)),
        (19, (0, 24), (29, 36), (27, 33)),
    ):
        if region not in left_out:
            labels[slice(*d), slice(*h), slice(*w)] = region
    return labels


def away(mask):
    """Return the distance to a mask, mm."""
    return ndimage.distance_transform_edt(~mask, sampling=SPACING)


def test_shells_have_their_thickness_in_mm():
    drawn = derived_regions(organs(), SCAN)
    # The heart ends at column 34 and slice 13: 4 mm are two columns of 1.6 mm, one slice of 3.2 mm.
    assert drawn[10, 15, 33:38].tolist() == [0, 9, 9, 12, 12]
    assert drawn[12:16, 15, 27].tolist() == [0, 9, 12, 12]
    assert drawn[10, 9:13, 30].tolist() == [12, 9, 9, 0]  # rows of 2 mm
    # The left lung ends at column 55, row 6 and slice 20; the pleura is 3.5 mm.
    assert drawn[10, 15, 54:59].tolist() == [0, 13, 13, 0, 0]
    assert drawn[10, 3:7, 50].tolist() == [0, 0, 13, 0]
    assert drawn[19:23, 15, 50].tolist() == [0, 13, 0, 0]


def test_every_voxel_of_a_shell_is_near_its_organ_and_free():
    labels = organs()
    drawn = derived_regions(labels, SCAN)
    assert set(np.unique(drawn)) == {0, PERICARDIUM, MEDIASTINUM, PLEURA}
    assert not drawn[labels > 0].any()
    heart, lungs = labels == 8, np.isin(labels, (1, 5))
    between = np.zeros(SHAPE, bool)
    between[4:20, 6:32, 5:55] = True  # the hull of two equal boxes
    free = labels == 0
    np.testing.assert_array_equal(drawn == PERICARDIUM, (away(heart) <= 4 + 1e-4) & between & free)
    np.testing.assert_array_equal(
        drawn == PLEURA, (away(lungs) <= 3.5 + 1e-4) & free & ~np.isin(drawn, (9, 12))
    )


def test_the_mediastinum_is_what_is_left_before_the_spine():
    labels = organs()
    drawn = derived_regions(labels, SCAN)
    middle = (29 + 36) / 2 * 2.0  # mm, of the spine's course
    front = middle - (np.arange(SHAPE[1]) + 0.5) * 2.0
    between = np.zeros(SHAPE, bool)
    between[4:20, 6:32, 5:55] = True
    want = between & (labels == 0) & (front > 5)[:, None] & (drawn != PERICARDIUM)
    np.testing.assert_array_equal(drawn == MEDIASTINUM, want)
    assert want.any()


def test_the_mediastinum_ends_at_the_diaphragm_and_65_mm_beside_the_spine():
    wide = Scan(np.full(SHAPE, 40, np.float32), (3.2, 2.0, 4.0))
    labels = organs(8)
    labels[4:13][labels[4:13] == 5] = 0  # the right lung is short, its base lies at 13.5 slices
    labels[4:20, 6:8, 5:55] = 1  # the left one reaches before the heart
    drawn = derived_regions(labels, wide) == MEDIASTINUM
    slices, _, columns = (np.unique(axis) for axis in np.nonzero(drawn))
    floor = 13.5 * 3.2 - 20
    assert (slices[0] - 0.5) * 3.2 < floor < (slices[0] + 0.5) * 3.2
    assert np.abs((columns + 0.5) * 4.0 - 30 * 4.0).max() < 65
    labels = organs(8)
    assert np.nonzero(derived_regions(labels, wide) == MEDIASTINUM)[0].min() == 4


@pytest.mark.parametrize(
    ("left_out", "drawn"),
    [
        ((1, 5), set()),
        ((19,), {PERICARDIUM, PLEURA}),
        ((8,), {MEDIASTINUM, PLEURA}),
        ((1,), {PLEURA}),
        ((6,), {PERICARDIUM, MEDIASTINUM, PLEURA}),
    ],
    ids=["no-lungs", "no-spine", "no-heart", "one-lung", "no-airway"],
)
def test_what_is_missing_has_no_shell(left_out, drawn):
    found = derived_regions(organs(*left_out), SCAN)
    assert set(np.unique(found)) - {0} == drawn


def test_the_pleura_stays_in_the_body():
    hu = np.full(SHAPE, 40, np.float32)
    hu[:, :, 56:] = -1000
    drawn = derived_regions(organs(), Scan(hu, SPACING))
    assert drawn[10, 15, 54:59].tolist() == [0, 13, 0, 0, 0]


def test_derived_ids_that_came_along_are_drawn_anew():
    labels = organs()
    own = labels.copy()
    own[labels == 0] = np.random.default_rng(0).choice([0, *DERIVED], (labels == 0).sum())
    np.testing.assert_array_equal(derived_regions(own, SCAN), derived_regions(labels, SCAN))


def test_labels_are_left_as_they_are():
    labels = organs()
    before = labels.copy()
    derived_regions(labels, SCAN)
    np.testing.assert_array_equal(labels, before)


def test_a_straight_spine_runs_through_its_middle_even_where_it_is_missing():
    spine = np.zeros(SHAPE, bool)
    spine[3:7, 28:36, 27:33] = spine[15:20, 28:36, 27:33] = True
    course = spine_course(spine, SCAN)
    assert course.found
    np.testing.assert_allclose(course.row, 32 * 2.0)
    np.testing.assert_allclose(course.column, 30 * 1.6)


def test_a_slanting_spine_is_followed_over_a_gap():
    spine = np.zeros((60, 40, 40), bool)
    for d in [*range(25), *range(35, 60)]:
        spine[d, d // 2 : d // 2 + 2, 20] = True
    course = spine_course(spine, Scan(np.zeros(spine.shape, np.float32), (2.0, 1.0, 1.0)))
    want = (np.arange(60) // 2 + 1)[20:40]
    np.testing.assert_allclose(course.row[20:40], want, atol=0.6)
    assert (np.diff(course.row) > 0).all()


def test_no_spine_has_no_course():
    course = spine_course(np.zeros(SHAPE, bool), SCAN)
    assert not course.found
    assert not course.row.any()


def test_one_rule_draws_around_everybodys_organs():
    volume, _ = chest((6.0, 5.2, 4.8))
    spec = RegionsSpec(recipe="native")
    classical = segment(volume, spec)
    labels = np.where(np.isin(classical.mask, [*DERIVED]), 0, classical.mask).astype(np.uint8)
    other = Segmenter([Told(labels, FOUND, FOUND)], None, spec.classical.spacing)(volume)
    assert {PERICARDIUM, MEDIASTINUM, PLEURA} <= set(np.unique(classical.mask).tolist())
    np.testing.assert_array_equal(other.mask, classical.mask)
    assert other.status["pleura"] == classical.status["pleura"] == "approximate"


@pytest.mark.parametrize("spacing", [3.0, 4.1, 8.0])
def test_shells_are_a_cell_thick_where_cells_are_thicker_than_they(spacing):
    scan = Scan(np.full(SHAPE, 40, np.float32), (spacing, spacing, spacing))
    drawn = derived_regions(organs(), scan)
    assert drawn[10, 15, 54:58].tolist() == [0, 13, 0, 0]
    assert drawn[10, 15, 33:36].tolist() == [0, 9, 12]
