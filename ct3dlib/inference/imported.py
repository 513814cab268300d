"""Models of other programs as models of this one: their weights, and a contract with the data."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ct3dlib.config import RecipeSpec, SlidingWindowSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.inference.loaded import contract_of
from ct3dlib.models.autoencoder import VolumeAutoencoder
from ct3dlib.models.exported import save_model
from ct3dlib.models.importing_btb3d import import_btb3d
from ct3dlib.models.importing_mae import Model, import_mae
from ct3dlib.scan.axes import swapped

logger = logging.getLogger(__name__)

Format = Literal["btb3d", "prod9", "tangerine"]
# A model, how many entries of its file were left out, and its contract.
Taken = tuple[VolumeAutoencoder | Model, dict[str, int], Mapping[str, Any]]

# In which prod9 encodes; half of a window overlaps, as is our default too.
_PROD9_WINDOW = 64
# TANGERINE's weights: their checksum in the public record, and what they were trained on.
_TANGERINE_MD5 = "d594de5ec0f59c55a1c20ec9f6ad3bef"
_TANGERINE_RECORD = "https://zenodo.org/records/18835750, CC-BY-NC-4.0"
_TANGERINE_WINDOW = (-1200.0, 800.0)
_TANGERINE_RANGE = (0.0, 1.0)


def import_checkpoint(path: Path, source: Format, recipe: RecipeSpec, *, folder: Path) -> None:
    """Write a checkpoint of another program as the files of a model.

    Args:
        path: The checkpoint, of a torch that pickles.
        source: The program that wrote it.
        recipe: Of the volumes that the model was trained on; a checkpoint does not say.
        folder: Where the model's files go.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not fit, or its model would see
            the recipe's volumes otherwise than those that it was trained on.
    """
    imported = {"format": source, "file": path.name}
    match source:
        case "btb3d":
            model, left_out, contract = _btb3d(path, recipe)
        case "prod9":
            model, left_out, contract = _prod9(path, recipe)
        case "tangerine":
            model, left_out, contract = _tangerine(path, recipe)
            if _is_published(path, recipe):
                imported["record"] = _TANGERINE_RECORD
    weights = len(model.state_dict())
    save_model(
        folder,
        model,
        spec=model.spec,
        contract=contract,
        training={
            "imported": {**imported, "sha256": _digest(path, "sha256")},
            "weights": weights,
            "left_out": left_out,
        },
    )
    others = ", ".join(f"{count} of {part}" for part, count in left_out.items()) or "none"
    logger.info("%s: %d weights imported from %s, left out: %s", folder, weights, path, others)


def _btb3d(path: Path, recipe: RecipeSpec) -> Taken:
    """Take in a tokenizer of BTB3D."""
    if recipe.axes != "dwh":
        raise CheckpointError(
            f"{path}: BTB3D sees volumes as D W H, the recipe says axes: {recipe.axes}; "
            f"give a recipe with axes: dwh"
        )
    model, left_out = import_btb3d(path)
    return model, left_out, contract_of(model.spec, recipe, None)


def _prod9(path: Path, recipe: RecipeSpec) -> Taken:
    """Take in an autoencoder of prod9."""
    # MONAI takes seconds to import.
    from ct3dlib.models.importing_prod9 import import_prod9

    model, left_out = import_prod9(path)
    side = max(_PROD9_WINDOW, model.downsampling[0])
    sliding = SlidingWindowSpec(roi_size=(side, side, side))
    return model, left_out, contract_of(model.spec, recipe, sliding)


def _tangerine(path: Path, recipe: RecipeSpec) -> Taken:
    """Take in a masked autoencoder, for volumes of the recipe's shape."""
    shape = recipe.shape or recipe.size
    if shape is None:
        raise CheckpointError(
            f"{path}: its model sees whole volumes of one shape, the recipe keeps theirs; give a "
            f"recipe with size or shape"
        )
    if recipe.range != _TANGERINE_RANGE:
        raise CheckpointError(
            f"{path}: its model sees volumes in {list(_TANGERINE_RANGE)}, the recipe's range is "
            f"{list(recipe.range)}; give a recipe with range: {list(_TANGERINE_RANGE)}"
        )
    model, left_out = import_mae(path, swapped(shape, recipe.axes))
    return model, left_out, {"recipe": recipe.model_dump(mode="json")}


def _is_published(path: Path, recipe: RecipeSpec) -> bool:
    """Tell whether a file is that of TANGERINE's authors, and the recipe shows it what they did."""
    if _digest(path, "md5") != _TANGERINE_MD5:
        logger.info("%s: not the published file of %s", path, _TANGERINE_RECORD)
        return False
    if (recipe.domain, recipe.window) != ("hu", _TANGERINE_WINDOW):
        raise CheckpointError(
            f"{path}: TANGERINE was trained on HU in {list(_TANGERINE_WINDOW)}, the recipe's "
            f"window is {list(recipe.window)} of {recipe.domain}; give a recipe with that window"
        )
    logger.info("%s: the published file of %s", path, _TANGERINE_RECORD)
    return True


def _digest(path: Path, algorithm: str) -> str:
    """Return the hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
