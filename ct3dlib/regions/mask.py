"""Regions of a volume: ids on its grid, and what each of them is worth."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ct3dlib.config import Shape
from ct3dlib.regions.label_map import REGIONS
from ct3dlib.scan.resample import resample_to
from ct3dlib.scan.volume import Volume

Status = Literal["ok", "approximate", "absent"]


@dataclass(frozen=True)
class Skipped:
    """A provider that could say nothing of a volume.

    Args:
        provider: Its name.
        reason: Code, as of a rejected row.
        message: What was wrong.
    """

    provider: str
    reason: str
    message: str


@dataclass(frozen=True, eq=False)
class Regions:
    """Region ids on a volume's grid.

    Args:
        mask: D H W, ids 0-20.
        status: Of each region but "other": found well, placed by a prior, or not there.
        sources: Who looked for each region, found or not; a region nobody looked for has none.
        agreement: Dice of a region that was drawn anew with what prompted it, taken or not.
        skipped: Providers that could say nothing, and why.

    Raises:
        ValueError: The status does not name exactly the 20 regions, or an absent one has voxels.
    """

    mask: NDArray[np.uint8]
    status: Mapping[str, Status]
    sources: Mapping[str, str]
    agreement: Mapping[str, float] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()

    def __post_init__(self) -> None:
        """Check that mask and status agree."""
        if set(self.status) != set(REGIONS[1:]):
            odd = sorted(set(self.status) ^ set(REGIONS[1:]))
            raise ValueError(f"status must name each of the 20 regions once; wrong: {odd}")
        counts = areas(self.mask).sum(axis=0)
        for name, count in zip(REGIONS[1:], counts[1:].tolist(), strict=True):
            if (self.status[name] == "absent") != (count == 0):
                raise ValueError(f"{name} is {self.status[name]!r} and has {count} voxels")

    @property
    def backend(self) -> str:
        """All who had a part in it, as "labelmap+classical"."""
        parts = [part for source in self.sources.values() for part in source.split("+")]
        return "+".join(dict.fromkeys(part for part in parts if part != "derived"))


def areas(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the voxels of each id in each slice, D 21.

    Raises:
        ValueError: The mask holds another id.
    """
    if mask.max(initial=0) >= len(REGIONS):
        raise ValueError(f"region ids are 0 to {len(REGIONS) - 1}, found {mask.max()}")
    return np.stack([np.bincount(plane.ravel(), minlength=len(REGIONS)) for plane in mask])


def sidecar(regions: Regions, spacing: tuple[float, float, float]) -> list[dict[str, Any]]:
    """Return one row per region, ready for JSON.

    Args:
        regions: The regions of a volume.
        spacing: Of that volume, mm.

    Returns:
        Rows of `id`, `name`, `status`, `source` (who looked for it; null: nobody), `voxels`, `ml`,
        `agreement` (null where it was not drawn anew), and, null where absent, `key_slice` (the
        slice of the largest area, the lowest of equals) and `start`, `stop` (the slices it spans,
        half-open).
    """
    voxels = areas(regions.mask)
    rows = []
    for i, name in enumerate(REGIONS[1:], start=1):
        spans = np.flatnonzero(voxels[:, i]).tolist()
        total = int(voxels[:, i].sum())
        rows.append(
            {
                "id": i,
                "name": name,
                "status": regions.status[name],
                "source": regions.sources.get(name),
                "voxels": total,
                "ml": round(total * float(np.prod(spacing)) / 1000, 3),
                "agreement": regions.agreement.get(name),
                "key_slice": int(voxels[:, i].argmax()) if spans else None,
                "start": spans[0] if spans else None,
                "stop": spans[-1] + 1 if spans else None,
            }
        )
    return rows


def on_grid(
    mask: NDArray[np.uint8],
    found: NDArray[np.float64],
    *,
    affine: NDArray[np.float64],
    shape: Shape,
) -> NDArray[np.uint8]:
    """Return regions on another recipe's grid, 0 where they do not reach.

    Args:
        mask: Region ids, D H W.
        found: Affine of the mask, voxel (d, h, w, 1) to LPS mm.
        affine: Of the grid that is asked for.
        shape: Its voxels.
    """
    if mask.shape == shape and np.allclose(found, affine):
        return mask
    regions = Volume(mask, found, "uint8")
    moved = resample_to(regions, affine=affine, shape=shape, fill=0, nearest=True)
    return moved.array.astype(np.uint8)
