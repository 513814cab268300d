"""Random changes of a batch on its device, drawn per item from `item_seed`.

A stored volume is a patient: his liver is on the right. So nothing here mirrors unless the spec
says that sides do not matter, and rotation is about the body's long axis alone.

Letters: B items, D H W voxels.
"""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from ct3dlib.config import AugmentSpec
from ct3dlib.training.draws import normal, uniform
from ct3dlib.training.objective import Batch

# One stream of draws per use: a change that is switched on moves no other.
_GEOMETRY, _INTENSITY, _NOISE, _FLIP, _NOISE_FIELD = range(101, 106)
# Labels that lie on the volume's voxels and go where it goes; nothing is there outside.
_LABELS = ("regions", "lesion_mask", "mask", "valid")


def augment(batch: Batch, spec: AugmentSpec, *, value_range: tuple[float, float]) -> Batch:
    """Return a batch with changed volumes and, where it has them, labels moved along.

    `volume` is interpolated trilinearly, labels take the nearest voxel; what comes from outside
    is the low end of the range, or 0. Values stay within the range. An item that no change falls
    to stays bit for bit what it was.

    Args:
        batch: `volume` (B 1 D H W, in `value_range`), `item_seed`, and any of `regions`,
            `lesion_mask`, `mask` and `valid` (B 1 D H W).
        spec: Which changes, how strong.
        value_range: What models see.
    """
    if not spec.active:
        return batch
    seeds = batch["item_seed"]
    volumes = batch["volume"]
    labels = {name: batch[name] for name in _LABELS if name in batch}
    if spec.rotation or spec.scale or spec.shift:
        chosen, maps = draw_maps(seeds, spec)
        volumes = _where(chosen, warp(volumes, maps, fill=value_range[0]), volumes)
        labels = {
            name: _where(chosen, warp_labels(values, maps), values)
            for name, values in labels.items()
        }
    if any(spec.flip):
        flipped = uniform(seeds, (3,), _FLIP) < torch.tensor(spec.flip, device=seeds.device)
        volumes = flip(volumes, flipped)
        labels = {name: flip(values, flipped) for name, values in labels.items()}
    volumes = _change_intensities(volumes, seeds, spec, value_range=value_range)
    return {**batch, **labels, "volume": volumes}


def draw_maps(
    item_seed: Int[Tensor, " B"], spec: AugmentSpec
) -> tuple[Bool[Tensor, " B"], Float[Tensor, "B 3 4"]]:
    """Return which items are resampled, and for each item the map of `affine_maps`."""
    numbers = uniform(item_seed, (6,), _GEOMETRY)
    chosen = numbers[:, 0] < spec.geometry_probability
    either = 2 * numbers[:, 1:] - 1  # B 5, in [-1, 1)
    return chosen, affine_maps(
        degrees=spec.rotation * either[:, 0],
        scale=1 + spec.scale * either[:, 1],
        shift=spec.shift * either[:, 2:],
    )


def affine_maps(
    *, degrees: Float[Tensor, " B"], scale: Float[Tensor, " B"], shift: Float[Tensor, "B 3"]
) -> Float[Tensor, "B 3 4"]:
    """Return where each voxel of a result is looked up, in voxels (D, H, W) from the centre.

    The content is scaled and turned about the centre, then shifted: a voxel p comes from
    R^-1 (p - shift) / scale. Pixels of a slice are taken to be square.

    Args:
        degrees: Turn in the axial plane, anticlockwise as a slice is drawn: the right edge moves
            up.
        scale: Growth of the content.
        shift: Voxels that the content moves along (D, H, W).
    """
    angle = torch.deg2rad(degrees)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    zero = torch.zeros_like(cos)
    rows = [(1 / scale, zero, zero), (zero, cos, sin), (zero, -sin, cos)]
    inverse = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)  # B 3 3
    return torch.cat([inverse, -inverse @ shift[..., None]], dim=-1)


def warp(
    volumes: Float[Tensor, "B C D H W"],
    maps: Float[Tensor, "B 3 4"],
    *,
    fill: float,
    nearest: bool = False,
) -> Float[Tensor, "B C D H W"]:
    """Return volumes looked up through `affine_maps`.

    Args:
        volumes: Values.
        maps: Of `affine_maps`.
        fill: Value outside the outer voxel centres, reached within one voxel.
        nearest: Take the nearest voxel instead of interpolating.
    """
    # torch counts a grid as x, y, z in half extents: (i - centre) = x * size / 2.
    half = volumes.new_tensor(volumes.shape[2:], dtype=torch.float32) / 2
    linear = maps[:, :, :3] * half[None, None, :] / half[None, :, None]
    moved = maps[:, :, 3:] / half[None, :, None]
    theta = torch.cat([linear.flip(1, 2), moved.flip(1)], dim=2)
    grid = F.affine_grid(theta, list(volumes.shape), align_corners=False)
    mode = "nearest" if nearest else "bilinear"
    looked_up = F.grid_sample(
        volumes.float() - fill, grid, mode=mode, padding_mode="zeros", align_corners=False
    )
    return looked_up + fill


def warp_labels(
    labels: Shaped[Tensor, "B 1 D H W"], maps: Float[Tensor, "B 3 4"]
) -> Shaped[Tensor, "B 1 D H W"]:
    """Return integer or boolean labels looked up through `affine_maps`; 0 outside."""
    return warp(labels.float(), maps, fill=0.0, nearest=True).to(labels.dtype)


def flip(
    volumes: Shaped[Tensor, "B C D H W"], flipped: Bool[Tensor, "B 3"]
) -> Shaped[Tensor, "B C D H W"]:
    """Return volumes mirrored along those of (D, H, W) where `flipped`."""
    for axis in range(3):
        volumes = _where(flipped[:, axis], volumes.flip(axis + 2), volumes)
    return volumes


def _change_intensities(
    volumes: Float[Tensor, "B 1 D H W"],
    item_seed: Int[Tensor, " B"],
    spec: AugmentSpec,
    *,
    value_range: tuple[float, float],
) -> Float[Tensor, "B 1 D H W"]:
    """Return volumes with another contrast, brightness and noise, clipped to the range."""
    low, high = value_range
    changed = volumes
    if spec.intensity_shift or spec.intensity_scale:
        numbers = uniform(item_seed, (3, 1, 1, 1, 1), _INTENSITY)
        chosen = numbers[:, 0].flatten() < spec.intensity_probability
        shift, scale = (2 * numbers[:, i] - 1 for i in (1, 2))  # B 1 1 1 1
        middle = (low + high) / 2
        moved = (volumes - middle) * (1 + spec.intensity_scale * scale) + middle
        moved = moved + spec.intensity_shift * (high - low) * shift
        changed = _where(chosen, moved.clamp(low, high), changed)
    if spec.noise:
        chosen = uniform(item_seed, (1,), _NOISE)[:, 0] < spec.noise_probability
        noise = normal(item_seed, tuple(volumes.shape[1:]), _NOISE_FIELD)
        noisy = changed + spec.noise * (high - low) * noise
        changed = _where(chosen, noisy.clamp(low, high), changed)
    return changed


def _where(
    chosen: Bool[Tensor, " B"],
    changed: Shaped[Tensor, "B C D H W"],
    kept: Shaped[Tensor, "B C D H W"],
) -> Shaped[Tensor, "B C D H W"]:
    """Return the changed volumes of the items that were chosen, the others as they were."""
    return torch.where(chosen.view(-1, 1, 1, 1, 1), changed, kept)
