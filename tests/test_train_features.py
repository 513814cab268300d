"""The step that trains the slice features: stores in, a model folder out."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from ct3dlib.config import FeaturesSpec, PerceptualSpec, RecipeSpec, SliceFeaturesSpec
from ct3dlib.errors import CheckpointError, StoreError
from ct3dlib.models.exported import load_model
from ct3dlib.models.perceptual import load_perceptual
from tests.stores import write_shard
from workflow_scripts.train_features import main

RECIPE = RecipeSpec(window=(-1000, 1000), range=(-1, 1))
SHAPE = (3, 16, 24)


@pytest.fixture
def args(tmp_path: Path) -> Namespace:
    """Return what the rule gives: two volumes to train on, one to choose the weights."""
    rng = np.random.default_rng(0)
    paths = {}
    for split, names in (("train", ("a", "b")), ("tune", ("c",))):
        regions = {name: rng.integers(0, 2, SHAPE).cumsum(axis=2) for name in names}
        volumes = {name: (mask * 100 - 900).astype(np.int16) for name, mask in regions.items()}
        regions = {name: (mask % 21).astype(np.uint8) for name, mask in regions.items()}
        paths[split] = [
            write_shard(tmp_path / f"volumes/{split}.parquet", "volumes", volumes, RECIPE)
        ]
        paths[f"{split}_regions"] = [
            write_shard(tmp_path / f"regions/{split}.parquet", "regions", regions, RECIPE)
        ]
    spec = FeaturesSpec(
        steps=2,
        batch_size=2,
        micro_batch_size=2,
        device="cpu",
        recipe="chest",
        crop=(16, 24),
        model=SliceFeaturesSpec(filters=8, num_levels=3),
    )
    place = {"run": tmp_path / "run", "model": tmp_path / "models/features"}
    return Namespace(spec=spec, recipe=RECIPE, code="c", **place, **paths)


def test_the_model_is_one_that_a_tokenizer_can_look_through(args):
    main(args)
    found = load_model(args.model)
    assert found.spec == args.spec.model
    assert found.training["step"] == 2
    assert found.training["best_step"] is not None
    network = load_perceptual(PerceptualSpec(), args.model, recipe=RECIPE)
    features = network(torch.zeros(1, 1, *SHAPE), torch.tensor([[1]]))
    assert [level.shape[1] for level in features] == [8, 16, 32]
    assert network.sha256 == found.sha256


def test_a_training_without_regions_is_refused(args):
    args.train_regions = []
    with pytest.raises(
        StoreError, match="no volume of the train split has regions; see its status"
    ):
        main(args)


def test_volumes_of_another_recipe_are_refused(args):
    args.recipe = RecipeSpec(spacing=(1.0, 1.0, 1.0))
    with pytest.raises(CheckpointError, match="its spacing is None, this training was trained on"):
        main(args)
