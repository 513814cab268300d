"""The steps of the masked autoencoder: pretraining, fine-tuning, what pretraining is worth."""

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import mean_absolute_error, roc_auc_score

from ct3dlib.config import MaeFinetuneSpec, MaeSpec, RecipeSpec
from ct3dlib.errors import CheckpointError, ConfigError, StoreError
from ct3dlib.models.exported import load_model
from tests.stores import write_bright_or_dark
from workflow_scripts import (
    compare_starts,
    evaluate_finetune,
    evaluate_mae,
    merge_metrics,
    predict,
    train_finetune,
    train_mae,
)

RECIPE = RecipeSpec(window=(-1000, 1000), range=(0, 1))
SHORT = {"steps": 6, "batch_size": 4, "micro_batch_size": 4, "device": "cpu", "recipe": "chest"}
MODEL = {
    "encoder": {"hidden_size": 24, "num_layers": 1, "num_heads": 2},
    "decoder": {"hidden_size": 12, "num_layers": 1, "num_heads": 2},
    "patch_size": [2, 4, 4],
}
ENCODER = {key: MODEL[key] for key in ("encoder", "patch_size")}
SPLITS = {"train": 10, "tune": 4, "valid": 6}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """Return stores of three splits; every other volume is bright, and its label says so."""
    tables, catalog = write_bright_or_dark(tmp_path, SPLITS, RECIPE, shape=(4, 8, 12))
    for step in (train_finetune, compare_starts, evaluate_finetune, predict):
        monkeypatch.setattr(step, "read_catalog", lambda path: catalog)
    return Namespace(folder=tmp_path, recipe=RECIPE, code="c", catalog=Path(), **tables)


def step(split: Namespace, /, **changes: object) -> Namespace:
    return Namespace(**{**vars(split), **changes})


def pretrain(run: Namespace, name: str = "mae", **changes: object) -> Path:
    recipe = changes.pop("seen", RECIPE)
    spec = MaeSpec.model_validate({**SHORT, "model": MODEL, **changes})
    folder = run.folder / "models" / name
    train_mae.main(step(run, spec=spec, recipe=recipe, run=run.folder / name, model=folder))
    return folder


def finetune(run: Namespace, start: Path | None, **changes: object) -> Path:
    given = {"init_from": start and str(start), "augment": {}, **changes}
    spec = MaeFinetuneSpec.model_validate({**SHORT, "task": "multilabel", **given})
    folder = run.folder / "models/mae_finetune"
    place = {"run": run.folder / "ft", "model": folder}
    train_finetune.main(step(run, spec=spec, **place))
    return folder


def label_table(run: Namespace, columns: str, row: Callable[[str, int], str]) -> dict[str, object]:
    """Write a CSV with a row for each volume, by its file in the catalog; return `labels`."""
    rows = [f"{split}{i},{row(split, i)}" for split, n in SPLITS.items() for i in range(n)]
    table = run.folder / "labels.csv"
    table.write_text("\n".join([f"Path,{columns}", *rows, ""]))
    catalog = train_finetune.read_catalog(Path())
    catalog["kind"], catalog["dataset"], catalog["problem"] = "nifti", "folder", None
    catalog["sources"] = [[f"{v}.nii.gz"] for v in catalog["volume"]]
    return {"csv": str(table), "columns": columns.split(",")}


def test_a_pretrained_model_carries_what_it_saw_and_is_measured(run):
    folder = pretrain(run)
    loaded = load_model(folder)
    assert RecipeSpec.model_validate(loaded.contract["recipe"]) == RECIPE
    assert loaded.spec.shape == (4, 8, 12)
    assert (loaded.spec.range, loaded.training["step"]) == ((0, 1), 6)
    place = {"metrics": run.folder / "a.json", "example": run.folder / "results/mae/picture.png"}
    evaluate_mae.main(step(run, model=folder, device="cpu", **place))
    found = json.loads(place["metrics"].read_text())["reconstruction"]
    assert found["n"] == 6
    assert place["example"].read_bytes().startswith(b"\x89PNG")


def test_pretraining_goes_on_from_another_one_and_refuses_what_does_not_fit(run):
    first = pretrain(run)
    again = pretrain(run, "again", init_from=str(first), learning_rate=1e-12, warmup_steps=0)
    ours, theirs = (load_model(f).module.state_dict() for f in (again, first))
    assert all(torch.allclose(ours[k], theirs[k], atol=1e-6) for k in ours)
    with pytest.raises(
        CheckpointError, match=r"the recipe: its window is .*-1200.* was trained on"
    ):
        pretrain(
            run, "other", init_from=str(first), seen=RecipeSpec(window=(-1200, 800), range=(0, 1))
        )
    tuned = finetune(run, first)
    with pytest.raises(CheckpointError, match="is a Predictor, without the decoder that pretrain"):
        pretrain(run, "third", init_from=str(tuned))


