"""The data of a run in tables: what was stored, what crops cut off, what is there twice."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ct3dlib.report.page import Block, Section, Table, Text

_LOST = ("mean", "p95", "max")
_MOST = 20  # groups of duplicates that are listed


def cohort_section(statistics: Mapping[str, Mapping[str, Any]]) -> Section:
    """Return the section about the stores.

    Args:
        statistics: Recipe -> what `cohort.statistics.measure` returned.
    """
    blocks: list[Block] = []
    for recipe, found in statistics.items():
        disk = found["disk"]
        size = f"{disk['bytes'] / 1e6:.1f} MB on disk"
        if disk["volumes"]:
            size += f", {disk['bytes_per_voxel']:.2f} bytes a voxel"
        rows = [_row(split, part) for split, part in found["splits"].items()]
        caption = (
            f"Recipe {recipe}: series, body voxels that its crop cut off, intensities (HU for CT, "
            f"padding included); {size}."
        )
        blocks.append(Table(pd.DataFrame(rows), caption))
        blocks.append(_duplicates(recipe, found["duplicates"]))
    return Section("Data", tuple(blocks))


def _row(split: str, part: Mapping[str, Any]) -> dict[str, Any]:
    """Return a split's line."""
    lost, intensity = part["lost"], part["intensity"]
    shares = {f"lost {name}": f"{lost[name]:.1%}" for name in _LOST if name in lost}
    return {
        "split": split,
        "series": part["series"],
        "stored": part["stored"],
        "rejected": part["rejected"],
        "patients": part["patients"],
        **shares,
        "lost > 10 %": lost.get("over_10_percent"),
        "interpolated": part["facts"]["interpolated"],
        "tilted": part["facts"]["tilted"],
        "mean": _rounded(intensity.get("mean")),
        "std": _rounded(intensity.get("std")),
    }


def _duplicates(recipe: str, groups: list[Mapping[str, Any]]) -> Block:
    """Return the groups of equal volumes, those in several splits first."""
    if not groups:
        return Text(f"Recipe {recipe}: no volume is there twice.")
    frame = pd.DataFrame(
        {
            "the same": [group["same"] for group in groups[:_MOST]],
            "volumes": [", ".join(group["volumes"]) for group in groups[:_MOST]],
            "splits": [", ".join(group["splits"]) for group in groups[:_MOST]],
        }
    )
    across = sum(len(group["splits"]) > 1 for group in groups)
    caption = (
        f"Recipe {recipe}: {len(groups)} groups of volumes made of the same file or holding the "
        f"same voxels, {across} of them in several splits; at most {_MOST} are listed."
    )
    return Table(frame, caption)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
