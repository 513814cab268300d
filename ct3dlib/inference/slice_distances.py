"""Distances between sets of volumes by the features of their slices (2.5D FID and KID).

Letters: D H W voxels, N slices of all volumes, F features.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ct3dlib.config import Plane
from ct3dlib.metrics.distribution import frechet_distance, half_subset, kernel_distance
from ct3dlib.models.slice_network import SliceNetwork

PlaneFeatures = Mapping[Plane, Float[Tensor, "_ _"]]  # N F; N differs from plane to plane

_AXES: Mapping[Plane, int] = {"axial": 0, "coronal": 1, "sagittal": 2}
_SLICES_PER_BATCH = 8


def plane_features(network: SliceNetwork, volume: Float[Tensor, "D H W"]) -> PlaneFeatures:
    """Return the features of the slices of a volume, plane by plane.

    As many slices as the network's spec says are looked at, in the middle of equal parts of the
    axis; all where it has fewer. A volume of a single slice has the axial plane alone.

    Args:
        network: What sees the slices.
        volume: In [0, 1].
    """
    planes: dict[Plane, Tensor] = {}
    for plane in network.spec.planes:
        if plane == "axial" or len(volume) > 1:
            slices = _spread(volume.movedim(_AXES[plane], 0), network.spec.slices)
            batches = slices[:, None].split(_SLICES_PER_BATCH)  # N 1 H W
            planes[plane] = torch.cat([network.features(batch) for batch in batches])
    return planes


def join_planes(volumes: Sequence[PlaneFeatures]) -> PlaneFeatures:
    """Return the features of several volumes as those of one set, in the planes that all have."""
    common: list[Plane] = [
        plane for plane in volumes[0] if all(plane in planes for planes in volumes)
    ]
    return {plane: torch.cat([planes[plane] for planes in volumes]) for plane in common}


def slice_distances(real: PlaneFeatures, other: PlaneFeatures) -> dict[str, Any]:
    """Return Fréchet and kernel distance of each plane, and their means over the planes.

    Slices of one volume are alike, so that both are larger than for as many volumes with one slice
    each: values compare only at one number of volumes and of slices. The Fréchet distance is
    None where there are no more slices than features.

    Args:
        real: Of the volumes that the others are held against.
        other: Of the others, by the same network.
    """
    pairs = {plane: (real[plane], other[plane]) for plane in real if plane in other}
    return {
        "slice_fid": _with_mean({plane: _frechet(*pair) for plane, pair in pairs.items()}),
        "slice_kid": _with_mean({plane: _kernel(*pair) for plane, pair in pairs.items()}),
    }


def _spread(slices: Float[Tensor, "N H W"], count: int) -> Float[Tensor, "M H W"]:
    """Return the slices in the middle of equal parts."""
    count = min(count, len(slices))
    return slices[[(2 * i + 1) * len(slices) // (2 * count) for i in range(count)]]


def _frechet(real: Float[Tensor, "N F"], other: Float[Tensor, "M F"]) -> float | None:
    enough = min(len(real), len(other)) > max(real.shape[1], 1)
    return frechet_distance(real, other).item() if enough else None


def _kernel(real: Float[Tensor, "N F"], other: Float[Tensor, "M F"]) -> float | None:
    smaller = min(len(real), len(other))
    if smaller < 2:
        return None
    generator = torch.Generator().manual_seed(0)
    size = half_subset(smaller)
    return kernel_distance(real, other, generator=generator, subset_size=size).mean


def _with_mean(found: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return the values of the planes and their mean, None where one of them is."""
    known = [value for value in found.values() if value is not None]
    mean = statistics.fmean(known) if known and len(known) == len(found) else None
    return {**found, "mean": mean}