def test_fine_tuning_starts_from_the_pretrained_encoder(run):
    start = pretrain(run)
    folder = finetune(run, start, frozen=True, steps=40, learning_rate=1e-2, class_weights=None)
    tuned, pretrained = load_model(folder), load_model(start)
    assert tuned.contract["names"] == ["bright", "dark"]
    assert tuned.contract["task"] == "multilabel"
    encoder = pretrained.module.encoder.state_dict()
    assert all(torch.equal(encoder[k], v) for k, v in tuned.module.encoder.state_dict().items())
    bright = torch.full((1, 1, 4, 8, 12), 0.75)
    with torch.no_grad():
        assert tuned.module(bright)[0, 0] > tuned.module(torch.full_like(bright, 0.5))[0, 0]


def test_other_starting_weights_are_a_training_of_their_own(run, caplog):
    start = pretrain(run)
    changes = {"frozen": True, "steps": 4}
    first = load_model(finetune(run, start, **changes)).module.encoder.state_dict()
    again = load_model(finetune(run, start, **changes)).module.encoder.state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert "stale" not in caplog.text
    other = pretrain(run, "other", seed=5)
    for file in ("model.safetensors", "spec.json"):
        (start / file).write_bytes((other / file).read_bytes())
    tuned = load_model(finetune(run, start, **changes)).module.encoder.state_dict()
    wanted = load_model(other).module.encoder.state_dict()
    assert all(torch.equal(tuned[k], wanted[k]) for k in wanted)
    assert "starting weights" in caplog.text


def test_an_encoder_that_saw_other_axes_is_refused(run):
    start = pretrain(run)
    turned = RecipeSpec(**{**RECIPE.model_dump(), "axes": "dwh"})
    with pytest.raises(CheckpointError, match=r"the recipe: its axes is dwh, .* trained on dhw"):
        pretrain(run, "turned", init_from=str(start), seen=turned)


def test_a_column_of_which_nothing_is_known_is_named_before_training(run):
    def row(split: str, i: int) -> str:
        return f"{i},{i if split == 'valid' else ''}"

    labels = label_table(run, "age,weight", row)
    with pytest.raises(StoreError, match="weight: not known of any stored volume of the train spl"):
        finetune(run, None, model=ENCODER, task="regression", labels=labels)


def test_fine_tuning_from_scratch_needs_no_pretraining(run):
    folder = finetune(run, None, model=ENCODER, task="multiclass", findings=["dark", "bright"])
    loaded = load_model(folder)
    assert loaded.contract["names"] == ["dark", "bright"]
    assert loaded.spec.encoder.patch_size == (2, 4, 4)


def test_numbers_of_a_table_are_learnt_and_the_contract_scales_them_back(run):
    labels = label_table(run, "age", lambda _, i: f"{20 + 10 * i}")
    folder = finetune(run, None, model=ENCODER, task="regression", labels=labels)
    contract = load_model(folder).contract
    assert contract["names"] == ["age"]
    assert contract["mean"] == [pytest.approx(65)]
    assert contract["std"] == [pytest.approx(np.std(20 + 10 * np.arange(10)), rel=1e-6)]


def test_both_starts_are_compared_on_the_same_patients_and_resume(run, monkeypatch):
    start = pretrain(run)
    spec = MaeFinetuneSpec.model_validate(
        {
            **SHORT,
            "init_from": str(start),
            "augment": {},
            "class_weights": None,
            "learning_rate": 1e-2,
            "small_budget": {"patients": 6, "steps": 30, "seeds": [0, 1]},
        }
    )
    args = step(run, spec=spec, run=run.folder / "budget", metrics=run.folder / "b.json")
    compare_starts.main(args)
    found = json.loads(args.metrics.read_text())["small_budget"]
    for name in ("pretrained", "from_scratch"):
        assert {k: len(v) for k, v in found[name].items()} == {"bright": 2, "dark": 2}
        assert all(0 <= value <= 1 for values in found[name].values() for value in values)
    assert (found["patients"], found["steps"]) == (6, 30)
    folders = sorted(p.name for p in args.run.iterdir())
    assert folders == ["from_scratch-0", "from_scratch-1", "pretrained-0", "pretrained-1"]
    lines = {p.name: (p / "metrics.jsonl").read_text() for p in args.run.iterdir()}
    first = args.metrics.read_text()
    compare_starts.main(args)  # all is there already
    assert args.metrics.read_text() == first
    assert {p.name: (p / "metrics.jsonl").read_text() for p in args.run.iterdir()} == lines
    greedy = spec.model_copy(
        update={"small_budget": spec.small_budget.model_copy(update={"patients": 11})}
    )
    with pytest.raises(StoreError, match="11 patients are wanted and the train split has 10"):
        compare_starts.main(step(args, spec=greedy))
    fresh = MaeFinetuneSpec.model_validate(
        {**spec.model_dump(), "init_from": None, "model": ENCODER}
    )
    with pytest.raises(ConfigError, match="compares init_from with a training from scratch"):
        compare_starts.main(step(args, spec=fresh))


