"""A fine-tuned volume encoder in use: findings, classes or numbers of volumes.

Letters: B volumes, D H W voxels, K outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from ct3dlib.cohort.location import Location
from ct3dlib.config import RecipeSpec, Shape, Task
from ct3dlib.errors import CheckpointError, StoreError, VolumeError
from ct3dlib.inference.scans import VOLUMES_PER_BATCH, Reader, outcomes, stored_readers
from ct3dlib.models.exported import Exported, load_model
from ct3dlib.models.predictor import Predictor
from ct3dlib.nn.intensity import windowed
from ct3dlib.progress import progress


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A fine-tuned model and what its outputs mean.

    Args:
        model: In eval mode.
        recipe: How its volumes were normalised, and the range it sees.
        task: What its outputs are.
        names: Of its outputs: findings, classes, or columns of a table.
        mean: Of each number of a regression over the training; 0 of other tasks.
        std: Their deviation; 1 of other tasks.
        sha256: Hash of its weights.
    """

    model: Predictor
    recipe: RecipeSpec
    task: Task
    names: tuple[str, ...]
    mean: Float[Tensor, " K"]
    std: Float[Tensor, " K"]
    sha256: str

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"the model {self.sha256[:12]}"

    @property
    def columns(self) -> tuple[str, ...]:
        """What tables call its outputs."""
        prefix = "pred" if self.task == "regression" else "prob"
        return tuple(f"{prefix}_{name}" for name in self.names)

    @property
    def shape(self) -> Shape:
        """Voxels of a volume, in the model's order of axes."""
        return self.model.spec.encoder.shape

    @torch.inference_mode()
    def predict(
        self, values: Shaped[Tensor, "B 1 D H W"], window: Float[Tensor, "B 2"]
    ) -> NDArray[np.float32]:
        """Return probabilities, or the numbers of a regression in their own unit: B K.

        Args:
            values: As stored, in the model's order of axes.
            window: Values that map to the ends of the recipe's range.
        """
        device = next(self.model.parameters()).device
        seen = windowed(values.to(device), window.to(device), onto=self.recipe.range)
        outputs = self.model(seen).float().cpu()
        match self.task:
            case "regression":
                return (outputs * self.std + self.mean).numpy()
            case "multiclass":
                return outputs.softmax(dim=1).numpy()
            case "binary" | "multilabel":
                return outputs.sigmoid().numpy()


def load_predictor(folder: Path, device: torch.device) -> FineTuned:
    """Load a fine-tuned model onto a device.

    Raises:
        CheckpointError: It is missing or damaged, not a fine-tuned model, or its contract has
            holes.
    """
    loaded = load_model(folder)
    if not isinstance(loaded.module, Predictor):
        raise CheckpointError(
            f"{folder}: a {type(loaded.module).__name__} predicts nothing; give a fine-tuned "
            f"model, as models/mae_finetune"
        )
    try:
        return _fine_tuned(loaded, loaded.module.to(device))
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{folder}: its contract is incomplete ({error})") from error


def _fine_tuned(loaded: Exported, model: Predictor) -> FineTuned:
    """Return a model with what its contract says."""
    contract, count = loaded.contract, model.spec.num_outputs
    task, names = contract["task"], tuple(contract["names"])
    if task not in get_args(Task):
        raise ValueError(f"task {task!r}, wanted one of {', '.join(get_args(Task))}")
    numbers = task == "regression"
    mean = torch.tensor(contract["mean"] if numbers else [0.0] * count, dtype=torch.float32)
    std = torch.tensor(contract["std"] if numbers else [1.0] * count, dtype=torch.float32)
    if {len(names), len(mean), len(std)} != {count}:
        raise ValueError(f"names, mean and std are not of the {count} outputs")
    recipe = RecipeSpec.model_validate(contract["recipe"])
    return FineTuned(model, recipe, task, names, mean, std, loaded.sha256)


def predictions(model: FineTuned, readers: Sequence[Reader], *, batch_size: int) -> pd.DataFrame:
    """Return a row for each volume: the model's columns, `reason` and `message`.

    Where a volume cannot be used its numbers are missing; the others go on, with no reason.
    """
    made = outcomes(
        readers, model.predict, recipe=model.recipe, shape=model.shape, batch_size=batch_size
    )
    rows = []
    named = progress(readers, name="predict", unit="volume")
    for _, outcome in zip(named, made, strict=True):
        failed = isinstance(outcome, VolumeError)
        numbers = [np.nan] * len(model.columns) if failed else outcome.tolist()
        rows.append([*numbers, *((outcome.reason, str(outcome)) if failed else ("", ""))])
    return pd.DataFrame(rows, columns=[*model.columns, "reason", "message"])


def predict_split(
    model: FineTuned, catalog: pd.DataFrame, tables: Sequence[Location]
) -> pd.DataFrame:
    """Return a row for each volume of a split: who it is of, its status, the model's columns.

    Args:
        model: On the device to use.
        catalog: Rows of the split.
        tables: Status tables of its volumes.

    Raises:
        CheckpointError: The volumes are of another recipe than the model's.
        StoreError: A stored volume is damaged, or the tables are of other volumes.
    """
    found = {
        r["volume"]: read for r, read in stored_readers(tables, model.recipe, model=model.name)
    }
    if other := sorted(set(catalog["volume"]) ^ set(found)):
        raise StoreError(
            f"{other[0]}: in the catalog or in the tables of volumes, not in both; run the rule "
            f"volumes again"
        )
    readers = [found[volume] for volume in catalog["volume"]]
    made = predictions(model, readers, batch_size=VOLUMES_PER_BATCH)
    who = {name: catalog[name].to_numpy() for name in ("volume", "patient")}
    status = np.where(made["reason"] == "", "predicted", "rejected")
    told = made[["reason", "message", *model.columns]]
    return pd.concat([pd.DataFrame({**who, "status": status}), told], axis=1)
