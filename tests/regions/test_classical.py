import numpy as np
import pytest

from ct3dlib.config import RegionsSpec
from ct3dlib.errors import VolumeError
from ct3dlib.metrics.overlap import dice, union_dice
from ct3dlib.regions.label_map import LUNGS, REGIONS, region_id
from ct3dlib.scan.volume import Volume
from tests.regions.analytic_chest import chest
from tests.regions.segmenting import segment

SPEC = RegionsSpec(recipe="native")
CANONICAL = np.array([[0, 0, 2.4, 0], [0, 2.6, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def native():
    volume, truth = chest((3.0, 2.6, 2.4))
    return volume, truth, segment(volume, SPEC)


def test_organs_are_found_where_they_were_put(native):
    _, truth, regions = native
    scores = dice(regions.mask, truth, [region_id(n) for n in ("heart", "liver_biliary", "aorta")])
    assert union_dice(regions.mask, truth, LUNGS) > 0.95
    assert scores[8] > 0.75
    assert scores[15] > 0.85
    assert scores[10] > 0.5
    scores = dice(regions.mask, truth, [6, 19, 20])
    assert min(scores.values()) > 0.85


def test_sides_are_the_patients(native):
    _, truth, regions = native
    right, left = np.isin(regions.mask, (3, 4, 5)), np.isin(regions.mask, (1, 2))
    assert (right & (truth == 5)).sum() > 0.95 * right.sum() - (truth == 0)[right].sum()
    assert not (right & (truth == 2)).any()
    assert not (left & (truth == 5)).any()


def test_lobes_are_ordered(native):
    height = np.arange(native[2].mask.shape[0])[:, None, None]
    mean = [np.average(height * (native[2].mask == i), weights=None) for i in range(6)]
    count = np.bincount(native[2].mask.ravel(), minlength=21)
    upper_left, lower_left, upper_right, _, lower_right = (
        mean[i] * native[2].mask.size / count[i] for i in LUNGS
    )
    assert upper_left > lower_left + 10
    assert upper_right > lower_right + 10


def test_status_tells_measured_from_assumed(native):
    status = native[2].status
    assert [status[n] for n in ("trachea_bronchi", "spine", "ribs_chest_wall")] == ["ok"] * 3
    assert {status[REGIONS[i]] for i in LUNGS} == {"approximate"}
    assert status["kidney_adrenal"] == "absent"


def test_shells_lie_around_their_organs(native):
    mask = native[2].mask
    depth, height, width = (int(c) for c in np.argwhere(mask == 9).mean(axis=0))
    assert native[1][depth, height, width] == 8  # the shell's middle is the heart
    pleura = np.argwhere(mask == 13)
    lungs = np.isin(mask, LUNGS)
    near = [lungs[tuple(slice(max(c - 3, 0), c + 4) for c in at)].any() for at in pleura[::97]]
    assert np.mean(near) == 1


def test_another_grid_gives_the_same_regions(native):
    volume, truth = chest((5.0, 3.7, 4.4))
    regions = segment(volume, SPEC)
    assert regions.mask.shape == volume.shape
    assert union_dice(regions.mask, truth, LUNGS) > 0.95
    assert min(dice(regions.mask, truth, [6, 8, 15, 19]).values()) > 0.75


def test_same_volume_gives_the_same_mask(native):
    np.testing.assert_array_equal(segment(native[0], SPEC).mask, native[2].mask)


def test_one_lung_has_the_lobes_of_its_side(native):
    volume, truth, _ = native
    collapsed = np.where(truth == 2, 45, volume.array).astype(np.int16)
    status = segment(Volume(collapsed, volume.affine), SPEC).status
    assert status["lung_upper_lobe_left"] == status["lung_lower_lobe_left"] == "absent"
    assert status["lung_upper_lobe_right"] == "approximate"


def test_abdomen_has_no_chest(native):
    volume, truth, _ = native
    below = volume.array[:26]
    flat = np.where(np.isin(truth[:26], (2, 5)), 45, below).astype(np.int16)
    regions = segment(Volume(flat, volume.affine), SPEC)
    assert dice(regions.mask, truth[:26], [19])[19] > 0.85
    chest_only = [n for n in REGIONS[1:14] if regions.status[n] != "absent"]
    assert chest_only == []
    assert regions.status["ribs_chest_wall"] == "absent"


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 4), (40, 50, 60)])
@pytest.mark.parametrize("value", [-1024, -850, 0, 1500])
def test_constant_volume_has_no_lungs(shape, value):
    regions = segment(Volume(np.full(shape, value, np.int16), CANONICAL), SPEC)
    assert regions.mask.shape == shape
    assert {regions.status[REGIONS[i]] for i in LUNGS} == {"absent"}


def test_noise_is_no_anatomy():
    noise = np.random.default_rng(0).integers(-1024, 3071, (30, 40, 50)).astype(np.int16)
    regions = segment(Volume(noise, CANONICAL), SPEC)
    assert regions.status["heart"] == "absent"
    assert regions.status["lung_upper_lobe_left"] == "absent"


def test_other_axes_are_refused():
    turned = Volume(np.zeros((4, 4, 4), np.int16), np.eye(4))
    with pytest.raises(ValueError, match="axes D to superior, H to posterior, W to the patient's"):
        segment(turned, SPEC)


def test_other_domains_are_refused():
    with pytest.raises(VolumeError, match="need HU, not the domain 'mr'"):
        segment(Volume(np.zeros((4, 4, 4), np.int16), CANONICAL, "mr"), SPEC)
