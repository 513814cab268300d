"""A fine-tuning put together: the network, the encoder that it starts from, what it learns."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ct3dlib.config import (
    FromEncoderSpec,
    MaeFinetuneSpec,
    PredictorNetworkSpec,
    RecipeSpec,
    Shape,
    VolumeEncoderNetworkSpec,
)
from ct3dlib.datasets.targets import Targets, catalog_targets, read_targets
from ct3dlib.inference.pretrained_encoder import load_encoder
from ct3dlib.models.volume_encoder import VolumeEncoder
from ct3dlib.objectives.finetune import FinetuneObjective
from ct3dlib.training.target_items import TargetItems


def targets_of(spec: MaeFinetuneSpec, catalog: pd.DataFrame) -> Targets:
    """Return what a section learns: columns of its CSV, or else the catalog's findings.

    Raises:
        DatasetError, ConfigError: As `read_targets` and `catalog_targets`.
    """
    if spec.labels is None:
        return catalog_targets(catalog, spec.findings, task=spec.task)
    return read_targets(
        Path(spec.labels.csv),
        catalog,
        task=spec.task,
        path_column=spec.labels.path_column,
        columns=spec.labels.columns,
    )


def encoder_network(
    spec: FromEncoderSpec, recipe: RecipeSpec, *, shape: Shape, start: VolumeEncoder | None
) -> VolumeEncoderNetworkSpec:
    """Return the encoder that a section trains: that of its start, or its own.

    Raises:
        ValueError: The volumes are no whole number of its patches.
    """
    given = spec.model if start is None else start.spec
    kept = given.model_dump(include={"encoder", "patch_size", "pad"}) if given else {}
    return VolumeEncoderNetworkSpec(
        **kept, shape=shape, range=recipe.range, drop_path=spec.drop_path
    )


def load_start_encoder(spec: FromEncoderSpec, recipe: RecipeSpec) -> VolumeEncoder | None:
    """Load the encoder that a section starts from; None where it starts from scratch.

    Raises:
        CheckpointError: As `load_encoder`.
    """
    return None if spec.init_from is None else load_encoder(Path(spec.init_from), recipe)


def finetune_objective(
    spec: MaeFinetuneSpec, recipe: RecipeSpec, items: TargetItems, *, start: VolumeEncoder | None
) -> FinetuneObjective:
    """Return the objective of a section on its items; weights that are not loaded are drawn.

    Args:
        spec: Of the training.
        recipe: Of its volumes.
        items: Of the train split.
        start: What the encoder starts from; None: it is fresh.
    """
    network = PredictorNetworkSpec(
        encoder=encoder_network(spec, recipe, shape=items.scans.shape, start=start),
        head=spec.head,
        num_outputs=len(items.names),
    )
    objective = FinetuneObjective(spec, network, targets=items.targets)
    if start is not None:
        objective.model.encoder.load_from_(start)
    return objective


def predictor_contract(
    objective: FinetuneObjective, recipe: RecipeSpec, items: TargetItems
) -> Mapping[str, Any]:
    """Return what a fine-tuned model's file says of its volumes and outputs."""
    contract = {
        "recipe": recipe.model_dump(mode="json"),
        "task": objective.spec.task,
        "names": list(items.names),
    }
    if objective.spec.task == "regression":
        contract |= {"mean": objective.mean.tolist(), "std": objective.std.tolist()}
    return contract
