"""The step that trains a tokenizer, where it takes one that is there."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import KLAutoencoderSpec, RecipeSpec, SlidingWindowSpec, TokenizerSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.inference.loaded import contract_of
from ct3dlib.models import build_autoencoder
from ct3dlib.models.exported import load_model, save_model
from ct3dlib.training.items import CropItems, GridItems, WholeItems
from tests.stores import write_shard
from workflow_scripts.train_tokenizer import _items, main

RECIPE = RecipeSpec(window=(-1000, 1000), range=(-1, 1))
MODEL = KLAutoencoderSpec(
    spatial_dims=3, blocks_down=(1, 1), blocks_up=(1,), init_filters=8, norm_groups=4
)
WINDOWS = SlidingWindowSpec(roi_size=(8, 8, 8), overlap=0.25)


@pytest.fixture
def args(tmp_path: Path) -> Namespace:
    """Return what the rule gives for a model that is taken as it is."""
    torch.manual_seed(0)
    save_model(
        tmp_path / "imported",
        build_autoencoder(MODEL),
        spec=MODEL,
        contract=contract_of(MODEL, RECIPE, WINDOWS),
        training={"imported": {"format": "other"}},
    )
    volume = {"a": np.zeros((8, 16, 16), np.int16)}
    table = write_shard(tmp_path / "volumes/train.parquet", "volumes", volume, RECIPE)
    return _args(tmp_path, table=table)


def _args(tmp_path: Path, *, table: Path, **changes: object) -> Namespace:
    spec = TokenizerSpec.model_validate(
        {
            "steps": 0,
            "init_from": str(tmp_path / "imported"),
            "batch_size": 1,
            "micro_batch_size": 1,
            "recipe": "chest",
            "crop": (8, 16, 16),
            "model": MODEL,
            **changes,
        }
    )
    place = {"run": tmp_path / "run", "model": tmp_path / "models/vae", "features": None}
    return Namespace(spec=spec, recipe=RECIPE, code="c", train=[table], tune=[], **place)


def test_no_steps_take_a_model_as_it_is(args, tmp_path):
    main(args)
    start, found = load_model(tmp_path / "imported"), load_model(args.model)
    assert found.sha256 == start.sha256
    assert found.contract == start.contract
    assert found.training == {**start.training, "taken_from": str(tmp_path / "imported")}
    assert not args.run.exists()


def test_windows_of_the_section_count_more_than_the_models(args, tmp_path):
    other = WINDOWS.model_copy(update={"overlap": 0.5})
    main(_args(tmp_path, table=args.train[0], sliding_window=other))
    assert load_model(args.model).contract["sliding_window"]["overlap"] == 0.5


@pytest.mark.parametrize("change", [{"window": (-1000, 600)}, {"axes": "dwh"}])
def test_a_model_of_another_recipe_is_refused(args, change):
    args.recipe = RECIPE.model_copy(update=change)
    (name,) = change
    with pytest.raises(
        CheckpointError, match=rf"recipe chest: its {name} (is|are) .* was trained on"
    ):
        main(args)
    assert not args.model.exists()


def test_a_model_of_another_kind_is_refused(args, tmp_path):
    wider = MODEL.model_copy(update={"init_filters": 16})
    with pytest.raises(CheckpointError, match=r"is of another model than this section's: .* copy"):
        main(_args(tmp_path, table=args.train[0], model=wider))


@pytest.mark.parametrize(
    ("patching", "training", "kind", "count"),
    [
        ("none", True, WholeItems, 1),
        ("none", False, WholeItems, 1),
        ("full", True, GridItems, 1 * 2 * 2),
        ("full", False, CropItems, 1),
        ("random_parts", True, CropItems, 1),
    ],
)
def test_patching_says_what_is_trained_on(args, tmp_path, patching, training, kind, count):
    crop = None if patching == "none" else (8, 8, 8)
    spec = _args(tmp_path, table=args.train[0], patching=patching, crop=crop).spec
    items = _items(spec, RECIPE, stored_volumes(args.train), training=training)
    assert type(items) is kind
    assert len(items) == count
    volume = items.item(0, np.random.default_rng(0))["volume"]
    assert volume.shape == (1, *(crop or (8, 16, 16)))
    assert (volume == 0).all()
