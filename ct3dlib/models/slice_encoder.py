"""A vision transformer over whole scans that knows slices and regions.

Letters: B volumes, Cw windows, D H W voxels, d h w grid of patches, N = d h w tokens: token
(z h + y) w + x is the patch at (z, y, x), so `local.unflatten(1, grid)` lies as the volume does.
C channels, P voxels of a patch times windows, R = 20 regions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor, nn

from ct3dlib.config import SliceEncoderSpec
from ct3dlib.config.base import Shape, Triple
from ct3dlib.errors import CheckpointError
from ct3dlib.models.volume_encoder import initialise_
from ct3dlib.nn.intensity import windowed
from ct3dlib.nn.linear import Linear
from ct3dlib.nn.occupancy import (
    NOT_KNOWN,
    NUM_REGIONS,
    occupancy,
    padded,
    present,
    valid_tokens,
)
from ct3dlib.nn.patches import grid_of, patchify
from ct3dlib.nn.region_pool import RegionPool
from ct3dlib.nn.slice_attention import SliceBlock, reaches_of


@dataclass(frozen=True, eq=False)
class ScanFeatures:
    """What an encoder found in volumes.

    Args:
        global_: Of whole volumes.
        local: Of patches, normalised; None where nobody asked.
        region: Of regions; what stands for an absent one where it is known to be absent.
        present: False where a region is known to have too few voxels.
        token_valid: False where a patch is padding alone.
    """

    global_: Float[Tensor, "B C"]
    local: Float[Tensor, "B N C"] | None
    region: Float[Tensor, "B R C"]
    present: Bool[Tensor, "B R"]
    token_valid: Bool[Tensor, "B N"]


class SliceEncoder(nn.Module):
    """Patches with learned positions, told their regions; blocks; vectors of volume and regions.

    Positions are a table along z plus one over a slice; volumes of another shape take them
    stretched onto their grid.

    Args:
        spec: Of the network.
        shape: Voxels of the volumes that it is made for; it takes others too.
        spacing: Of their voxels, mm; None: it varies, distances along z are counted in tokens.
    """

    def __init__(self, spec: SliceEncoderSpec, shape: Shape, spacing: Triple | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.shape = shape
        self.spacing = spacing
        encoder, patch = spec.encoder, spec.patch_size
        width = encoder.hidden_size
        depth, height, columns = grid_for(shape, patch)
        self.patch_embed = Linear(len(spec.windows) * patch[0] * patch[1] * patch[2], width)
        self.position_z = nn.Parameter(torch.empty(depth, width))
        self.position_plane = nn.Parameter(torch.empty(height, columns, width))
        self.region_embedding = (
            nn.Parameter(torch.empty(NUM_REGIONS, width)) if spec.region_input else None
        )
        unit = 1.0 if spacing is None else spacing[0] * patch[0]
        self.transformer = nn.ModuleList(
            SliceBlock(spec, reaches, unit) for reaches in reaches_of(spec)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pool = RegionPool(encoder)
        self._initialise_()

    def forward(
        self,
        volumes: Float[Tensor, "B Cw D H W"],
        regions: UInt8[Tensor, "B 1 D H W"] | None = None,
        *,
        valid: Bool[Tensor, "B 1 D H W"] | None = None,
        known: Bool[Tensor, " B"] | None = None,
        want_local: bool = False,
    ) -> ScanFeatures:
        """Return the features of volumes, which are padded to whole patches.

        The same parameters take part whether regions are given or not, so ranks whose batches
        differ in that still agree on gradients.

        Args:
            volumes: In [0, 1], a channel for each window.
            regions: Ids 1-20, 0 or 255 on their grid. Where they are None, or a volume has no
                other than 255, nobody knows them: every region is taken to be present, and its
                query looks anywhere.
            valid: False where a voxel is padding; None: all are scan.
            known: False where a volume is encoded as if nobody knew its regions; `present` is
                still what they say. None: nowhere.
            want_local: Whether patches' features are returned too.

        Raises:
            ValueError: Volumes have other channels than windows, `regions` or `valid` another
                grid, or there are unknown ids.
        """
        self._check(volumes, regions, valid)
        patch = self.spec.patch_size
        cut = patchify(padded(volumes, patch), patch)  # B N P
        token_valid = None if valid is None else valid_tokens(valid, patch)
        occupied, there, known = self._regions(cut, regions, known)
        grid = grid_for(tuple(volumes.shape[2:]), patch)
        tokens = self._embed(cut, occupied * known[:, None, None], grid)
        for block in self.transformer:
            tokens = block(tokens, grid, token_valid)
        tokens = self.norm(tokens)
        pooled = self.pool(tokens, occupied, present=there, known=known, valid=token_valid)
        return ScanFeatures(
            global_=pooled.global_,
            local=tokens if want_local else None,
            region=pooled.region,
            present=there,
            token_valid=cut.new_ones(cut.shape[:2]).bool() if token_valid is None else token_valid,
        )

    def blocks(self) -> Sequence[nn.Module]:
        """Return the transformer's blocks, called through their `forward`."""
        return list(self.transformer)

    def layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters layer by layer: the embedding, each block, what pools."""
        first = [*self.patch_embed.parameters(), self.position_z, self.position_plane]
        if self.region_embedding is not None:
            first.append(self.region_embedding)
        return [
            first,
            *(list(block.parameters()) for block in self.transformer),
            [*self.norm.parameters(), *self.pool.parameters()],
        ]

    def load_from_(self, other: "SliceEncoder") -> None:
        """Take the weights of one for another shape or spacing; positions are stretched onto ours.

        Raises:
            CheckpointError: It is of another size, or another network.
        """
        for key in ("encoder", "patch_size", "attention", "plane_blocks", "region_input"):
            ours, theirs = getattr(self.spec, key), getattr(other.spec, key)
            if ours != theirs:
                raise CheckpointError(
                    f"an encoder whose {key} is {theirs} cannot be taken into one of {ours}"
                )
        if len(self.spec.windows) != len(other.spec.windows):
            raise CheckpointError(
                f"an encoder of {len(other.spec.windows)} windows cannot be taken into one of "
                f"{len(self.spec.windows)}"
            )
        if (self.spacing is None) != (other.spacing is None):
            raise CheckpointError(
                f"an encoder whose spacing is {other.spacing} cannot be taken into one of "
                f"{self.spacing}: one counts distances along z in mm, the other in tokens; use a "
                f"recipe whose spacing is given as there"
            )
        weights = other.state_dict()
        depth, height, width = grid_for(self.shape, self.spec.patch_size)
        weights["position_z"] = _along_z(weights["position_z"], depth)
        weights["position_plane"] = _over_plane(weights["position_plane"], (height, width))
        self.load_state_dict(weights)

    def _regions(
        self, cut: Float[Tensor, "B N P"], regions: Tensor | None, known: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return shares of patches (B N R), which regions are there (B R), who is known (B)."""
        everyone = cut.new_ones(len(cut)).bool()
        if regions is None:
            nothing = cut.new_zeros(*cut.shape[:2], NUM_REGIONS)
            return nothing, everyone[:, None].expand(-1, NUM_REGIONS), ~everyone
        patch = self.spec.patch_size
        shares = occupancy(regions, patch)
        there = present(shares, patch, least_voxels=self.spec.least_voxels)
        # Not "255 all over": volumes that were turned hold 0 in their corners.
        unlooked = ~shares.flatten(1).any(1) & (regions == NOT_KNOWN).flatten(1).any(1)
        known = ~unlooked if known is None else known & ~unlooked
        return shares.to(cut.dtype), there | unlooked[:, None], known

    def _embed(
        self, cut: Float[Tensor, "B N P"], occupied: Float[Tensor, "B N R"], grid: Shape
    ) -> Float[Tensor, "B N C"]:
        """Return patches as the first block takes them."""
        along_z = _along_z(self.position_z, grid[0])
        over_plane = _over_plane(self.position_plane, (grid[1], grid[2])).flatten(0, 1)
        tokens = self.patch_embed(cut) + (along_z[:, None] + over_plane).flatten(0, 1)
        if self.region_embedding is None:
            return tokens
        return tokens + occupied @ self.region_embedding

    def _check(self, volumes: Tensor, regions: Tensor | None, valid: Tensor | None) -> None:
        """Refuse volumes of other channels, and what does not lie on their grid."""
        windows = len(self.spec.windows)
        if volumes.shape[1] != windows:
            raise ValueError(
                f"volumes of {volumes.shape[1]} channels, wanted {windows}: one for each of the "
                f"windows {list(self.spec.windows)}"
            )
        wanted = (len(volumes), 1, *volumes.shape[2:])
        for name, given in (("regions", regions), ("valid", valid)):
            if given is not None and tuple(given.shape) != wanted:
                raise ValueError(f"{name} of shape {tuple(given.shape)}, wanted {wanted}")

    def _initialise_(self) -> None:
        """Set all weights to where training starts."""
        initialise_(self)
        for table in (self.position_z, self.position_plane, self.region_embedding):
            if table is not None:
                nn.init.normal_(table, std=0.02)
        if self.spec.attention == "divided":
            for block in self.transformer:
                if isinstance(block, SliceBlock):
                    block.start_in_planes_()


