"""Drawn lesions of one shard: from the masks that a catalog names to a store on the volumes' grid.

An id is a lesion, or whatever else its author numbered (BraTS: the parts of a tumour), and stays
what it is.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ct3dlib.cohort.catalog import without_root
from ct3dlib.cohort.private import RawRoot
from ct3dlib.cohort.stage import OpenShard, Row, fill_shard
from ct3dlib.cohort.status_rows import FIRST_COLUMNS, rejected_row, stored_row
from ct3dlib.cohort.store import StoredVolume, key_of, read_status, records, stored_volumes
from ct3dlib.cohort.stored_array import StoredArray
from ct3dlib.errors import DatasetError, VolumeError
from ct3dlib.regions.drawn import on_scan, scan_record
from ct3dlib.regions.key_lesions import (
    UNKNOWN_LESION,
    named_masks,
    read_key_lesions,
    real_slices,
)
from ct3dlib.regions.label_files import NIFTI, read_ids
from ct3dlib.regions.labelmap import check_field
from ct3dlib.regions.mask_node import write_mask_node
from ct3dlib.scan.reading import file_sha256
from ct3dlib.scan.resample import resample_to
from ct3dlib.scan.volume import Volume

logger = logging.getLogger(__name__)

COLUMNS = {**FIRST_COLUMNS, "lesions": "int64"}
# Facts of a scan whose header did not say where it is: its masks lie on its voxels all the same.
_PLACELESS = ("blank_header", "assumed_orientation")


def store_lesions(
    volumes: Path, catalog: pd.DataFrame, *, raw: RawRoot, code: str, status: Path
) -> pd.DataFrame:
    """Bring every drawn mask of a shard onto its volume's grid and write the status table.

    Volumes that were rejected before keep their reason, those without a drawn mask are rejected:
    nothing is known of them. A mask without a lesion is stored, as a known absence. Pictures of a
    key slice are masks of volumes of such slices, see `read_key_lesions`. Finished volumes whose
    key (volume, content of the masks' files, code) is unchanged are kept.

    Args:
        volumes: Status table of the volume shard.
        catalog: Names the `lesion_mask` of each volume.
        raw: The raw root, where the masks lie.
        code: Fingerprint of the code that does it.
        status: Where the status table goes; the store lies beside it.

    Returns:
        The status table, one row per row of `volumes`; `lesions` is the number of ids, 0 also
        where a volume is rejected.

    Raises:
        DatasetError: The raw root is away.
        StoreError: The volume store has no record of its scans, or is damaged.
    """
    if not raw.folder.is_dir():
        raise DatasetError(
            f"{raw.folder}: no such folder; mount it, or correct raw_root, and run again"
        )
    listed = {row["volume"]: row for row in records(catalog)}
    stored = {volume.volume: volume for volume in stored_volumes([volumes])}

    def make_row(row: Row, shard: OpenShard) -> Row:
        try:
            if row["status"] != "stored":
                raise VolumeError(row["reason"], row["message"])
            volume = stored[row["volume"]]
            paths = _masks_of(volume, listed.get(volume.volume, {}), raw)
            node = f"{volume.volume}@{key_of(volume.identity, *map(_content, paths), code)}"
            shard.ensure(node, lambda: _store_mask(volume, paths, store=shard.store, node=node))
            array = StoredArray(shard.store, node)
            count = array.attributes["ct3d"]["lesions"]
            return {**stored_row(volume.volume, array), "lesions": count}
        except VolumeError as error:
            known = row["status"] == "stored"
            source = listed.get(row["volume"], {}).get("lesion_mask") if known else None
            message = _message(error, source, raw)
            return {**rejected_row(row["volume"], error, message=message), "lesions": 0}

    rows = records(read_status(volumes))
    return fill_shard(rows, make_row, status=status, kind="lesions", columns=COLUMNS)


def read_lesions(path: Path, volume: StoredVolume) -> NDArray[np.uint8]:
    """Return a drawn mask on the grid of a stored volume, D H W, nearest.

    A lesion that falls between the voxels of a coarse grid keeps the one nearest its centre of
    mass, or, where that is all another lesion has, the next one to it. What the recipe's crop cut
    off is gone.

    Args:
        path: The mask, on the grid of the volume's scan.
        volume: Of a volume store.

    Raises:
        VolumeError: `LABEL_MAP_ELSEWHERE`, it is of another grid; what `read_ids` raises.
        StoreError: The store has no record of the scan.
    """
    record = scan_record(volume)
    source = np.array(record.source_affine)
    d, h, w = np.linalg.norm(source[:3, :3], axis=0).tolist()
    drawn = read_ids(path, spacing=(d, h, w))
    placed = on_scan(path, drawn, record)
    facts = volume.array.attributes["ct3d"].get("facts", {})
    if not any(facts.get(name) for name in _PLACELESS):
        check_field(path, drawn, affine=source, shape=record.source_shape)
    found = resample_to(placed, affine=volume.affine, shape=volume.shape, fill=0, nearest=True)
    mask = np.asarray(found.array, np.uint8)
    _keep_small_(mask, placed, affine=volume.affine)
    return mask


def _keep_small_(mask: NDArray[np.uint8], drawn: Volume, *, affine: NDArray[np.float64]) -> None:
    """Give each lesion that resampling lost, but no crop, a voxel; in place."""
    counts = _voxels(mask)
    to_voxel = np.linalg.inv(affine) @ drawn.affine
    for lesion in np.flatnonzero((_voxels(drawn.array) > 0) & (counts == 0)).tolist():
        middle = np.argwhere(drawn.array == lesion).mean(axis=0)
        place = (to_voxel @ np.append(middle, 1))[:3]
        for voxel in _around(place, mask.shape):
            # A voxel more of background or of a large lesion is spared, another's only one is not.
            if counts[mask[voxel]] != 1:
                counts[mask[voxel]] -= 1
                mask[voxel], counts[lesion] = lesion, 1
                break


def _around(place: NDArray[np.float64], shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the voxel that holds a place and its neighbours, nearest first; none outside."""
    home = np.rint(place).astype(int)
    if (home < 0).any() or (home >= shape).any():
        return []
    near = home + np.array([*np.ndindex(3, 3, 3)]) - 1
    near = near[((near >= 0) & (near < shape)).all(axis=1)]
    order = np.argsort(np.linalg.norm(near - place, axis=1), kind="stable")
    return [tuple(voxel) for voxel in near[order].tolist()]


def _voxels(mask: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return how many voxels each id has, 0 for the background: it is no lesion."""
    counts = np.zeros(256, np.int64)
    for plane in mask:
        counts += np.bincount(plane.ravel(), minlength=256)
    counts[0] = 0
    return counts


def _masks_of(volume: StoredVolume, row: Row, raw: RawRoot) -> list[Path]:
    """Return the file of a volume's mask, or those of its key slice's masks."""
    source = row.get("lesion_mask")
    if not source:
        raise VolumeError(
            "NO_LESION_MASK",
            f"{volume.volume}: the catalog names no lesion mask; draw one, of zeros where there "
            f"is no lesion, and build the catalog again, or leave the volume out",
        )
    path = raw.path(source)
    if not _is_picture(path):
        return [path]
    # A pseudonymised catalog knows the first of a key slice's masks and no other.
    if not real_slices(volume) or raw.hides(source):
        raise VolumeError(
            "NO_LESION_MASK",
            f"{path}: a picture of one finding on the key slice, which says nothing of the other "
            f"slices; draw all lesions of the volume into one NIfTI file",
        )
    return [raw.path(mask) for mask in named_masks(row)]


def _is_picture(path: Path) -> bool:
    """Return whether a mask is a picture of one slice."""
    return not path.name.lower().endswith(NIFTI)


def _content(path: Path) -> str:
    """Return the hash of a mask's file."""
    try:
        return file_sha256(path)
    except OSError as error:
        reason = "FILE_UNREADABLE" if path.exists() else "FILE_MISSING"
        raise VolumeError(
            reason, f"{path}: {error.strerror}; put it back, or build the catalog again"
        ) from error


def _store_mask(volume: StoredVolume, paths: Sequence[Path], *, store: Path, node: str) -> None:
    """Read the masks of one volume and write them as one."""
    by_slice = _is_picture(paths[0])
    mask = read_key_lesions(paths, volume) if by_slice else read_lesions(paths[0], volume)
    counts = _voxels(mask)
    if by_slice:
        counts[UNKNOWN_LESION] = 0
    ml = float(np.prod(volume.spacing)) / 1000
    facts = {"lesions": int(np.count_nonzero(counts)), "ml": round(int(counts.sum()) * ml, 3)}
    facts["key_slice_alone"] = by_slice
    write_mask_node(store, node, mask, volume=volume, kind="lesions", facts=facts)


def _message(error: VolumeError, source: str | None, raw: RawRoot) -> str:
    """Return a message for the table; of a pseudonymised mask it stays in the log."""
    if source and raw.hides(source):
        logger.warning("%s: %s", source, error)
        return f"{source}: {error.reason}; the log says more"
    return without_root(str(error), raw.folder)
