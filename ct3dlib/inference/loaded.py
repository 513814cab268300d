"""Trained models as the rest of inference takes them: typed, on a device, with their contract."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ct3dlib.config import AutoencoderSpec, RecipeSpec, Shape, SlidingWindowSpec, TokenizerSpec
from ct3dlib.config.quantizer import LFQSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.models.autoencoder import VolumeAutoencoder
from ct3dlib.models.exported import Exported, load_model
from ct3dlib.models.maskgit import MaskGIT
from ct3dlib.quantizers import Quantizer

_WINDOWING = {
    "causal": "windows of 2 + t slices, stride t, t the slices of a token",
    "maisi": "sliding_window; latents are blended, then quantized",
    "vae": "sliding_window; latents are blended",
}


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A trained autoencoder and the volumes it was trained on; a variational one has no tokens.

    Args:
        model: In eval mode.
        recipe: How its volumes were normalised, and the window and range it sees.
        sliding: Windows in which volumes go through it; None where it is causal and has windows
            of its own, or sees volumes whole.
        sha256: Hash of its weights.

    Raises:
        ValueError: A causal model with sliding windows.
    """

    model: VolumeAutoencoder
    recipe: RecipeSpec
    sliding: SlidingWindowSpec | None
    sha256: str

    def __post_init__(self) -> None:
        """Check that the windows are for this kind of model."""
        if self.sliding is not None and self.model.spec.name == "causal":
            raise ValueError("a causal model has windows of its own; leave sliding_window out")

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"the tokenizer {self.sha256[:12]}"

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer, where tokens are needed.

        Raises:
            CheckpointError: The model has latents and no tokens.
        """
        if self.model.quantizer is None:
            raise CheckpointError(
                f"{self.name}: a model of the name {self.model.spec.name} has latents and no "
                f"tokens; store its latents, or give a model with a quantizer"
            )
        return self.model.quantizer


@dataclass(frozen=True, eq=False)
class Transformer:
    """A trained token transformer and the grid it was trained on.

    Args:
        model: In eval mode.
        grid: Tokens along (D, H, W).
        volume_shape: Voxels that the grid decodes to.
        affine: 4 x 4, voxel (d, h, w, 1) to LPS mm, of one training volume.
        labels: Findings or classes it can be asked for.
        tokenizer_sha256: Hash of the tokenizer whose indices it learnt.
    """

    model: MaskGIT
    grid: Shape
    volume_shape: Shape
    affine: NDArray[np.float64]
    labels: tuple[str, ...]
    tokenizer_sha256: str


def load_tokenizer(folder: Path, device: torch.device) -> Tokenizer:
    """Load a trained autoencoder of any kind onto a device.

    Raises:
        CheckpointError: It is missing or damaged, not a tokenizer, or its contract has no recipe
            or windows that are none.
    """
    loaded = load_model(folder)
    if not isinstance(loaded.module, VolumeAutoencoder):
        raise CheckpointError(f"{folder}: a {type(loaded.module).__name__}, not a tokenizer")
    try:
        recipe = RecipeSpec.model_validate(loaded.contract["recipe"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{folder}: its contract holds no recipe ({error})") from error
    try:
        sliding = sliding_of(loaded)
        return Tokenizer(loaded.module.to(device), recipe, sliding, loaded.sha256)
    except ValueError as error:
        raise CheckpointError(f"{folder}: sliding_window of its contract: {error}") from error


def tokenizer_contract(spec: TokenizerSpec, recipe: RecipeSpec) -> dict[str, Any]:
    """Return what a trained tokenizer's file says of the volumes and tokens it is for.

    Without `sliding_window` of its own a model that is not causal gets windows of the crops it was
    trained on last; where these were whole volumes it sees them whole.

    Args:
        spec: Of the training, all stages.
        recipe: Of its volumes.
    """
    sliding, crop = spec.sliding_window, spec.in_stages()[-1].crop
    if sliding is None and crop is not None and spec.model.name != "causal":
        sliding = SlidingWindowSpec(roi_size=crop)
    return contract_of(spec.model, recipe, sliding)


def contract_of(
    model: AutoencoderSpec, recipe: RecipeSpec, sliding: SlidingWindowSpec | None
) -> dict[str, Any]:
    """Return the contract of a model that sees volumes of a recipe in these windows."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "windowing": _WINDOWING[model.name],
        "sliding_window": None if sliding is None else sliding.model_dump(mode="json"),
        "bit_order": bit_order(model),
        "axis_order": recipe.axes,
    }


def bit_order(spec: AutoencoderSpec) -> str | None:
    """Return the name of how a model's codes are read as numbers; None where it makes none."""
    match getattr(spec, "quantizer", None):
        case None:
            return None
        case LFQSpec():
            return "msb_first_channel0"
        case _:
            return "mixed_radix_channel0_least"


def sliding_of(model: Exported) -> SlidingWindowSpec | None:
    """Return the windows that a contract names; it names none where it is older than they are."""
    windows = model.contract.get("sliding_window")
    return None if windows is None else SlidingWindowSpec.model_validate(windows)


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
