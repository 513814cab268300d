"""Region stores and label maps, written as the pipeline and other programs write them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ct3dlib.cohort.store import Kind, create_store, write_node, write_table
from ct3dlib.regions.label_map import REGIONS
from ct3dlib.regions.mask import Regions, sidecar
from ct3dlib.scan.nifti import write_nifti
from ct3dlib.scan.volume import Volume

# 5 x 4 x 2 mm, a little oblique; a voxel is 0.04 ml.
TURN = np.deg2rad(5)
AFFINE = np.array(
    [
        [0, -4 * np.sin(TURN), 2 * np.cos(TURN), -30],
        [0, 4 * np.cos(TURN), 2 * np.sin(TURN), 12],
        [5, 0, 0, 100],
        [0, 0, 0, 1],
    ]
)


def regions_of(mask: np.ndarray, **agreement: float) -> Regions:
    """Return a mask as one that a provider found; agreement by name."""
    present = [name for i, name in enumerate(REGIONS) if i and (mask == i).any()]
    return Regions(
        mask,
        {name: "ok" if name in present else "absent" for name in REGIONS[1:]},
        sources=dict.fromkeys(present, "classical"),
        agreement=agreement,
    )


def write_store(
    status: Path, kind: Kind, nodes: Mapping[str, tuple[np.ndarray, Mapping[str, Any]]]
) -> Path:
    """Write arrays with what `ct3d` says of each beside the grid; return the table."""
    status.parent.mkdir(parents=True, exist_ok=True)
    create_store(status.with_suffix(".zarr"), kind)
    rows = []
    for name, (array, said) in nodes.items():
        ct3d = {"affine": AFFINE.tolist(), "record": None, "domain": "hu", **said}
        sha256 = write_node(
            status.with_suffix(".zarr"), f"{name}@0", array, attributes={"ome": {}, "ct3d": ct3d}
        )
        row = {"volume": name, "status": "stored", "reason": "", "message": "", "sha256": sha256}
        rows.append({**row, "node": f"{name}@0", "shape": [*array.shape], "backend": "classical"})
    write_table(pd.DataFrame(rows), status)
    return status


def write_region_store(
    status: Path, masks: Mapping[str, np.ndarray], sources: Mapping[str, Sequence[str]]
) -> Path:
    """Write masks as a region store; return its status table."""
    nodes = {
        name: (
            mask,
            {
                "source": sources.get(name, []),
                "regions": sidecar(regions_of(mask), (5.0, 4.0, 2.0)),
            },
        )
        for name, mask in masks.items()
    }
    return write_store(status, "regions", nodes)


def write_label_map(path: Path, ids: np.ndarray) -> Path:
    """Write region ids as a label map that names its classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    classes = dict(enumerate(REGIONS[1:], start=1))
    write_nifti(path, Volume(ids.astype(np.uint8), AFFINE, "uint8"), classes=classes)
    return path
