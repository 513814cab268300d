"""Region masks of the store against true masks."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ct3dlib.cohort.private import RawRoot
from ct3dlib.cohort.store import StoredVolume, records, stored_volumes
from ct3dlib.errors import StoreError
from ct3dlib.metrics.overlap import dice, union_dice
from ct3dlib.progress import progress
from ct3dlib.regions.label_map import LUNGS, REGIONS
from ct3dlib.scan.geometry import canonical
from ct3dlib.scan.nifti import read_nifti
from ct3dlib.scan.normalize import Record
from ct3dlib.scan.resample import resample_to
from ct3dlib.scan.volume import Volume


def evaluate_regions(
    catalog: pd.DataFrame, tables: Sequence[Path], *, raw: RawRoot
) -> dict[str, Any]:
    """Return the Dice of each region, and of the lungs as a whole, averaged over volumes.

    A region that a volume's truth does not hold does not count for that volume.

    Args:
        catalog: Names the true mask of each volume, as a source.
        tables: Status tables of the region store.
        raw: Where the masks are.

    Raises:
        StoreError: No volume of the tables has a true mask.
    """
    truths = {row["volume"]: row["regions_truth"] for row in records(catalog)}
    found: dict[str, list[float]] = defaultdict(list)
    spacing: tuple[float, ...] = ()
    volumes = [v for v in stored_volumes(tables) if truths.get(v.volume)]
    if not volumes:
        raise StoreError("no volume of these region tables has a true mask in the catalog")
    for volume in progress(volumes, name="regions against truth", unit="volume"):
        mask = volume.read()
        truth = _on_grid(raw.path(truths[volume.volume]), volume)
        spacing = volume.spacing
        present = [i for i in range(1, len(REGIONS)) if (truth == i).any()]
        for region, value in dice(mask, truth, present).items():
            found[REGIONS[region]].append(value)
        found["lungs"].append(union_dice(mask, truth, LUNGS))
    return {
        "dice": {name: statistics.fmean(values) for name, values in found.items()},
        "spacing": list(spacing),
        "n": len(volumes),
    }


def _on_grid(path: Path, volume: StoredVolume) -> NDArray[np.uint8]:
    """Return a true mask on the grid of a stored volume.

    The mask lies on the scan's voxels; where they are in the patient is what the record says, as
    the scan's own header may have been blank.
    """
    record = Record.model_validate(volume.array.attributes["ct3d"]["record"])
    truth = canonical(read_nifti(path).volume)
    scan = np.broadcast_to(np.uint8(0), record.source_shape)
    grid = canonical(Volume(scan, np.array(record.source_affine)))
    if truth.shape != grid.shape:
        raise StoreError(f"{path}: shape {truth.shape} is not that of its scan, {grid.shape}")
    on_scan = Volume(truth.array, grid.affine)
    found = resample_to(on_scan, affine=volume.affine, shape=volume.shape, fill=0, nearest=True)
    return found.array.astype(np.uint8)
