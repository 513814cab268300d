"""Regions drawn anew: what is asked, what is taken, what stays."""

import numpy as np
import pytest
import torch

from ct3dlib.config import Medsam2Spec
from ct3dlib.errors import CheckpointError, ConfigError
from ct3dlib.regions import refine
from ct3dlib.regions.label_map import LABEL_MAP, REGIONS, region_id
from ct3dlib.regions.refine import Refiner, build_refiner, by_window, largest_part
from ct3dlib.regions.tracker import Track
from ct3dlib.scan.volume import Volume
from tests.regions.medsam2_golden import network

SPEC = Medsam2Spec(weights="medsam2.pt", sha256="0" * 64, device="cpu", precision="fp32")
SHAPE = (10, 64, 96)
HEART, AORTA, SPINE, LIVER, RIBS = map(
    region_id, ("heart", "aorta", "spine", "liver_biliary", "ribs_chest_wall")
)


def refiner(**changes):
    return Refiner(SPEC.model_copy(update=changes), network(), torch.device("cpu"))


def scan(seed=0):
    hu = np.random.default_rng(seed).integers(-1000, 1000, SHAPE).astype(np.int16)
    affine = np.diag([3.0, 3.0, 3.0, 1.0])[[2, 1, 0, 3]]
    return Volume(hu, affine)


def labels(**boxes):
    made = np.zeros(SHAPE, np.uint8)
    for name, (d, h, w) in boxes.items():
        made[slice(*d), slice(*h), slice(*w)] = region_id(name)
    return made


TWO = labels(heart=((2, 7), (20, 40), (30, 60)), spine=((0, 10), (50, 60), (44, 52)))


def drawn_as(monkeypatch, masks):
    """Let the network draw given masks D H W at low resolution, in the order of the prompts."""

    def draw(self, volume, prompts, window):
        del self, volume
        tracks = []
        for prompt in prompts:
            mask = torch.from_numpy(masks[window].pop(0)[prompt.start : prompt.stop])
            low = mask[:, ::2, ::3].float() * 20 - 10  # 32 x 32
            score = torch.ones(len(low))
            tracks.append(Track(prompt.start, prompt.stop, low, score))
        return tracks

    monkeypatch.setattr(Refiner, "draw", draw)


def test_a_region_that_agrees_is_taken_and_one_that_does_not_is_kept(monkeypatch):
    heart = labels(heart=((2, 7), (20, 40), (33, 60))) > 0
    spine = labels(spine=((0, 10), (10, 20), (0, 12))) > 0
    drawn_as(monkeypatch, {(-160.0, 240.0): [heart], (-500.0, 1300.0): [spine]})
    made, agreement, taken = refiner()(scan(), TWO)
    assert taken == {HEART}
    assert agreement[HEART] == pytest.approx(2 * 27 / (27 + 30), abs=0.06)
    assert agreement[SPINE] == 0
    assert ((made == SPINE) == (TWO == SPINE)).all()
    overlap = ((made == HEART) & heart).sum() / heart.sum()
    assert overlap > 0.97
    assert not (made == HEART)[:, :, :31].any()


def test_a_drawing_never_takes_what_a_kept_region_holds(monkeypatch):
    ribs = labels(heart=((2, 7), (20, 40), (30, 60)), ribs_chest_wall=((2, 7), (20, 40), (60, 66)))
    wide = labels(heart=((2, 7), (20, 40), (30, 66))) > 0
    drawn_as(monkeypatch, {(-160.0, 240.0): [wide]})
    made, _, taken = refiner()(scan(), ribs)
    assert taken == {HEART}
    assert ((made == RIBS) == (ribs == RIBS)).all()


def test_where_two_drawings_meet_the_larger_logit_wins(monkeypatch):
    both = labels(heart=((2, 7), (20, 40), (30, 45)), aorta=((2, 7), (20, 40), (45, 60)))

    def draw(self, volume, prompts, window):
        del self, volume, window
        column = torch.arange(32).float()[None, None].expand(1, 32, 32)
        sure = [15 - column, column - 14]  # the heart's to the 15th column, the aorta's from there
        return [
            Track(p.start, p.stop, one.repeat(p.stop - p.start, 1, 1), torch.ones(9))
            for p, one in zip(prompts, sure, strict=True)
        ]

    monkeypatch.setattr(Refiner, "draw", draw)
    made, _, taken = refiner(accept=0.0)(scan(), both)
    assert taken == {HEART, AORTA}
    plane = made[4, 30]
    assert set(plane[:44]) == {HEART}
    assert set(plane[46:]) == {AORTA}


def test_each_slice_is_encoded_once_in_each_window_and_only_where_it_is_needed():
    seen = []
    encoder = network().model.vision_encoder
    hook = encoder.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    try:
        refiner(reach=1, slices_at_a_time=4)(scan(), TWO)
    finally:
        hook.remove()
    assert sum(seen) == 7 + 10  # soft: slices 1 to 7; bone: all ten
    assert max(seen) <= 4


def test_the_network_itself_draws_and_the_same_volume_gives_the_same():
    first = refiner(accept=0.0)(scan(), TWO)
    again = refiner(accept=0.0)(scan(), TWO)
    assert first[1] == again[1]
    assert set(first[1]) == {HEART, SPINE}
    np.testing.assert_array_equal(first[0], again[0])


def test_nothing_found_is_nothing_drawn():
    empty = np.zeros(SHAPE, np.uint8)
    made, agreement, taken = refiner()(scan(), empty)
    assert not made.any()
    assert (agreement, taken) == ({}, frozenset())


def test_only_the_largest_part_of_a_drawing_stays():
    logits = torch.full((2, 8, 8), -5.0)
    logits[:, 0:3, 0:3] = 4.0
    logits[0, 6, 6] = 9.0
    kept = largest_part(logits)
    assert (kept > 0).sum() == 18
    assert kept[0, 6, 6] < 0
    assert kept[0, 5, 5] == -5.0


def test_regions_are_seen_in_their_windows():
    windows = by_window(None)
    assert windows["bone"] == [SPINE]
    assert region_id("trachea_bronchi") in windows["lung"]
    assert HEART in windows["soft"]
    promptable = {i for regions in windows.values() for i in regions}
    assert promptable == {i for i in range(len(REGIONS)) if LABEL_MAP[i].prompt is not None}
    assert by_window(("heart", "liver_biliary")) == {"soft": [HEART, LIVER]}


@pytest.mark.parametrize("name", ["pleura", "hart"])
def test_what_cannot_be_prompted_is_refused(name):
    with pytest.raises(ConfigError, match=rf"regions: '{name}' cannot be prompted; there are lung"):
        by_window((name,))


def test_without_weights_nothing_is_drawn(tmp_path):
    missing = SPEC.model_copy(update={"weights": str(tmp_path / "none.pt")})
    with pytest.raises(CheckpointError, match=r"none\.pt"):
        build_refiner(missing)


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(refine.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="cuda was asked for and this machine has none"):
        build_refiner(SPEC.model_copy(update={"device": "cuda"}))
