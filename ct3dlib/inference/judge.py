"""A trained classifier as the judge of samples: does one show what was asked for?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from ct3dlib.cohort.store import StoredVolume
from ct3dlib.config import RecipeSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.inference.contract import check_volumes
from ct3dlib.metrics.classification import balanced_accuracy
from ct3dlib.metrics.reconstruction import Interval
from ct3dlib.models.classifier import VolumeClassifier
from ct3dlib.models.exported import load_model
from ct3dlib.scan.intensity import apply_window


@dataclass(frozen=True, eq=False)
class Judge:
    """A trained volume classifier.

    Args:
        model: In eval mode.
        recipe: How its volumes were normalised, and the range it sees.
        labels: Findings or classes that it tells.
    """

    model: VolumeClassifier
    recipe: RecipeSpec
    labels: tuple[str, ...]

    @torch.no_grad()
    def tell(self, volumes: Iterable[tuple[NDArray[np.generic], Interval]]) -> Bool[Tensor, "N L"]:
        """Return which labels each volume shows.

        Args:
            volumes: HU, D H W, each with its window.
        """
        device = next(self.model.parameters()).device
        rows = []
        for hu, window in volumes:
            seen = torch.from_numpy(apply_window(hu, window, onto=self.recipe.range))
            rows.append(self.model(seen[None, None].to(device))[0].cpu() > 0)
        return torch.stack(rows) if rows else torch.zeros(0, len(self.labels), dtype=torch.bool)


def load_judge(folder: Path, device: torch.device) -> Judge:
    """Load a trained classifier onto a device.

    Raises:
        CheckpointError: It is missing or damaged, not a classifier, or its contract has holes.
    """
    loaded = load_model(folder)
    if not isinstance(loaded.module, VolumeClassifier):
        raise CheckpointError(f"{folder}: a {type(loaded.module).__name__}, not a classifier")
    try:
        recipe = RecipeSpec.model_validate(loaded.contract["recipe"])
        return Judge(loaded.module.to(device), recipe, tuple(loaded.contract["labels"]))
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{folder}: its contract is incomplete ({error})") from error


def judge_samples(
    judge: Judge, samples: Sequence[NDArray[np.generic]], asked: Sequence[str]
) -> dict[str, float]:
    """Return the balanced accuracy of each label that some samples were asked for, others not.

    Args:
        judge: Trained on real volumes.
        samples: HU, D H W.
        asked: The label of each sample; empty: none.
    """
    told = judge.tell((sample, judge.recipe.window) for sample in samples)
    wanted = [[label == name for name in judge.labels] for label in asked]
    return _by_label(judge, told, torch.tensor(wanted, dtype=torch.bool).view_as(told))


def judge_volumes(
    judge: Judge,
    volumes: Sequence[StoredVolume],
    labels: Mapping[str, Sequence[int] | None],
) -> dict[str, float]:
    """Return the balanced accuracy of each label that some real volumes have and others not.

    A label that is not told on volumes that the judge has not seen says nothing about samples.

    Args:
        judge: Trained on others.
        volumes: Held out; those without labels are left out.
        labels: 0 or 1 for each of the judge's labels, by volume.

    Raises:
        CheckpointError: The volumes are of another recipe than the judge's.
    """
    check_volumes(judge.recipe, volumes, model="the classifier")
    pairs = [(v, found) for v in volumes if (found := labels[v.volume]) is not None]
    told = judge.tell((v.read(), v.own_window or judge.recipe.window) for v, _ in pairs)
    true = torch.tensor([found for _, found in pairs], dtype=torch.bool)
    return _by_label(judge, told, true.view_as(told))


def _by_label(
    judge: Judge, told: Bool[Tensor, "N L"], true: Bool[Tensor, "N L"]
) -> dict[str, float]:
    """Return the balanced accuracy of the labels that are there in some items and not in all."""
    found = zip(judge.labels, balanced_accuracy(told, true), strict=True)
    return {label: accuracy for label, accuracy in found if accuracy is not None}
