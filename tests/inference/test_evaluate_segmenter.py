"""A segmenter against masks, and an atlas beside it."""

import numpy as np
import pytest

from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import RecipeSpec, SegmenterNetworkSpec
from ct3dlib.errors import CheckpointError, StoreError
from ct3dlib.inference.evaluate_segmenter import atlas, class_dice, evaluate_segmenter
from ct3dlib.inference.segmenter import TrainedSegmenter
from ct3dlib.models.segmenter import Segmenter
from ct3dlib.regions.classes import class_names, with_masks
from tests.cubes import SHAPE, TINY, WINDOW, bright_logits, cube
from tests.stores import write_shard

RECIPE = RecipeSpec(shape=SHAPE, window=WINDOW, range=(0, 1))


@pytest.fixture(autouse=True)
def _knows(monkeypatch):
    monkeypatch.setattr(Segmenter, "forward", bright_logits)


def segmenter(kinds) -> TrainedSegmenter:
    classes = class_names(kinds)
    encoder = {**TINY, "shape": SHAPE}
    spec = {"encoder": encoder, "filters": 2, "num_classes": len(classes)}
    model = Segmenter(SegmenterNetworkSpec.model_validate(spec)).eval()
    return TrainedSegmenter(model, RECIPE, classes)


def masked(folder, scans, **masks):
    """Return stored volumes with their masks."""
    volumes = write_shard(folder / "volumes.parquet", "volumes", scans, RECIPE)
    stored = {
        kind: stored_volumes([write_shard(folder / f"{kind}.parquet", kind, arrays, RECIPE)])
        for kind, arrays in masks.items()
    }
    return with_masks(stored_volumes([volumes]), stored)


def cubes(folder, count, seed):
    made = {f"v{i}": cube(np.random.default_rng(seed + i)) for i in range(count)}
    scans = {name: hu for name, (hu, _) in made.items()}
    return masked(folder, scans, lesions={name: inside * 3 for name, (_, inside) in made.items()})


def test_one_that_knows_is_right_and_the_atlas_is_not(tmp_path):
    train, held_out = cubes(tmp_path / "train", 5, 0), cubes(tmp_path / "valid", 3, 50)
    found = evaluate_segmenter(segmenter(["lesions"]), held_out, train=train)
    assert found["n"] == 3
    assert found["dice"] == {"lesion": 1.0}
    guess = atlas(train, num_classes=2)
    wanted = [class_dice(guess, one.read_classes(), ("", "lesion"))["lesion"] for one in held_out]
    assert found["baseline_dice"] == {"lesion": pytest.approx(np.mean(wanted))}
    assert found["baseline_dice"]["lesion"] < 0.7
    assert found["froc"]["sensitivity_at_0.125"] == 1
    assert (found["froc"]["n_lesions"], found["froc"]["n_volumes"]) == (3, 3)


def test_what_is_told_and_not_there_counts(tmp_path):
    held_out = cubes(tmp_path / "valid", 2, 50)
    empty = {one.volume.volume: np.zeros(SHAPE, np.uint8) for one in held_out}
    scans = {one.volume.volume: one.volume.read() for one in held_out}
    without = masked(tmp_path / "empty", scans, lesions=empty)
    found = evaluate_segmenter(segmenter(["lesions"]), without, train=without)
    assert found["dice"] == {"lesion": 0.0}
    # Neither the atlas nor the truth holds any: there is nothing to be right about.
    assert found["baseline_dice"] == {}
    assert "froc" not in found


def test_the_atlas_is_the_class_that_most_masks_have(tmp_path):
    rng = np.random.default_rng(0)
    masks = {f"v{i}": rng.integers(0, 21, SHAPE).astype(np.uint8) for i in range(5)}
    for mask in masks.values():
        mask[:6] = rng.integers(0, 3, mask[:6].shape)
    scans = dict.fromkeys(masks, np.zeros(SHAPE, np.int16))
    found = atlas(masked(tmp_path, scans, regions=masks), num_classes=21)
    stacked = np.stack(list(masks.values())).reshape(5, -1)
    wanted = [np.bincount(column, minlength=21).argmax() for column in stacked.T]
    np.testing.assert_array_equal(found.ravel(), wanted)


def test_the_lungs_are_one_where_lobes_are_told():
    told, truth = np.zeros((2, 4, 5), np.uint8), np.zeros((2, 4, 5), np.uint8)
    truth[0, 0, :4] = 1
    told[0, 0, :4] = 2  # another lobe: no lobe is right, the lungs are
    scores = class_dice(told, truth, class_names(["regions"]))
    names = class_names(["regions"])
    assert scores[names[1]] == scores[names[2]] == 0
    assert scores["lungs"] == 1
    assert np.isnan(scores[names[3]])
    assert "background" not in scores
    assert list(class_dice(told, truth, ("background", "lesion"))) == ["lesion"]


def test_regions_and_lesions_are_scored_together(tmp_path):
    hu, inside = cube(np.random.default_rng(0))
    regions = np.where(np.arange(24) < 12, 6, 7) * np.ones(SHAPE, np.uint8)
    given = masked(tmp_path, {"a": hu}, regions={"a": regions}, lesions={"a": inside})
    found = evaluate_segmenter(segmenter(["regions", "lesions"]), given, train=given)
    assert found["dice"]["lesion"] == 1
    # The atlas of one volume is its mask.
    assert set(found["baseline_dice"].values()) == {1}
    assert len(found["baseline_dice"]) == 3
    assert found["froc"]["cpm"] == 1


def test_volumes_without_masks_or_of_another_recipe_are_refused(tmp_path):
    held_out = cubes(tmp_path, 2, 0)
    with pytest.raises(StoreError, match="0 held-out and 2 training volumes have masks; each"):
        evaluate_segmenter(segmenter(["lesions"]), [], train=held_out)
    made = segmenter(["lesions"])
    other = TrainedSegmenter(made.model, RecipeSpec(spacing=(1.0, 1.0, 1.0)), made.classes)
    with pytest.raises(CheckpointError, match="its spacing is None, the segmenter was trained on"):
        evaluate_segmenter(other, held_out, train=held_out)
    with pytest.raises(
        CheckpointError, match=r"tells lung_upper_lobe_left, .*, the masks hold lesion;"
    ):
        evaluate_segmenter(segmenter(["regions"]), held_out, train=held_out)
