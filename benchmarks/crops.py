"""Random training crops from a store: beside reading the .nii.gz, and beside the fastest there is.

Every way gives the same crops of one scan, windowed to float32 tensors, at the same places. The
.nii.gz is read whole for each crop, as a loader over raw files has to. The uncompressed .npy that
is mapped into memory and warm is the limit: it decodes nothing, and takes more of the disk.
The second part counts the crops per second that come out of the training loader.

    python benchmarks/crops.py --json metrics/benchmarks.json
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from ingest import commit, machine, publish, write_phantom
from torch import Tensor

from ct3dlib.cohort.store import StoredArray, StoredVolume, create_store, write_node
from ct3dlib.config import TrainSpec
from ct3dlib.scan.intensity import apply_window, to_hu
from ct3dlib.scan.nifti import read_nifti
from ct3dlib.training.items import CropItems
from ct3dlib.training.loader import Items, batches
from ct3dlib.training.patches import draw_start, read_box

CROP = (64, 128, 128)
WINDOW, RANGE = (-1000.0, 1000.0), (-1.0, 1.0)
BATCH = 4


@dataclass(frozen=True, eq=False)
class MappedItems(Items):
    """Crops of an uncompressed .npy that is mapped into memory."""

    path: Path
    copies: int

    def __len__(self) -> int:
        """Return the number of items."""
        return self.copies

    @cached_property
    def array(self) -> np.ndarray:
        """Map the file, once in each process."""
        return np.load(self.path, mmap_mode="r")

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapping behind: a pickle would hold the array."""
        return {"path": self.path, "copies": self.copies}

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return a crop at a place drawn from `rng`."""
        start = draw_start(self.array.shape, CROP, rng)
        return {"volume": torch.from_numpy(mapped(self.array, start))[None]}


def mapped(array: np.ndarray, start: tuple[int, int, int]) -> np.ndarray:
    """Return a crop of a mapped array as models see it."""
    return apply_window(array[box(start)], WINDOW, onto=RANGE)


def from_nifti(path: Path, start: tuple[int, int, int]) -> np.ndarray:
    """Return a crop of a .nii.gz; its axes i, j, k become k, j, i."""
    values = np.asanyarray(nibabel.load(path).dataobj).transpose(2, 1, 0)
    return apply_window(values[box(start)], WINDOW, onto=RANGE)


def box(start: tuple[int, int, int]) -> tuple[slice, ...]:
    """Return the slices of a crop."""
    return tuple(slice(a, a + n) for a, n in zip(start, CROP, strict=True))


def make_inputs(scan: Path, folder: Path) -> tuple[StoredVolume, Path]:
    """Put a scan into a store and into an .npy, on its own axes."""
    array = to_hu(read_nifti(scan), slope=None, intercept=None, state="auto").volume.array
    array = np.ascontiguousarray(array, dtype=np.int16)
    store = folder / "0000.zarr"
    create_store(store, "volumes")
    sha256 = write_node(store, "scan@0", array, attributes={})
    np.save(folder / "scan.npy", array)
    depth, height, width = array.shape
    stored = StoredArray(store, "scan@0")
    return StoredVolume("scan", stored, (depth, height, width), sha256), folder / "scan.npy"


def latencies(scan: Path, volume: StoredVolume, npy: Path, crops: int) -> dict[str, list[float]]:
    """Return CPU ms per crop of each way, in turns at the same places; few of the slow one.

    Raises:
        RuntimeError: The ways give different crops.
    """
    array = np.load(npy, mmap_mode="r")
    ways: dict[str, Callable[[tuple[int, int, int]], np.ndarray]] = {
        "store": lambda start: read_box(volume, start, CROP, window=WINDOW, value_range=RANGE),
        "npy": lambda start: mapped(array, start),
        "nii.gz": lambda start: from_nifti(scan, start),
    }
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(crops):
        start = draw_start(volume.shape, CROP, rng)
        made = {}
        for name, way in ways.items():
            if name == "nii.gz" and turn % 10:
                continue
            began = time.process_time()
            made[name] = way(start)
            found[name].append((time.process_time() - began) * 1e3)
        if any(not np.array_equal(crop, made["npy"]) for crop in made.values()):
            raise RuntimeError(f"the ways give different crops at {start}")
    return found


def throughput(items: Items, workers: int, steps: int) -> float:
    """Return crops per second out of the training loader, its start left out."""
    spec = TrainSpec(
        steps=steps + 4,
        batch_size=BATCH,
        micro_batch_size=BATCH,
        num_workers=workers,
        device="cpu",
    )
    loaded = batches(items, spec, first_step=0)
    for _ in range(4):
        next(loaded)
    began = time.perf_counter()
    count = sum(len(batch["volume"]) for step in loaded for batch in step)
    return count / (time.perf_counter() - began)


def compare(scan: Path, folder: Path, crops: int) -> list[dict[str, Any]]:
    """Return the records of all comparisons; a ratio above 1 is in favour of the store."""
    volume, npy = make_inputs(scan, folder)
    ms = {
        name: statistics.median(times)
        for name, times in latencies(scan, volume, npy, crops).items()
    }
    records = [
        _record(f"crops/against_{peer}", ms["store"], ms[peer], "CPU ms", ms[peer] / ms["store"])
        for peer in ("nii.gz", "npy")
    ]
    files = [path for path in volume.array.store.rglob("*") if path.is_file()]
    disk = [sum(path.stat().st_size for path in paths) / 1e6 for paths in (files, [npy])]
    records.append(_record("crops/disk", disk[0], disk[1], "MB", disk[1] / disk[0]))
    ours = CropItems([volume] * 64, crop=CROP, window=WINDOW, range=RANGE)
    for workers in (0, 1, 2):
        a = throughput(ours, workers, crops // BATCH)
        b = throughput(MappedItems(npy, 64), workers, crops // BATCH)
        records.append(_record(f"crops/loader_{workers}_workers", a, b, "crops/s", a / b))
    return records


def _record(name: str, ours: float, peer: float, unit: str, ratio: float) -> dict[str, Any]:
    """Return one comparison."""
    return {
        "name": name,
        "ours": round(ours, 2),
        "peer": round(peer, 2),
        "unit": unit,
        "ratio": round(ratio, 2),
        "machine": machine(),
        "commit": commit(),
    }


def main() -> None:
    """Print the table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scan", type=Path, help="a .nii.gz in HU; default: a phantom")
    parser.add_argument("--shape", type=int, nargs=3, default=[300, 512, 512], help="phantom D H W")
    parser.add_argument("--crops", type=int, default=100, help="crops of each comparison")
    parser.add_argument("--json", type=Path, help="file that the records are joined to")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan = args.scan or folder / "scan.nii.gz"
        if not args.scan:
            write_phantom(scan, tuple(args.shape))
        records = compare(scan, folder, args.crops)
    publish(records, args.json)


if __name__ == "__main__":
    main()
