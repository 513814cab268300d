"""Stored volumes with their regions through a vision-language encoder.

Letters: N volumes, R regions, E the shared width, D H W voxels.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from ct3dlib.cohort.store import StoredVolume
from ct3dlib.cohort.studies import Study
from ct3dlib.errors import StoreError
from ct3dlib.inference.contract import check_volumes
from ct3dlib.inference.scans import VOLUMES_PER_BATCH
from ct3dlib.inference.vlm import TrainedVlm
from ct3dlib.progress import progress
from ct3dlib.regions.drawn import scan_record
from ct3dlib.scan.axes import to_model
from ct3dlib.scan.normalize import Record, held_box
from ct3dlib.text.reasoning import Reasoning

UNKNOWN_REGION = 255


@dataclass(frozen=True, eq=False)
class Split:
    """Studies of a split, and what is known of them.

    Args:
        studies: With at least one stored volume each; of each volume its text is asked for, the
            first stands for the study.
        texts: By study; those of too few words take no part where texts do.
        labels: 0 or 1 for each of `LABELS`, by volume; those without one are not in it.
        regions: Masks on the grids of the volumes.
    """

    studies: Sequence[Study]
    texts: Mapping[str, Reasoning]
    labels: Mapping[str, Sequence[int]]
    regions: Sequence[StoredVolume]


@dataclass(frozen=True, eq=False)
class ScanTable:
    """Scans in the shared space.

    Args:
        global_: Vectors of whole scans, of length 1.
        region: Vectors of their regions.
        present: Which regions a scan shows.
    """

    global_: Float[np.ndarray, "N E"]
    region: Float[np.ndarray, "N R E"]
    present: Bool[np.ndarray, "N R"]


class _Read(NamedTuple):
    """A volume as the model takes it: 1 D H W each, and the window, 2."""

    values: Tensor
    window: Tensor
    regions: Tensor
    valid: Tensor


def embed_stored(
    model: TrainedVlm, volumes: Sequence[StoredVolume], *, regions: Sequence[StoredVolume]
) -> ScanTable:
    """Return the vectors of stored volumes, in order.

    Volumes without a mask are seen as those whose regions nobody knows.

    Args:
        model: On its device.
        volumes: Of its recipe.
        regions: Masks of any of them, and of others.

    Raises:
        CheckpointError: The volumes are of another recipe.
        StoreError: There is no volume, one is damaged, a mask lies on another grid, or the store
            does not say where a scan was padded.
    """
    if not volumes:
        raise StoreError("there is no stored volume to embed; see the status tables of the split")
    check_volumes(model.recipe, volumes, model=model.name)
    masks = {mask.volume: mask for mask in regions}
    found = []
    for batch in _batches(model, volumes, masks):
        values, window, region, valid = map(torch.stack, zip(*batch, strict=True))
        one = model.embed_volumes(values, window, regions=region, valid=valid)
        found.append((one.global_.numpy(), one.region.numpy(), one.present.numpy()))
    return ScanTable(*(np.concatenate(part) for part in zip(*found, strict=True)))


def held_voxels(record: Record) -> NDArray[np.bool_]:
    """Return where a volume on its recipe's grid holds its scan and is not padded, D H W."""
    held = np.zeros(record.shape, bool)
    start, shape = held_box(record)
    held[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))] = True
    return held


def _batches(
    model: TrainedVlm, volumes: Sequence[StoredVolume], masks: Mapping[str, StoredVolume]
) -> Iterator[list[_Read]]:
    """Yield volumes, a batch at a time; a thread reads the next batch while one is worked on."""

    def read(start: int) -> list[_Read]:
        several = volumes[start : start + VOLUMES_PER_BATCH]
        return [_read(model, volume, masks.get(volume.volume)) for volume in several]

    starts = range(0, len(volumes), VOLUMES_PER_BATCH)
    with ThreadPoolExecutor(1, thread_name_prefix="studies") as pool:
        waiting = pool.submit(read, 0)
        for start in progress(starts, name="embed scans", unit="batch"):
            batch = waiting.result()
            waiting = pool.submit(read, start + VOLUMES_PER_BATCH)
            yield batch


def _read(model: TrainedVlm, volume: StoredVolume, mask: StoredVolume | None) -> _Read:
    """Read a volume, held against its hash, and its regions."""
    recipe = model.recipe
    if mask is not None and mask.shape != volume.shape:
        raise StoreError(
            f"{volume.volume}: its regions have shape {mask.shape}, the volume {volume.shape}; "
            f"run the rule regions again"
        )
    regions = np.full(volume.shape, UNKNOWN_REGION, np.uint8) if mask is None else mask.read()
    valid = held_voxels(scan_record(volume)) if recipe.pads else np.ones(volume.shape, bool)
    values, region, held = (
        torch.from_numpy(np.ascontiguousarray(to_model(array, recipe.axes)))[None]
        for array in (volume.read_checked(), np.asarray(regions, np.uint8), valid)
    )
    return _Read(values, torch.tensor(volume.own_window or recipe.window), region, held)
