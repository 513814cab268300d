"""A masked autoencoder of whole volumes (He et al., arXiv:2111.06377), in 3D.

The encoder sees the visible patches alone, the decoder predicts the masked ones alone. Attention
knows no order, so the decoder takes visible tokens first and masked ones behind: nothing is put
back into its place but by its position.

Letters: B volumes, D H W voxels, N patches, M masked, V visible ones, P voxels of a patch,
C channels of a token.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ct3dlib.config import MaskedAutoencoderNetworkSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.models.volume_encoder import VolumeEncoder, initialise_
from ct3dlib.nn.linear import Linear
from ct3dlib.nn.patches import unpatchify
from ct3dlib.nn.position import resize_table, sincos_table
from ct3dlib.nn.vit import ViTBlock


class Masks(NamedTuple):
    """Which patches of each volume are seen, and which are to be predicted.

    Args:
        visible: Their numbers, in random order.
        masked: Those of all others.
    """

    visible: Int64[Tensor, "B V"]
    masked: Int64[Tensor, "B M"]


class MaskedAutoencoder(nn.Module):
    """A volume encoder and the decoder that it is pretrained with."""

    def __init__(self, spec: MaskedAutoencoderNetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = VolumeEncoder(spec.network)
        self.decoder = _Decoder(spec)

    def load_from_(self, other: "MaskedAutoencoder") -> None:
        """Take the weights of one of another grid; positions are stretched onto this one.

        Raises:
            CheckpointError: Its encoder, decoder or patches are of another size.
        """
        if other.spec.decoder != self.spec.decoder:
            raise CheckpointError(
                f"a decoder of {other.spec.decoder} cannot be taken into one of {self.spec.decoder}"
            )
        self.encoder.load_from_(other.encoder)
        weights = other.decoder.state_dict()
        grids = other.spec.network.grid, self.spec.network.grid
        weights["position"] = resize_table(weights["position"], grids[0], to=grids[1])
        self.decoder.load_state_dict(weights)

    def draw_masks(self, noise: Float[Tensor, "B N"]) -> Masks:
        """Return patches to see and to predict.

        Args:
            noise: A number for each patch, on the device: those with the smallest are seen.
        """
        order = noise.argsort(dim=1)
        return Masks(order[:, : self.spec.num_visible], order[:, self.spec.num_visible :])

    def forward(self, volumes: Float[Tensor, "B 1 D H W"], masks: Masks) -> Float[Tensor, "B M P"]:
        """Return the masked patches of volumes, predicted from the visible ones.

        In the spec's range, or normalised by each patch where it says `norm_pix`.
        """
        return self.decoder(self.encoder(volumes, masks.visible), masks)

    def masked_patches(
        self, volumes: Float[Tensor, "B 1 D H W"], masks: Masks
    ) -> Float[Tensor, "B M P"]:
        """Return what is to be predicted."""
        return self.encoder.patches(volumes).take_along_dim(masks.masked[..., None], dim=1)

    def hidden(
        self, volumes: Float[Tensor, "B 1 D H W"], masks: Masks
    ) -> Float[Tensor, "B 1 D H W"]:
        """Return volumes as the encoder sees them: masked patches at the middle of the range."""
        patches = self.masked_patches(volumes, masks)
        return self.with_masked(volumes, masks, torch.full_like(patches, sum(self.spec.range) / 2))

    def filled(
        self, volumes: Float[Tensor, "B 1 D H W"], masks: Masks
    ) -> Float[Tensor, "B 1 D H W"]:
        """Return volumes whose masked patches are those predicted.

        With `norm_pix` a patch's mean and deviation are no part of the prediction: it gets its own
        again, to be looked at.
        """
        predicted = self(volumes, masks)
        if self.spec.norm_pix:
            patches = self.masked_patches(volumes, masks)
            mean, deviation = patches.mean(-1, keepdim=True), patches.std(-1, keepdim=True)
            predicted = mean + deviation * predicted
        return self.with_masked(volumes, masks, predicted)

    def with_masked(
        self, volumes: Float[Tensor, "B 1 D H W"], masks: Masks, patches: Float[Tensor, "B M P"]
    ) -> Float[Tensor, "B 1 D H W"]:
        """Return volumes whose masked patches are replaced."""
        whole = self.encoder.patches(volumes)
        places = masks.masked[..., None].expand(-1, -1, whole.shape[2])
        filled = whole.scatter(1, places, patches.to(whole.dtype))
        d, h, w = self.spec.shape
        network = self.spec.network
        return unpatchify(filled, network.patch_size, grid=network.grid)[..., :d, :h, :w]


class _Decoder(nn.Module):
    """Predicts masked patches from the tokens of visible ones."""

    position: Tensor

    def __init__(self, spec: MaskedAutoencoderNetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        width, patch = spec.decoder.hidden_size, spec.patch_size
        self.embed = Linear(spec.encoder.hidden_size, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("position", sincos_table(spec.network.grid, width))
        self.blocks = nn.ModuleList(ViTBlock(spec.decoder) for _ in range(spec.decoder.num_layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = Linear(width, patch[0] * patch[1] * patch[2])
        initialise_(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Float[Tensor, "B _ C"], masks: Masks) -> Float[Tensor, "B M P"]:
        """Return the masked patches."""
        table = self.position[None, 1:]
        known = self.embed(tokens)  # B 1+V C
        first = known[:, :1] + self.position[:1]
        seen = known[:, 1:] + table.take_along_dim(masks.visible[..., None], dim=1)
        hidden = self.mask_token + table.take_along_dim(masks.masked[..., None], dim=1)
        tokens = torch.cat((first, seen, hidden.to(seen.dtype)), dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        predicted = self.predict(self.norm(tokens[:, -masks.masked.shape[1] :]))
        if self.spec.norm_pix:
            return predicted
        low, high = self.spec.range
        return low + (high - low) * predicted.sigmoid()
