"""A vision transformer of whole volumes (Dosovitskiy et al., arXiv:2010.11929), in 3D.

Letters: B volumes, D H W voxels, N patches, V of them seen, P voxels of a patch, C channels.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from ct3dlib.config import VolumeEncoderNetworkSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.nn.linear import Linear
from ct3dlib.nn.patches import patchify
from ct3dlib.nn.position import resize_table, sincos_table
from ct3dlib.nn.vit import ViTBlock


class VolumeEncoder(nn.Module):
    """Patches of a volume, embedded, and blocks in which all look at all.

    Patches are embedded after they were chosen: what is not seen costs nothing. Positions are
    fixed sines and cosines, kept with the weights.
    """

    position: Tensor

    def __init__(self, spec: VolumeEncoderNetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        encoder, patch = spec.encoder, spec.patch_size
        width = encoder.hidden_size
        self.patch_embed = Linear(patch[0] * patch[1] * patch[2], width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("position", sincos_table(spec.grid, width))
        last = max(1, encoder.num_layers - 1)
        self.blocks = nn.ModuleList(
            ViTBlock(encoder, spec.drop_path * layer / last) for layer in range(encoder.num_layers)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        initialise_(self)
        nn.init.normal_(self.cls_token, std=0.02)

    def patches(self, volumes: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B N P"]:
        """Return the patches of volumes, padded to whole ones where the spec says so.

        Raises:
            ValueError: The volumes are of another shape than the spec's.
        """
        shape = tuple(volumes.shape[2:])
        if shape != self.spec.shape:
            raise ValueError(f"volumes of {shape} voxels, this model takes {self.spec.shape}")
        fill = [
            g * p - n for g, p, n in zip(self.spec.grid, self.spec.patch_size, shape, strict=True)
        ]
        if any(fill):
            d, h, w = fill
            volumes = F.pad(volumes, (0, w, 0, h, 0, d), value=self.spec.range[0])
        return patchify(volumes, self.spec.patch_size)

    def embed(
        self, volumes: Float[Tensor, "B 1 D H W"], visible: Int64[Tensor, "B V"] | None = None
    ) -> Float[Tensor, "B _ C"]:
        """Return the class token and the tokens of patches as the first block takes them.

        Args:
            volumes: In the spec's range.
            visible: Numbers of the patches that are seen; None: all in their order.
        """
        patches, places = self.patches(volumes), self.position[None, 1:]
        if visible is not None:
            patches = patches.take_along_dim(visible[..., None], dim=1)
            places = places.take_along_dim(visible[..., None], dim=1)
        tokens = self.patch_embed(patches) + places
        cls_token = (self.cls_token + self.position[:1]).expand(len(tokens), -1, -1)
        return torch.cat((cls_token.to(tokens.dtype), tokens), dim=1)

    def forward(
        self, volumes: Float[Tensor, "B 1 D H W"], visible: Int64[Tensor, "B V"] | None = None
    ) -> Float[Tensor, "B _ C"]:
        """Return the class token and a token for each patch that is seen, normalised."""
        tokens = self.embed(volumes, visible)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def stages(
        self, volumes: Float[Tensor, "B 1 D H W"], after: Sequence[int]
    ) -> list[Float[Tensor, "B C d h w"]]:
        """Return the patches' tokens after some blocks, on their grid; the last one normalised.

        Args:
            volumes: In the spec's range.
            after: Numbers of blocks, from 1, rising.
        """
        tokens, found = self.embed(volumes), []
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens)
            if number in after:
                seen = self.norm(tokens) if number == len(self.blocks) else tokens
                found.append(seen[:, 1:].transpose(1, 2).unflatten(2, self.spec.grid))
        return found

    def layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters layer by layer: the embedding, each block, the norm."""
        first = [*self.patch_embed.parameters(), self.cls_token]
        return [
            first,
            *(list(block.parameters()) for block in self.blocks),
            [*self.norm.parameters()],
        ]

    def load_from_(self, other: "VolumeEncoder") -> None:
        """Take the weights of one of another grid; positions are stretched onto this one.

        Raises:
            CheckpointError: It is of another size, or of other patches.
        """
        for key in ("encoder", "patch_size"):
            ours, theirs = getattr(self.spec, key), getattr(other.spec, key)
            if ours != theirs:
                raise CheckpointError(
                    f"an encoder whose {key} is {theirs} cannot be taken into one of {ours}"
                )
        weights = other.state_dict()
        weights["position"] = resize_table(weights["position"], other.spec.grid, to=self.spec.grid)
        self.load_state_dict(weights)


def initialise_(module: nn.Module) -> None:
    """Set all matrices of a module by Xavier's rule, biases to 0 (He et al., arXiv:2111.06377)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