def seen(
    values: Shaped[Tensor, "B 1 D H W"],
    window: Float[Tensor, "B 2"],
    bounds: Sequence[tuple[float, float]],
) -> Float[Tensor, "B Cw D H W"]:
    """Return stored values as an encoder sees them: a channel for each of its windows, in [0, 1].

    HU are cut to the encoder's windows, the same for every volume, so that a value means the same
    everywhere. 8-bit values were cut to some window before anyone stored them: nothing tells which,
    so their own range stands for each. Values of MR are not taken.

    Args:
        values: As stored: uint8 where they are 8-bit pictures', else HU.
        window: 8-bit values that map to 0 and 1, for each volume; HU need none.
        bounds: (low, high) HU of each channel.
    """
    if values.dtype == torch.uint8:
        return windowed(values, window, onto=(0.0, 1.0)).expand(-1, len(bounds), -1, -1, -1)
    windows = torch.tensor(bounds, device=values.device)
    channels = [windowed(values, one.expand(len(values), 2), onto=(0.0, 1.0)) for one in windows]
    return channels[0] if len(channels) == 1 else torch.cat(channels, dim=1)


def grid_for(shape: tuple[int, ...], patch: Shape) -> Shape:
    """Return the patches along (D, H, W) of a volume that is padded to whole ones."""
    whole = tuple(n + -n % p for n, p in zip(shape, patch, strict=True))
    return grid_of(whole, patch)


def _along_z(table: Float[Tensor, "_ C"], depth: int) -> Float[Tensor, "d C"]:
    """Return the positions of slices of patches, stretched to another number of them."""
    if len(table) == depth:
        return table
    return F.interpolate(table.T[None], depth, mode="linear", align_corners=False)[0].T


def _over_plane(table: Float[Tensor, "_ _ C"], to: tuple[int, int]) -> Float[Tensor, "h w C"]:
    """Return the positions within a slice, stretched onto another grid."""
    if tuple(table.shape[:2]) == to:
        return table
    moved = F.interpolate(table.movedim(2, 0)[None], to, mode="bilinear", align_corners=False)
    return moved[0].movedim(0, 2)
