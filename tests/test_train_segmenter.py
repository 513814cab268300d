"""The steps that train the segmenter and score it."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from ct3dlib.config import MaeSegmentSpec, MaskedAutoencoderNetworkSpec, RecipeSpec
from ct3dlib.errors import CheckpointError, StoreError
from ct3dlib.inference.segmenter import load_segmenter
from ct3dlib.models.exported import save_model
from ct3dlib.models.mae import MaskedAutoencoder
from tests.cubes import SHAPE, TINY, WINDOW, cube
from tests.stores import write_shard
from workflow_scripts import evaluate_segmenter, train_segmenter

RECIPE = RecipeSpec(shape=SHAPE, window=WINDOW, range=(0, 1))
SPLITS = {"train": 16, "tune": 4, "valid": 4}


@pytest.fixture
def args(tmp_path: Path) -> Namespace:
    """Return what the rules give: a bright box in each scan is a lesion, drawn in all but one."""
    tables, lesions = {}, []
    for seed, (split, count) in enumerate(SPLITS.items()):
        made = {f"{split}{i}": cube(np.random.default_rng(100 * seed + i)) for i in range(count)}
        scans = {name: hu for name, (hu, _) in made.items()}
        drawn = {n: inside for n, (_, inside) in made.items() if n != "train3"}
        tables[split] = [write_shard(tmp_path / f"v/{split}.parquet", "volumes", scans, RECIPE)]
        lesions.append(write_shard(tmp_path / f"l/{split}.parquet", "lesions", drawn, RECIPE))
    return Namespace(
        spec=spec(init_from=None, model=TINY),
        recipe=RECIPE,
        code="c",
        **tables,
        lesions=lesions,
        regions=[],
        run=tmp_path / "run",
        model=tmp_path / "models/mae_segment",
        metrics=tmp_path / "metrics/mae/segment.json",
        example=tmp_path / "results/mae/segmentation.png",
    )


def spec(**changes) -> MaeSegmentSpec:
    values = {
        "steps": 60,
        "batch_size": 4,
        "micro_batch_size": 4,
        "learning_rate": 6e-3,
        "device": "cpu",
        "recipe": "small",
        "filters": 8,
        "masks": ["lesions"],
        "validate_every": 30,
        "validation_items": 4,
        "augment": {"noise": 0.01},
    }
    return MaeSegmentSpec.model_validate({**values, **changes})


def pretrained(folder: Path, recipe: RecipeSpec = RECIPE) -> MaskedAutoencoder:
    decoder = {"hidden_size": 12, "num_layers": 1, "num_heads": 2}
    network = MaskedAutoencoderNetworkSpec.model_validate(
        {**TINY, "decoder": decoder, "shape": SHAPE, "mask_ratio": 0.5}
    )
    torch.manual_seed(3)
    model = MaskedAutoencoder(network)
    contract = {"recipe": recipe.model_dump(mode="json")}
    save_model(folder, model, spec=network, contract=contract, training={})
    return model


def test_it_beats_the_atlas_on_held_out_volumes(args):
    train_segmenter.main(args)
    found = load_segmenter(args.model, torch.device("cpu"))
    assert (found.recipe, found.classes) == (RECIPE, ("background", "lesion"))
    evaluate_segmenter.main(args)
    scores = json.loads(args.metrics.read_text())
    assert scores["n"] == 4
    assert args.example.stat().st_size > 1000
    assert scores["dice"]["lesion"] > 0.85
    assert scores["dice"]["lesion"] > scores["baseline_dice"]["lesion"] + 0.3
    assert scores["froc"]["sensitivity_at_1"] == 1


def test_a_frozen_training_keeps_the_pretrained_encoder(args, tmp_path):
    start = pretrained(tmp_path / "mae")
    args.spec = spec(init_from=str(tmp_path / "mae"), frozen=True, steps=2)
    train_segmenter.main(args)
    found = load_segmenter(args.model, torch.device("cpu")).model.encoder.state_dict()
    wanted = start.encoder.state_dict()
    assert [k for k in wanted if not torch.equal(found[k], wanted[k])] == []


def test_a_start_of_another_window_is_refused(args, tmp_path):
    pretrained(tmp_path / "mae", RECIPE.model_copy(update={"window": (-1200.0, 800.0)}))
    args.spec = spec(init_from=str(tmp_path / "mae"), steps=2)
    with pytest.raises(CheckpointError, match=r"its window is \[-1000.0, 1000.0\], init_from"):
        train_segmenter.main(args)


def test_volumes_without_masks_are_refused(args):
    args.spec = spec(init_from=None, model=TINY, masks=["regions", "lesions"])
    with pytest.raises(StoreError, match="no stored volume of the train split has regions and les"):
        train_segmenter.main(args)
