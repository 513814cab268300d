"""Frozen networks through which a reconstruction is compared with its original.

Letters: B volumes, S slices of each, N slices or volumes of a batch, C channels, D H W voxels.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float, Int
from pydantic import ValidationError
from torch import Tensor, nn

from ct3dlib.config import PerceptualSpec, RecipeSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.models.exported import load_model
from ct3dlib.models.pretrained import (
    Features,
    alex_features,
    medicalnet_features,
    read_state,
    vgg16_features,
)
from ct3dlib.models.slice_features import SliceFeatures

Interval = tuple[float, float]


class PerceptualNetwork(nn.Module):
    """Features of some axial slices of volumes, or of the volumes in 3D.

    The weights are frozen and always in eval mode. They move with the module, but are no part of
    its parameters or its state: no optimizer, wrapper or checkpoint meets them.

    Args:
        network: Slices N 1 H W, or volumes N 1 D H W, to a list of features N C ...
        volumetric: Whether the network takes whole volumes.
        scale: (gain, offset) of the values on their way to the network: gain * value + offset.
        sha256: Hash of the weights; what is trained with them is a function of it.
    """

    def __init__(
        self, network: nn.Module, *, volumetric: bool, scale: Interval, sha256: str
    ) -> None:
        super().__init__()
        # A tuple hides it from nn.Module, whose state would hold the weights in each checkpoint.
        self._held = (network.eval().requires_grad_(requires_grad=False),)
        self._volumetric = volumetric
        self._gain, self._offset = scale
        self.sha256 = sha256

    def forward(self, volumes: Float[Tensor, "B 1 D H W"], slices: Int[Tensor, "B S"]) -> Features:
        """Return the features of each level.

        Args:
            volumes: In the range of the recipe that the network was loaded for.
            slices: Which slices of each volume are looked at; a 3D network looks at all.
        """
        x: Tensor = self._gain * volumes + self._offset
        if not self._volumetric:
            rows = torch.arange(len(x), device=x.device)[:, None]
            x = x[rows, :, slices].flatten(0, 1)  # N 1 H W
        (network,) = self._held
        return network(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PerceptualNetwork":
        """Move the hidden network too; `to`, `cuda` and `cpu` of all that holds this end here."""
        super()._apply(fn, recurse)
        for network in self._held:
            network._apply(fn, recurse)
        return self


def load_perceptual(
    spec: PerceptualSpec, features: Path | None, *, recipe: RecipeSpec
) -> PerceptualNetwork:
    """Load the network that a spec names, from local files, on the CPU.

    Args:
        spec: Which network, and where its weights are.
        features: Folder of the pipeline's own slice features, for a spec that names no weights.
        recipe: Of the volumes that it will look at.

    Raises:
        CheckpointError: The weights are missing or damaged, do not fit the network, or were
            trained on volumes that this recipe's cannot be mapped to.
    """
    weights = features if spec.weights is None else Path(spec.weights)
    if weights is None:
        raise CheckpointError(
            f"perceptual.network {spec.network}: no weights; train the pipeline's features (rule "
            f"features), or give a local path as perceptual.weights"
        )
    if spec.network == "slices":
        return _slice_network(weights, recipe)
    state, sha256 = read_state(weights)
    match spec.network:
        case "alex":
            network = alex_features(state, weights)
        case "vgg16":
            network = vgg16_features(state, weights)
        case "medicalnet":
            network = medicalnet_features(state, weights)
    return PerceptualNetwork(
        network,
        volumetric=spec.network == "medicalnet",
        scale=_onto(recipe.range, (0.0, 1.0)),
        sha256=sha256,
    )


def _slice_network(folder: Path, recipe: RecipeSpec) -> PerceptualNetwork:
    """Return the slice features of a folder; they see this recipe's values as HU, then their own.

    A window that differs from that of their training moves no tissue to another value.
    """
    found = load_model(folder)
    if not isinstance(found.module, SliceFeatures):
        raise CheckpointError(
            f"{folder}: holds a model of the name {found.spec.name}, wanted slice_features; give "
            f"the folder of a feature network"
        )
    try:
        trained_on = RecipeSpec.model_validate(found.contract.get("recipe"))
    except ValidationError as error:
        raise CheckpointError(f"{folder}: its contract has no recipe; train it again") from error
    for key in ("domain", "axes"):
        wanted, given = getattr(trained_on, key), getattr(recipe, key)
        if given != wanted:
            raise CheckpointError(
                f"{folder}: trained on volumes of {key} {wanted}, these have {given}; train the "
                f"features on their recipe, or choose another perceptual.network"
            )
    (gain, offset), (again, shift) = (
        _onto(recipe.range, recipe.window),
        _onto(trained_on.window, trained_on.range),
    )
    return PerceptualNetwork(
        found.module,
        volumetric=False,
        scale=(again * gain, again * offset + shift),
        sha256=found.sha256,
    )


def _onto(source: Interval, target: Interval) -> Interval:
    """Return the gain and the offset that map one interval onto another."""
    gain = (target[1] - target[0]) / (source[1] - source[0])
    return gain, target[0] - gain * source[0]
