"""Masks that somebody drew on a scan, in the place where its stored volume says the scan is."""

from pathlib import Path

import numpy as np

from ct3dlib.cohort.store import StoredVolume
from ct3dlib.errors import StoreError, VolumeError
from ct3dlib.scan.geometry import canonical
from ct3dlib.scan.normalize import Record
from ct3dlib.scan.volume import Volume


def record_of(volume: StoredVolume) -> Record | None:
    """Return how a stored array came from its scan; None where the store does not say."""
    record = volume.array.attributes["ct3d"].get("record")
    return None if record is None else Record.model_validate(record)


def scan_record(volume: StoredVolume) -> Record:
    """Return how a stored volume came from its scan.

    Raises:
        StoreError: The store does not say.
    """
    record = record_of(volume)
    if record is None:
        raise StoreError(f"{volume.array.place}: has no record of its scan; run its rule again")
    return record


def on_scan(path: Path, drawn: Volume, record: Record) -> Volume:
    """Return a mask that has the voxels of a scan where the scan is in the patient.

    That place is what the record says: the scan's own header may have been blank. Of the mask's
    header only the directions of its axes count.

    Args:
        path: What the message calls the mask.
        drawn: The mask, a value for each voxel of the scan.
        record: How the stored volume came from the scan.

    Returns:
        The mask on canonical axes, its grid that of the scan.

    Raises:
        VolumeError: `LABEL_MAP_ELSEWHERE`, its shape is not that of the scan.
    """
    mask = canonical(drawn)
    scan = np.broadcast_to(np.uint8(0), record.source_shape)
    grid = canonical(Volume(scan, np.array(record.source_affine)))
    if mask.shape != grid.shape:
        raise VolumeError(
            "LABEL_MAP_ELSEWHERE",
            f"{path}: shape {mask.shape} is not that of its scan, {grid.shape}; is it of it?",
        )
    return Volume(mask.array, grid.affine, drawn.domain)
