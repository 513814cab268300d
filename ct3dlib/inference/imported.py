"""Models of other programs as models of this one: their weights, and a contract with the data."""

import hashlib
import logging
from pathlib import Path
from typing import Literal

from ct3dlib.config import RecipeSpec, SlidingWindowSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.inference.loaded import contract_of
from ct3dlib.models.exported import save_model
from ct3dlib.models.importing_btb3d import import_btb3d

logger = logging.getLogger(__name__)

Format = Literal["btb3d", "prod9"]

# In which prod9 encodes; half of a window overlaps, as is our default too.
_PROD9_WINDOW = 64


def import_checkpoint(path: Path, source: Format, recipe: RecipeSpec, *, folder: Path) -> None:
    """Write a checkpoint of another program as the files of a model.

    Args:
        path: The checkpoint, of a torch that pickles.
        source: The program that wrote it.
        recipe: Of the volumes that the model was trained on; a checkpoint does not say.
        folder: Where the model's files go.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not fit, or a BTB3D model would see
            the recipe's volumes in another order of axes than it was trained on.
    """
    sliding = None
    match source:
        case "btb3d":
            if recipe.axes != "dwh":
                raise CheckpointError(
                    f"{path}: BTB3D sees volumes as D W H, the recipe says axes: {recipe.axes}; "
                    f"give a recipe with axes: dwh"
                )
            model, left_out = import_btb3d(path)
        case "prod9":
            # MONAI takes seconds to import.
            from ct3dlib.models.importing_prod9 import import_prod9

            model, left_out = import_prod9(path)
            side = max(_PROD9_WINDOW, model.downsampling[0])
            sliding = SlidingWindowSpec(roi_size=(side, side, side))
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    weights = len(model.state_dict())
    save_model(
        folder,
        model,
        spec=model.spec,
        contract=contract_of(model.spec, recipe, sliding),
        training={
            "imported": {"format": source, "file": path.name, "sha256": sha256},
            "weights": weights,
            "left_out": left_out,
        },
    )
    others = ", ".join(f"{count} of {part}" for part, count in left_out.items()) or "none"
    logger.info("%s: %d weights imported from %s, left out: %s", folder, weights, path, others)