def test_predictions_are_scored_and_drawn(run):
    spec = MaeFinetuneSpec.model_validate({**SHORT, "findings": ["bright"]})
    table = run.folder / "valid.csv"
    rows = [f"valid{i},valid{i},predicted,{0.9 if i % 2 else 0.1}" for i in range(6)]
    table.write_text("volume,patient,status,prob_bright\n" + "\n".join(rows) + "\n")
    place = {
        "predictions": table,
        "curves": run.folder / "roc.png",
        "metrics": run.folder / "m.json",
    }
    evaluate_finetune.main(step(run, spec=spec, **place))
    found = json.loads(place["metrics"].read_text())
    assert found["auroc"] == {"bright": 1.0}
    assert place["curves"].read_bytes().startswith(b"\x89PNG")


def test_nothing_to_learn_from_is_an_error(run):
    catalog = train_finetune.read_catalog(Path())
    catalog["label"] = None
    catalog.loc[catalog["volume"] == "valid0", "label"] = "dark"
    catalog.loc[catalog["volume"] == "valid1", "label"] = "bright"
    with pytest.raises(StoreError, match="no stored volume of the train split has labels"):
        finetune(run, pretrain(run))


def test_metric_files_are_laid_together_and_nothing_is_lost(tmp_path):
    parts = {"finetune": {"auroc": {"a": 0.9}, "n": 7}, "segment": {"dice": {"b": 0.5}, "n": 3}}
    for name, content in parts.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    paths = [tmp_path / f"{name}.json" for name in parts]
    merge_metrics.main(Namespace(parts=paths, metrics=tmp_path / "mae.json"))
    assert json.loads((tmp_path / "mae.json").read_text()) == {
        "auroc": {"a": 0.9},
        "dice": {"b": 0.5},
        "n": 7,
        "counts": {"finetune": 7, "segment": 3},
    }
    (tmp_path / "other.json").write_text(json.dumps({"dice": {}}))
    with pytest.raises(StoreError, match=r"other\.json: dice: another part has it too"):
        merge_metrics.main(
            Namespace(parts=[*paths, tmp_path / "other.json"], metrics=tmp_path / "x.json")
        )


LABELS = {  # a name or number of volume i, by task
    "binary": lambda i: i % 2,
    "multilabel": lambda i: i % 2,
    "multiclass": lambda i: ("a", "b", "c")[i % 3],
    "regression": lambda i: 20.0 + i,
}


@pytest.mark.parametrize("task", LABELS)
def test_every_task_is_learnt_told_and_scored(run, task):
    labels = label_table(run, "x", lambda _, i: f"{LABELS[task](i)}")
    catalog = train_finetune.read_catalog(Path())
    catalog["split"] = catalog["volume"].str.rstrip("0123456789")
    given = {"task": task, "labels": labels, "model": ENCODER}
    folder = finetune(run, None, **given, learning_rate=1e-2)
    told = run.folder / "predictions/valid.csv"
    predict.main(
        step(run, model=folder, volumes=run.valid, split="valid", device="cpu", table=told)
    )
    spec = MaeFinetuneSpec.model_validate({**SHORT, **given, "init_from": None})
    place = {
        "predictions": told,
        "curves": run.folder / "roc.png",
        "metrics": run.folder / "m.json",
    }
    evaluate_finetune.main(step(run, spec=spec, **place))
    frame, found = pd.read_csv(told), json.loads(place["metrics"].read_text())
    true = [LABELS[task](i) for i in range(SPLITS["valid"])]
    assert frame["volume"].tolist() == [f"valid{i}" for i in range(SPLITS["valid"])]
    match task:
        case "multiclass":
            outputs = frame[["prob_a", "prob_b", "prob_c"]].to_numpy()
            np.testing.assert_allclose(outputs.sum(1), 1, atol=1e-6)
            wanted = roc_auc_score(true, outputs, multi_class="ovr", labels=["a", "b", "c"])
            assert found["classes"]["auroc"] == pytest.approx(wanted)
        case "regression":
            wanted = mean_absolute_error(true, frame["pred_x"])
            assert found["regression"]["x"]["mae"] == pytest.approx(wanted, rel=1e-5)
        case _:
            assert found["auroc"]["x"] == pytest.approx(roc_auc_score(true, frame["prob_x"]))
