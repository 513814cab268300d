"""Embeddings of whole volumes: the class token, the mean of the patches, regional means.

Letters: B volumes, D H W voxels, d h w cells of the regional grid, C channels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from ct3dlib.config import RecipeSpec, Shape
from ct3dlib.errors import CheckpointError
from ct3dlib.inference.pretrained_encoder import encoder_of
from ct3dlib.models.exported import load_model
from ct3dlib.models.volume_encoder import VolumeEncoder
from ct3dlib.nn.intensity import windowed
from ct3dlib.scan.axes import from_model, swapped


class Embedding(NamedTuple):
    """What is kept of a volume.

    Args:
        cls: The class token, C.
        pooled: Mean of the patches' tokens, C.
        regional: Mean of the tokens of each cell, d h w C along (D, H, W) of the volume; None
            where it was not asked for.
    """

    cls: NDArray[np.float32]
    pooled: NDArray[np.float32]
    regional: NDArray[np.float32] | None


@dataclass(frozen=True, eq=False)
class Encoder:
    """The volume encoder of a trained model.

    Args:
        model: In eval mode.
        recipe: How its volumes were normalised, and the range it sees.
        sha256: Hash of the weights of the model that it is a part of.
    """

    model: VolumeEncoder
    recipe: RecipeSpec
    sha256: str

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"the model {self.sha256[:12]}"

    @property
    def shape(self) -> Shape:
        """Voxels of a volume, in the model's order of axes."""
        return self.model.spec.shape

    @property
    def width(self) -> int:
        """Channels of an embedding."""
        return self.model.spec.encoder.hidden_size

    def see(
        self, values: Shaped[Tensor, "B 1 D H W"], window: Float[Tensor, "B 2"]
    ) -> Float[Tensor, "B 1 D H W"]:
        """Return stored values as the model sees them, on its device."""
        device = self.model.cls_token.device
        return windowed(values.to(device), window.to(device), onto=self.recipe.range)

    @torch.inference_mode()
    def embed(
        self,
        values: Shaped[Tensor, "B 1 D H W"],
        window: Float[Tensor, "B 2"],
        *,
        regional: Shape | None,
    ) -> list[Embedding]:
        """Return the embeddings of volumes; all patches are seen.

        Of n tokens along an axis, cell i of m averages those from floor(i n / m) to
        ceil((i + 1) n / m): where n is no multiple of m, neighbours share a token.

        Args:
            values: As stored, in the model's order of axes.
            window: Values that map to the ends of the recipe's range.
            regional: Cells along (D, H, W) of the volume; None: none.
        """
        tokens = self.model(self.see(values, window)).float()
        patches = tokens[:, 1:]
        cls, pooled = tokens[:, 0].cpu().numpy(), patches.mean(1).cpu().numpy()
        if regional is None:
            return [Embedding(a, b, None) for a, b in zip(cls, pooled, strict=True)]
        axes = self.recipe.axes
        grid = patches.transpose(1, 2).unflatten(2, self.model.spec.grid)  # B C d h w
        cells = F.adaptive_avg_pool3d(grid, swapped(regional, axes)).cpu().numpy()
        cells = np.ascontiguousarray(np.moveaxis(from_model(cells, axes), 1, -1))
        return [Embedding(*one) for one in zip(cls, pooled, cells, strict=True)]


def load_volume_encoder(folder: Path, device: torch.device) -> Encoder:
    """Load the volume encoder of a trained model onto a device.

    Raises:
        CheckpointError: It is missing or damaged, without a volume encoder, or its contract holds
            no recipe.
    """
    loaded = load_model(folder)
    encoder = encoder_of(loaded.module, str(folder))
    try:
        recipe = RecipeSpec.model_validate(loaded.contract["recipe"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{folder}: its contract holds no recipe ({error})") from error
    return Encoder(encoder.to(device), recipe, loaded.sha256)
