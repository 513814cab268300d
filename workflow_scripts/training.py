"""What trainings' steps share: how they begin, the loop, the model's files; hashes of weights."""

import hashlib
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from ct3dlib.cohort.store import StoredVolume
from ct3dlib.config import RecipeSpec, TrainSpec
from ct3dlib.inference.contract import check_volumes
from ct3dlib.models.exported import save_model
from ct3dlib.training.distributed import rank
from ct3dlib.training.loader import Items
from ct3dlib.training.loop import train
from ct3dlib.training.objective import Objective


def prepare(spec: TrainSpec, volumes: Iterable[StoredVolume], *, recipe: RecipeSpec) -> None:
    """Refuse volumes of another recipe, then set the threads and the seed of fresh weights.

    Args:
        spec: Of the training.
        volumes: Of both splits.
        recipe: Of the training; the model's file will carry it.

    Raises:
        CheckpointError, StoreError: As `check_volumes`.
    """
    check_volumes(recipe, volumes, model="this training")
    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)


def fit(
    objective: Objective,
    items: Items,
    validation: Items,
    *,
    args: Namespace,
    contract: Mapping[str, Any],
    start: nn.Module | None = None,
) -> None:
    """Train and export the best weights.

    Args:
        objective: Its `model`, with the `spec` it was built from, is what is exported.
        items: What is trained on.
        validation: What chooses the weights; where it is empty the last ones are taken.
        args: The step's `spec`, `run`, `model` and `code`.
        contract: What the model's file says of its data.
        start: Holds the weights that it starts from, if others made them: a state of a training
            from other ones is moved aside.
    """
    origin = "" if start is None else digest(start)
    summary = train(
        objective,
        items,
        args.spec,
        run_dir=args.run,
        validation=validation if len(validation) else None,
        code=" ".join(filter(None, (args.code, origin))),
    )
    if rank() == 0:
        model: Any = objective.get_submodule("model")
        save_model(
            args.model,
            model,
            spec=model.spec,
            contract=contract,
            training=asdict(summary),
        )


def digest(*modules: nn.Module) -> str:
    """Return a hash of weights."""
    found = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            found.update(name.encode())
            found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
