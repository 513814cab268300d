"""What every training's step ends with: the loop, then the model's files."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ct3dlib.models import ModelSpec
from ct3dlib.models.exported import save_model
from ct3dlib.training.distributed import rank
from ct3dlib.training.loader import Items
from ct3dlib.training.loop import train
from ct3dlib.training.objective import Objective


def fit(
    objective: Objective,
    items: Items,
    validation: Items,
    *,
    args: Namespace,
    network: ModelSpec,
    contract: Mapping[str, Any],
) -> None:
    """Train and export the best weights.

    Args:
        objective: Its `model` is what is exported.
        items: What is trained on.
        validation: What chooses the weights; where it is empty the last ones are taken.
        args: The step's `spec`, `run`, `model` and `code`.
        network: What the model was built from.
        contract: What the model's file says of its data.
    """
    summary = train(
        objective,
        items,
        args.spec,
        run_dir=args.run,
        validation=validation if len(validation) else None,
        code=args.code,
    )
    if rank() == 0:
        save_model(
            args.model,
            objective.get_submodule("model"),
            spec=network,
            contract=contract,
            training=asdict(summary),
        )
