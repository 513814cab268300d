"""Pretraining of the masked autoencoder: fill in the masked patches.

Letters: B volumes, D H W voxels, N patches, M masked ones, P voxels of a patch.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ct3dlib.config import MaeSpec, MaskedAutoencoderNetworkSpec
from ct3dlib.losses.patches import masked_patch_loss
from ct3dlib.models.mae import MaskedAutoencoder, Masks
from ct3dlib.nn.intensity import windowed
from ct3dlib.training.augment import augment
from ct3dlib.training.draws import uniform
from ct3dlib.training.objective import Batch, Metrics, Objective

_MASKS = 201  # stream of an item's random draws


class MaskedAutoencoderObjective(Objective):
    """A masked autoencoder and its loss.

    A batch holds `values` B 1 D H W as stored, and `window` B 2.
    """

    def __init__(self, spec: MaeSpec, network: MaskedAutoencoderNetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.model = MaskedAutoencoder(network)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        """Return the mean squared error of the masked patches."""
        del turn
        volumes, masks = self._seen(batch)
        patches = self.model.masked_patches(volumes, masks)
        norm_pix = self.model.spec.norm_pix
        return masked_patch_loss(self.model(volumes, masks), patches, norm_pix=norm_pix).mean(), {}

    def validate(self, batch: Batch) -> Metrics:
        """Return the loss, and `baseline`: that of who knows no more than the visible mean."""
        volumes, masks = self._seen(batch)
        patches = self.model.masked_patches(volumes, masks)
        guess = self._guess(volumes, masks).expand_as(patches)
        baseline = masked_patch_loss(guess, patches, norm_pix=self.model.spec.norm_pix).mean()
        return {**super().validate(batch), "baseline": baseline}

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return the middle slices of one volume: as it is, what was seen, what was made of it."""
        volumes, masks = self._seen(batch)
        shown = (volumes, self.model.hidden(volumes, masks), self.model.filled(volumes, masks))
        low, high = self.model.spec.range
        slices = [volume[0, 0, volume.shape[2] // 2] for volume in shown]
        return {"masked": ((torch.cat(slices, dim=1) - low) / (high - low)).clamp(0, 1)[None]}

    def blocks(self) -> Sequence[nn.Module]:
        """Return the blocks of encoder and decoder."""
        return [*self.model.encoder.blocks, *self.model.decoder.blocks]

    def _seen(self, batch: Batch) -> tuple[Float[Tensor, "B 1 D H W"], Masks]:
        """Return volumes in the model's range, changed in training, and what is masked of them."""
        value_range = self.model.spec.range
        volumes = windowed(batch["values"], batch["window"], onto=value_range)
        if self.training:
            changed = augment(
                {**batch, "volume": volumes}, self.spec.augment, value_range=value_range
            )
            volumes = changed["volume"]
        num_patches = self.model.spec.network.num_patches
        return volumes, self.model.draw_masks(uniform(batch["item_seed"], (num_patches,), _MASKS))

    def _guess(self, volumes: Float[Tensor, "B 1 D H W"], masks: Masks) -> Float[Tensor, "B 1 1"]:
        """Return the mean of each volume's visible patches, or that of normalised ones."""
        if self.model.spec.norm_pix:
            return volumes.new_zeros(len(volumes), 1, 1)
        patches = self.model.encoder.patches(volumes)
        visible = patches.take_along_dim(masks.visible[..., None], dim=1)
        return visible.mean(dim=(1, 2), keepdim=True)
