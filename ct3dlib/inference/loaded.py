"""Trained models as the rest of inference takes them: typed, on a device, with their contract."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ct3dlib.config import RecipeSpec, Shape
from ct3dlib.errors import CheckpointError
from ct3dlib.models.exported import load_model
from ct3dlib.models.maskgit import MaskGIT
from ct3dlib.models.tokenizer import CausalTokenizer


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A trained tokenizer and the volumes it was trained on.

    Args:
        model: In eval mode.
        recipe: How its volumes were normalised, and the window and range it sees.
        sha256: Hash of its weights.
    """

    model: CausalTokenizer
    recipe: RecipeSpec
    sha256: str

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"the tokenizer {self.sha256[:12]}"


@dataclass(frozen=True, eq=False)
class Transformer:
    """A trained token transformer and the grid it was trained on.

    Args:
        model: In eval mode.
        grid: Tokens along (D, H, W).
        volume_shape: Voxels that the grid decodes to.
        affine: 4 x 4, voxel (d, h, w, 1) to LPS mm, of one training volume.
        labels: Findings it can be asked for.
        tokenizer_sha256: Hash of the tokenizer whose indices it learnt.
    """

    model: MaskGIT
    grid: Shape
    volume_shape: Shape
    affine: NDArray[np.float64]
    labels: tuple[str, ...]
    tokenizer_sha256: str


def load_tokenizer(folder: Path, device: torch.device) -> Tokenizer:
    """Load a trained tokenizer onto a device.

    Raises:
        CheckpointError: It is missing or damaged, not a tokenizer, or its contract has no recipe.
    """
    loaded = load_model(folder)
    if not isinstance(loaded.module, CausalTokenizer):
        raise CheckpointError(f"{folder}: a {type(loaded.module).__name__}, not a tokenizer")
    try:
        recipe = RecipeSpec.model_validate(loaded.contract["recipe"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{folder}: its contract holds no recipe ({error})") from error
    return Tokenizer(loaded.module.to(device), recipe, loaded.sha256)


def load_transformer(folder: Path, device: torch.device) -> Transformer:
    """Load a trained token transformer onto a device.

    Raises:
        CheckpointError: It is missing or damaged, not a transformer, or its contract has holes.
    """
    loaded = load_model(folder)
    if not isinstance(loaded.module, MaskGIT):
        raise CheckpointError(f"{folder}: a {type(loaded.module).__name__}, not a transformer")
    contract = loaded.contract
    try:
        return Transformer(
            model=loaded.module.to(device),
            grid=_shape(contract["grid"]),
            volume_shape=_shape(contract["volume_shape"]),
            affine=np.array(contract["affine"], dtype=np.float64),
            labels=tuple(contract["labels"]),
            tokenizer_sha256=contract["tokenizer_sha256"],
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{folder}: its contract is incomplete ({error})") from error


def _shape(values: list[int]) -> Shape:
    depth, height, width = values
    return depth, height, width
