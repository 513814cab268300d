"""Augmentation: known maps by hand, draws per item, nothing mirrored unless asked for."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ct3dlib.config import AugmentSpec
from ct3dlib.training.augment import affine_maps, augment, draw_maps, flip, warp, warp_labels
from ct3dlib.training.draws import seed_of

RANGE = (-1.0, 1.0)
EVERYTHING = {
    "rotation": 10.0,
    "scale": 0.1,
    "shift": 2.0,
    "intensity_shift": 0.1,
    "intensity_scale": 0.2,
    "noise": 0.01,
}


def _batch(size: int = 4, shape: tuple[int, int, int] = (5, 8, 9)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "volume": torch.rand((size, 1, *shape), generator=generator) * 2 - 1,
        "item_seed": torch.tensor([seed_of("test", i) for i in range(size)]),
    }


def _maps(degrees: float = 0.0, scale: float = 1.0, shift=(0.0, 0.0, 0.0)) -> torch.Tensor:
    return affine_maps(
        degrees=torch.tensor([degrees]),
        scale=torch.tensor([scale]),
        shift=torch.tensor([shift], dtype=torch.float32),
    )


def test_everything_off_is_the_same_batch():
    batch = _batch()
    assert augment(batch, AugmentSpec(), value_range=RANGE) is batch


def test_a_quarter_turn_moves_the_right_edge_up():
    volume = torch.full((1, 1, 3, 5, 5), -1.0)
    volume[0, 0, 1, 2, 4] = 1.0  # the middle of the right edge, as a slice is drawn
    turned = warp(volume, _maps(degrees=90.0), fill=-1.0)
    assert torch.nonzero(turned[0, 0] > 0).tolist() == [[1, 0, 2]]
    wanted = torch.rot90(volume, 1, dims=(3, 4))  # from columns towards rows: anticlockwise
    torch.testing.assert_close(turned, wanted, atol=1e-5, rtol=0)


def test_a_shift_moves_the_content_and_fills_with_air():
    volume = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(1, 1, 2, 3, 4)
    moved = warp(volume, _maps(shift=(0.0, 1.0, -2.0)), fill=-9.0)[0, 0]
    wanted = torch.full((2, 3, 4), -9.0)
    wanted[:, 1:, :2] = volume[0, 0, :, :2, 2:]
    torch.testing.assert_close(moved, wanted, atol=1e-4, rtol=0)
    # Half a voxel: the mean of two neighbours.
    half = warp(volume, _maps(shift=(0.0, 0.0, 0.5)), fill=0.0)[0, 0, 0, 0]
    torch.testing.assert_close(half, torch.tensor([0.0, 0.5, 1.5, 2.5]), atol=1e-4, rtol=0)


def test_scale_and_turn_are_those_of_a_slow_reference():
    """Look every voxel up with the formula of the docstring, in float64."""
    shape = (4, 7, 6)
    volume = np.random.default_rng(0).normal(size=shape)
    degrees, scale, shift = 25.0, 1.3, np.array([0.4, -0.7, 1.1])
    angle = np.deg2rad(degrees)
    turn = np.eye(3)
    turn[1:, 1:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    centre = (np.array(shape) - 1) / 2
    wanted = np.zeros(shape)
    for voxel in np.ndindex(shape):
        at = np.linalg.inv(turn) @ (np.array(voxel) - centre - shift) / scale + centre
        low = np.floor(at).astype(int)
        for corner in np.ndindex(2, 2, 2):
            place = low + corner
            if ((place >= 0) & (place < shape)).all():
                weight = np.prod(np.where(corner, at - low, 1 - (at - low)))
                wanted[voxel] += weight * volume[tuple(place)]
    found = warp(
        torch.from_numpy(volume).float()[None, None],
        _maps(degrees, scale, tuple(shift.tolist())),
        fill=0.0,
    )
    np.testing.assert_allclose(found[0, 0].numpy(), wanted, atol=1e-4)


def test_labels_go_along_and_stay_labels():
    batch = _batch(6, (6, 16, 16))
    ball = torch.zeros(1, 1, 6, 16, 16, dtype=torch.uint8)
    ball[..., 2:4, 5:9, 9:13] = 7
    batch |= {"regions": ball.repeat(6, 1, 1, 1, 1), "volume": (ball / 7.0).repeat(6, 1, 1, 1, 1)}
    spec = AugmentSpec(rotation=15, shift=1.5)
    changed = augment(batch, spec, value_range=(0.0, 1.0))
    assert changed["regions"].dtype == torch.uint8
    assert set(changed["regions"].unique().tolist()) == {0, 7}
    assert not torch.equal(changed["regions"], batch["regions"])
    # The volume is the indicator of the region: the nearest label is where it is more than half,
    # but for corners, where the product of three distances under a half may be less.
    assert ((changed["volume"] > 0.5) <= (changed["regions"] == 7)).all()
    valid = torch.ones(6, 1, 6, 16, 16, dtype=torch.bool)
    moved = augment({**batch, "valid": valid}, AugmentSpec(shift=3), value_range=(0.0, 1.0))
    assert moved["valid"].dtype == torch.bool
    assert 0.5 < moved["valid"].float().mean() < 1


def test_labels_of_a_quarter_turn_by_hand():
    labels = torch.arange(12, dtype=torch.uint8).reshape(1, 1, 1, 3, 4)[..., :3]
    turned = warp_labels(labels, _maps(degrees=90.0))
    assert turned[0, 0, 0].tolist() == [[2, 6, 10], [1, 5, 9], [0, 4, 8]]


def test_two_ranks_change_items_as_one():
    batch, spec = _batch(4), AugmentSpec.model_validate(EVERYTHING)
    whole = augment(batch, spec, value_range=RANGE)["volume"]
    halves = [
        augment({k: v[part] for k, v in batch.items()}, spec, value_range=RANGE)["volume"]
        for part in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(torch.cat(halves), whole, atol=1e-6, rtol=0)
    again = augment(batch, spec, value_range=RANGE)["volume"]
    assert torch.equal(again, whole)
    assert len({tuple(v.flatten()[:9].tolist()) for v in whole}) == 4


def test_values_stay_in_the_range_and_are_finite():
    spec = AugmentSpec.model_validate({**EVERYTHING, "noise": 0.5, "intensity_shift": 1.0})
    changed = augment(_batch(8), spec, value_range=RANGE)["volume"]
    assert changed.min() >= -1
    assert changed.max() <= 1
    assert torch.isfinite(changed).all()


def test_noise_has_the_deviation_that_was_asked_for():
    batch = {**_batch(4, (16, 16, 16)), "volume": torch.zeros(4, 1, 16, 16, 16)}
    changed = augment(batch, AugmentSpec(noise=0.05), value_range=RANGE)["volume"]
    # A share of the range's width, 2. 16,384 draws: standard error of the deviation 0.0006.
    assert changed.std().item() == pytest.approx(0.1, abs=0.0025)
    assert changed.mean().item() == pytest.approx(0.0, abs=0.004)


def test_contrast_turns_about_the_middle_of_the_range():
    batch = {
        **_batch(64, (1, 1, 3)),
        "volume": torch.tensor([0.25, 0.5, 0.75]).repeat(64, 1, 1, 1, 1),
    }
    changed = augment(batch, AugmentSpec(intensity_scale=0.4), value_range=(0.0, 1.0))["volume"]
    assert torch.allclose(changed[..., 1], torch.tensor(0.5))
    slopes = (changed[..., 2] - changed[..., 0]).flatten() / 0.5
    assert 0.6 <= slopes.min() < 0.7
    assert 1.3 < slopes.max() <= 1.4
    moved = augment(batch, AugmentSpec(intensity_shift=0.1), value_range=(0.0, 1.0))["volume"]
    by = (moved - batch["volume"]).flatten(1)
    assert torch.allclose(by, by[:, :1])
    assert 0.08 < by.abs().max() <= 0.1


@pytest.mark.parametrize(
    ("changes", "probability"),
    [
        ({"rotation": 10, "geometry_probability": 0.3}, 0.3),
        ({"intensity_shift": 0.1, "intensity_probability": 0.3}, 0.3),
        ({"noise": 0.01, "noise_probability": 0.2}, 0.2),
        ({"flip": (0, 0, 0.5), "laterality_safe": False}, 0.5),
    ],
    ids=["geometry", "intensity", "noise", "flip"],
)
def test_each_change_falls_to_its_share_of_items_and_leaves_the_rest_alone(changes, probability):
    batch = _batch(2000, (2, 3, 4))
    changed = augment(batch, AugmentSpec.model_validate(changes), value_range=RANGE)["volume"]
    same = (changed == batch["volume"]).flatten(1).all(1)
    assert 1 - same.float().mean().item() == pytest.approx(probability, abs=0.045)  # 4 sigma


def test_a_change_that_is_switched_on_moves_no_other():
    seeds = _batch(32)["item_seed"]
    few = draw_maps(seeds, AugmentSpec(rotation=10))[1]
    more = draw_maps(seeds, AugmentSpec(rotation=10, shift=3, noise=0.1))[1]
    assert torch.equal(few[:, :, :3], more[:, :, :3])


def test_drawn_maps_stay_within_the_spec():
    spec = AugmentSpec(rotation=10, scale=0.1, shift=3)
    _, maps = draw_maps(torch.arange(5000), spec)
    growth = 1 / maps[:, 0, 0]
    assert 0.9 <= growth.min() < 0.905
    assert 1.095 < growth.max() <= 1.1
    degrees = torch.rad2deg(torch.atan2(maps[:, 1, 2], maps[:, 1, 1]))
    assert -10.001 <= degrees.min() < -9.9
    assert 9.9 < degrees.max() <= 10.001
    assert (torch.linalg.det(maps[:, :, :3]) > 0).all()  # never a mirror


def test_a_marker_on_the_left_stays_on_the_left():
    volume = torch.full((64, 1, 8, 32, 32), -1.0)
    volume[..., 12:20, 22:26] = 1.0  # columns run from the patient's right to his left
    batch = {"volume": volume, "item_seed": torch.arange(64)}
    spec = AugmentSpec.model_validate({**EVERYTHING, "rotation": 45.0})
    changed = augment(batch, spec, value_range=RANGE)["volume"] > 0
    columns = torch.arange(32.0)
    middles = (changed * columns).sum((1, 2, 3, 4)) / changed.sum((1, 2, 3, 4))
    assert middles.min() > 16


def test_flips_are_refused_unless_sides_do_not_matter():
    with pytest.raises(
        ValidationError, match=r"augment\.flip \[0\.0, 0\.0, 0\.5\] mirrors the body"
    ):
        AugmentSpec(flip=(0, 0, 0.5))
    batch = _batch(2)
    batch["regions"] = (batch["volume"] > 0).to(torch.uint8)
    spec = AugmentSpec(flip=(0, 0, 1), laterality_safe=False)
    changed = augment(batch, spec, value_range=RANGE)
    assert torch.equal(changed["volume"], batch["volume"].flip(4))
    assert torch.equal(changed["regions"], batch["regions"].flip(4))


def test_flip_mirrors_the_axes_of_each_item():
    volumes = torch.arange(2 * 2 * 2 * 3).reshape(2, 1, 2, 2, 3)
    flipped = flip(volumes, torch.tensor([[True, False, True], [False, True, False]]))
    assert torch.equal(flipped[0], volumes[0].flip(1, 3))
    assert torch.equal(flipped[1], volumes[1].flip(2))
