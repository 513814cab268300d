"""What pretraining is worth where labels are few: the same training from both starts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ct3dlib.config import MaeFinetuneSpec, RecipeSpec, SmallBudgetSpec, VolumeEncoderSpec
from ct3dlib.datasets.targets import Targets
from ct3dlib.errors import StoreError
from ct3dlib.metrics.bootstrap import UndefinedScoreError
from ct3dlib.metrics.classification import binary_scores
from ct3dlib.models.volume_encoder import VolumeEncoder
from ct3dlib.nn.intensity import windowed
from ct3dlib.objectives.finetune import FinetuneObjective
from ct3dlib.objectives.finetuning import finetune_objective
from ct3dlib.training.distributed import choose_device
from ct3dlib.training.loop import train
from ct3dlib.training.target_items import TargetItems

STARTS = ("pretrained", "from_scratch")


@dataclass(frozen=True, eq=False)
class Split:
    """What is learnt from, and what is held out.

    Args:
        items: Of the train split.
        held_out: Of the valid split.
        patients: Of each volume of the train split.
        targets: Of both.
        recipe: Of their volumes.
    """

    items: TargetItems
    held_out: TargetItems
    patients: Mapping[str, str]
    targets: Targets
    recipe: RecipeSpec


def compare_starts(
    spec: MaeFinetuneSpec, split: Split, *, start: VolumeEncoder, run_dir: Path, code: str
) -> dict[str, Any]:
    """Return the AUROC of each finding by start and seed, at equal steps on the same few patients.

    A seed draws the patients, the order of items and the fresh weights; both starts share it. The
    last weights are scored: nobody chooses.

    Args:
        spec: Of the fine-tuning, with its `small_budget`.
        split: Volumes and labels.
        start: The pretrained encoder; from scratch the same one is drawn anew.
        run_dir: A folder of each training in it, from which it goes on.
        code: Fingerprint of the code and the pretrained weights.

    Raises:
        ValueError: The section has no small budget.
        StoreError: There are fewer patients than it asks for.
    """
    if spec.small_budget is None:
        raise ValueError("mae_finetune.small_budget is null; give it patients and steps")
    budget = spec.small_budget
    table: dict[str, dict[str, list[float | None]]] = {
        name: {finding: [] for finding in split.items.names} for name in STARTS
    }
    for seed in budget.seeds:
        items = few_patients(split, budget, seed=seed)
        for name in STARTS:
            one = _training(spec, start, name=name, seed=seed)
            torch.manual_seed(seed)
            loaded = start if name == "pretrained" else None
            objective = finetune_objective(one, split.recipe, items, start=loaded)
            train(objective, items, one, run_dir=run_dir / f"{name}-{seed}", code=code)
            for finding, auroc in held_out_auroc(objective, split.held_out).items():
                table[name][finding].append(auroc)
    return {**table, "patients": budget.patients, "steps": budget.steps}


def few_patients(split: Split, budget: SmallBudgetSpec, *, seed: int) -> TargetItems:
    """Return the volumes of a few patients of the train split.

    Raises:
        StoreError: There are fewer patients than the budget.
    """
    volumes = split.items.scans.volumes
    everyone = sorted({split.patients[volume.volume] for volume in volumes})
    if len(everyone) < budget.patients:
        raise StoreError(
            f"mae_finetune.small_budget: {budget.patients} patients are wanted and the train split "
            f"has {len(everyone)} with labels; lower it"
        )
    chosen = set(np.random.default_rng(seed).permutation(everyone)[: budget.patients].tolist())
    kept = [volume for volume in volumes if split.patients[volume.volume] in chosen]
    return TargetItems(kept, split.targets, recipe=split.recipe)


@torch.no_grad()
def held_out_auroc(objective: FinetuneObjective, items: TargetItems) -> dict[str, float | None]:
    """Return the AUROC of each finding; None where all volumes have it, or none."""
    device = choose_device(objective.spec.device)
    model = objective.model.eval().to(device)
    outputs = []
    for index in range(len(items)):
        item = items.item(index, np.random.default_rng(0))  # draws nothing
        values, window = item["values"][None].to(device), item["window"][None].to(device)
        outputs.append(model(windowed(values, window, onto=model.spec.encoder.range))[0].cpu())
    found = torch.stack(outputs).sigmoid().numpy()
    return {
        name: _auroc(found[:, k], items.targets[:, k].numpy()) for k, name in enumerate(items.names)
    }


def _auroc(outputs: NDArray[np.float32], targets: NDArray[np.float32]) -> float | None:
    """Return the AUROC of what is known of a finding; None where that tells nothing apart."""
    known = ~np.isnan(targets)
    if not known.any():
        return None
    try:
        return binary_scores(outputs[known], targets[known] > 0)["auroc"]
    except UndefinedScoreError:
        return None


def _training(
    spec: MaeFinetuneSpec, start: VolumeEncoder, *, name: str, seed: int
) -> MaeFinetuneSpec:
    """Return the section of one of the trainings."""
    budget = spec.small_budget
    changes: dict[str, Any] = {"seed": seed, "stop_at": None, "early_stop": None}
    if budget is not None:
        changes["steps"] = changes["save_every"] = budget.steps
        changes["warmup_steps"] = min(spec.warmup_steps, budget.steps // 10)
    if name == "from_scratch":
        kept = start.spec.model_dump(include=set(VolumeEncoderSpec.model_fields))
        changes |= {"init_from": None, "model": VolumeEncoderSpec(**kept), "frozen": False}
    return spec.model_copy(update=changes)
