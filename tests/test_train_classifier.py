"""The step that trains the judge of samples, and how it judges."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from ct3dlib.cohort.labels import label_vectors
from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import ClassifierSpec, RecipeSpec, VolumeClassifierSpec
from ct3dlib.errors import CheckpointError, StoreError
from ct3dlib.inference.judge import Judge, judge_samples, judge_volumes, load_judge
from tests.stores import write_bright_or_dark
from workflow_scripts import train_classifier
from workflow_scripts.train_classifier import main

RECIPE = RecipeSpec(window=(-1000, 1000), range=(-1, 1))
SPLITS = {"train": 12, "tune": 4}


@pytest.fixture
def args(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """Return what the rule gives; every other volume is bright, which is what the labels say."""
    paths, catalog = write_bright_or_dark(tmp_path, SPLITS, RECIPE, shape=(4, 8, 8))
    monkeypatch.setattr(train_classifier, "read_catalog", lambda path: catalog)
    spec = ClassifierSpec(
        steps=30,
        batch_size=4,
        micro_batch_size=4,
        learning_rate=1e-2,
        device="cpu",
        model=VolumeClassifierSpec(filters=8, num_levels=1),
    )
    place = {"run": tmp_path / "run", "model": tmp_path / "models/classifier", "catalog": Path()}
    return Namespace(spec=spec, recipe=RECIPE, code="c", table=catalog, **place, **paths)


def test_the_judge_is_rebuilt_from_its_files_and_tells_the_labels(args: Namespace):
    main(args)
    judge = load_judge(args.model, torch.device("cpu"))
    assert (judge.labels, judge.recipe) == (("bright", "dark"), RECIPE)
    found = judge_volumes(judge, stored_volumes(args.tune), label_vectors(args.table))
    assert found == {"bright": 1.0, "dark": 1.0}
    samples = [np.full((4, 8, 8), hu, np.int16) for hu in (500, 0, 500, 500)]
    asked = ["bright", "dark", "dark", ""]
    # One of three that were not asked to be bright is dark; the sample asked for dark too.
    assert judge_samples(judge, samples, asked) == {
        "bright": pytest.approx((1 + 1 / 3) / 2),
        "dark": pytest.approx((1 / 2 + 1) / 2),
    }
    assert judge_samples(judge, samples, [""] * 4) == {}
    assert judge_samples(judge, [], []) == {}


def test_held_out_volumes_of_another_recipe_are_refused(args: Namespace):
    main(args)
    judge = load_judge(args.model, torch.device("cpu"))
    other = Judge(judge.model, RecipeSpec(spacing=(1.0, 1.0, 1.0)), judge.labels)
    with pytest.raises(CheckpointError, match="the classifier was trained on"):
        judge_volumes(other, stored_volumes(args.tune), label_vectors(args.table))


def test_a_catalog_without_labels_is_refused(args: Namespace):
    args.table["label"] = None
    with pytest.raises(StoreError, match=r"no stored volume of the train split has labels; give"):
        main(args)


def test_another_model_is_no_judge(args: Namespace, tmp_path: Path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_judge(tmp_path / "nothing", torch.device("cpu"))
