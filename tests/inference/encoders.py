"""Volume encoders small enough for a test, and scans for them."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from ct3dlib.config import (
    HeadSpec,
    MaskedAutoencoderNetworkSpec,
    PredictorNetworkSpec,
    RecipeSpec,
    VolumeEncoderNetworkSpec,
)
from ct3dlib.models import build_model
from ct3dlib.models.exported import save_model

# Three lengths; the model sees D W H.
RECIPE = RecipeSpec(
    shape=(8, 16, 12), window=(-1000, 600), range=(0, 1), hu_state="hu", min_slices=2, axes="dwh"
)
NETWORK = VolumeEncoderNetworkSpec.model_validate(
    {
        "encoder": {"hidden_size": 12, "num_layers": 3, "num_heads": 2},
        "patch_size": [4, 4, 4],
        "shape": [8, 12, 16],  # grid 2 3 4
    }
)


def save_predictor(
    folder: Path, contract: dict[str, Any], *, num_outputs: int, recipe: RecipeSpec = RECIPE
) -> Path:
    """Write a fine-tuned model whose outputs differ between volumes."""
    torch.manual_seed(0)
    head = HeadSpec(init_std=0.5)
    spec = PredictorNetworkSpec(encoder=NETWORK, head=head, num_outputs=num_outputs)
    contract = {"recipe": recipe.model_dump(mode="json"), **contract}
    save_model(folder, build_model(spec), spec=spec, contract=contract, training={})
    return folder


def save_mae(folder: Path) -> Path:
    """Write a masked autoencoder."""
    torch.manual_seed(1)
    spec = MaskedAutoencoderNetworkSpec.model_validate(
        {
            **NETWORK.model_dump(include={"encoder", "patch_size", "shape"}),
            "decoder": {"hidden_size": 6, "num_layers": 1, "num_heads": 1},
        }
    )
    contract = {"recipe": RECIPE.model_dump(mode="json")}
    save_model(folder, build_model(spec), spec=spec, contract=contract, training={})
    return folder


def hu_of(seed: int) -> np.ndarray:
    """Return a volume of the recipe's shape, D H W."""
    return np.random.default_rng(seed).integers(-1024, 1500, RECIPE.shape).astype(np.int16)


def seen_of(hu: np.ndarray) -> torch.Tensor:
    """Return a volume as the model sees it: -1000 to 600 HU onto 0 to 1, D W H."""
    seen = (np.clip(hu, -1000, 600).astype(np.float32) + 1000) / 1600
    return torch.from_numpy(seen.transpose(0, 2, 1).copy())[None, None]


def write_scan(path: Path, hu: np.ndarray) -> Path:
    """Write a volume D H W of the recipe's shape as a NIfTI file whose axes all run the other way.

    On the recipe's grid it is `hu` again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # File axes to the right, to the front, down; canonical: to the left, to the back, up.
    affine = np.diag([0.7, 0.8, -2.5, 1.0])
    nibabel.save(nibabel.Nifti1Image(hu[::-1, ::-1, ::-1].transpose(2, 1, 0), affine), path)
    return path
