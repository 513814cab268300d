"""Trained volume encoders, whatever they are a part of, for a training to start from."""

from pathlib import Path

from torch import nn

from ct3dlib.config import RecipeSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.inference.contract import check_intensities
from ct3dlib.models.exported import Exported, load_model
from ct3dlib.models.volume_encoder import VolumeEncoder


def load_start(folder: Path, recipe: RecipeSpec) -> Exported:
    """Load the model that a training starts from.

    Raises:
        CheckpointError: It cannot be read, or it saw other intensities than the recipe gives.
    """
    found = load_model(folder)
    if "recipe" not in found.contract:
        raise CheckpointError(
            f"{folder}: its contract holds no recipe; give a model of whole volumes"
        )
    its_own = RecipeSpec.model_validate(found.contract["recipe"])
    check_intensities(its_own, recipe, model=f"init_from {folder}", data="the recipe")
    return found


def encoder_of(module: nn.Module, where: str) -> VolumeEncoder:
    """Return the volume encoder that a model is or has.

    Raises:
        CheckpointError: It has none.
    """
    encoder = module if isinstance(module, VolumeEncoder) else getattr(module, "encoder", None)
    if not isinstance(encoder, VolumeEncoder):
        raise CheckpointError(
            f"{where}: a {type(module).__name__} without a volume encoder; give a masked "
            f"autoencoder, or a model fine-tuned from one"
        )
    return encoder


def load_encoder(folder: Path, recipe: RecipeSpec) -> VolumeEncoder:
    """Load the encoder of a trained model, for a training on volumes of a recipe.

    Raises:
        CheckpointError: As `load_start` and `encoder_of`.
    """
    return encoder_of(load_start(folder, recipe).module, str(folder))
