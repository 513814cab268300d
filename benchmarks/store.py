"""Disk, files and whole reads of a store, beside an .npz of float32 a volume as CT-CLIP keeps them.

A few chest phantoms of full size are ingested as a shard of a run; what a run of 1,000 volumes
takes is drawn from them, and how many files it makes is counted on 1,000 small ones. Reads give
float32 in [-1, 1], median of some rounds: warm from the page cache, cold from the disk.

    python benchmarks/store.py --json metrics/benchmarks.json
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
from ingest import SHAPE, TARGET, commit, machine, publish, write_phantom

from ct3dlib.cohort import durable
from ct3dlib.cohort.packing import pack_indices
from ct3dlib.cohort.shard import store_shard
from ct3dlib.cohort.statistics import measure
from ct3dlib.cohort.store import (
    Kind,
    StoredArray,
    StoredVolume,
    create_store,
    stored_volumes,
    write_node,
)
from ct3dlib.config import CatalogSpec, RecipeSpec
from ct3dlib.datasets import build_catalog
from ct3dlib.report.contact_sheet import draw_sheet
from ct3dlib.scan.intensity import apply_window
from ct3dlib.scan.nifti import read_nifti, write_nifti
from ct3dlib.scan.volume import Volume

RUN = 1000  # volumes
WINDOW, RANGE = (-1000.0, 1000.0), (-1.0, 1.0)
RECIPE = RecipeSpec(spacing=TARGET, shape=SHAPE)
CATALOG = CatalogSpec(dataset="folder", shards={"train": 1, "tune": 1, "valid": 1})
SMALL = (33, 64, 64)
TOKENS = (31, 64, 64)  # of a full volume, 18 bits each
GB = 1e9


def folder_size(folder: Path) -> int:
    """Return the bytes of all files below a folder while others write there."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += Path(place, name).stat().st_size
            except FileNotFoundError:
                continue
    return total


def peak_size(folder: Path, work: Callable[[], object]) -> int:
    """Return the largest size of a folder while some work goes on, looked at every 20 ms."""
    done, peak = Event(), [0]

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], folder_size(folder))

    thread = Thread(target=watch)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return max(peak[0], folder_size(folder))


def write_scans(root: Path, number: int, shape: tuple[int, int, int]) -> None:
    """Write one phantom as many scans: shifted along the columns, so that no two are equal."""
    write_phantom(root / "phantom.nii.gz", shape)
    volume = read_nifti(root / "phantom.nii.gz").volume
    (root / "phantom.nii.gz").unlink()
    for i in range(number):
        shifted = np.roll(volume.array, i, axis=2)
        write_nifti(root / f"scan_{i:03d}.nii", Volume(shifted, volume.affine))


def disk(root: Path, folder: Path) -> tuple[list[dict[str, Any]], Path]:
    """Ingest the scans; returns the records of disk and the status table."""
    rows = build_catalog(root, CATALOG)
    table = folder / "volumes/train/0000.parquet"
    table.parent.mkdir(parents=True)
    peak = peak_size(
        folder / "volumes",
        lambda: store_shard(rows, root, recipe=RECIPE, code="benchmark", status=table),
    )
    found = measure(rows, [table])["disk"]
    voxels = np.prod(SHAPE)
    per_volume = found["bytes_per_volume"]
    scratch = max(0, peak - folder_size(folder / "volumes"))
    return [
        record("store/bytes_per_voxel", found["bytes_per_voxel"], 4.0, "bytes"),
        record("store/volumes_of_1000", per_volume * RUN / GB, 4.0 * voxels * RUN / GB, "GB"),
        # The other way keeps a whole volume in memory and writes it in place: no scratch either.
        record("store/scratch_above_final", scratch / GB, 0.0, "GB"),
    ], table


def files(folder: Path) -> list[dict[str, Any]]:
    """Return the files and overhead of 1,000 small volumes, regions and token streams."""
    arrays: dict[Kind, np.ndarray] = {
        "volumes": np.random.default_rng(0).integers(-1000, 1000, SMALL, dtype=np.int16),
        "regions": np.zeros(SMALL, dtype=np.uint8),
        "tokens": pack_indices(np.random.default_rng(0).integers(0, 1 << 18, TOKENS), 18),
    }
    records = []
    for kind, array in arrays.items():
        store = folder / f"{kind}.zarr"
        create_store(store, kind)
        for i in range(RUN):
            write_node(store, f"v{i}@0", array, attributes={})
        number = sum(1 for path in store.rglob("*") if path.is_file())
        records.append(record(f"store/files_per_{kind}", number / RUN, 1.0, "files"))
        if kind == "tokens":
            size = folder_size(store) / RUN
            records.append(record("store/bytes_of_tokens", size, array.nbytes, "bytes"))
    return records


def reads(table: Path, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Return the times of whole reads."""
    volume = stored_volumes([table])[0]
    array = apply_window(volume.read(), WINDOW, onto=RANGE)
    np.savez(folder / "plain.npz", array)
    np.savez_compressed(folder / "small.npz", array)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "store": lambda: whole(volume),
        "npz": lambda: np.load(folder / "plain.npz")["arr_0"],
        "npz_compressed": lambda: np.load(folder / "small.npz")["arr_0"],
    }
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, read in ways.items():
            for kind in ("warm", "cold"):
                if kind == "cold":
                    forget(table.parent, folder / "plain.npz", folder / "small.npz")
                started, started_cpu = time.perf_counter(), time.process_time()
                values = read()
                times[name, f"{kind} s"].append(time.perf_counter() - started)
                times[name, f"{kind} CPU s"].append(time.process_time() - started_cpu)
                if not np.array_equal(values, array):
                    raise RuntimeError(f"{name}: reads another volume")
    records = []
    for unit in ("warm CPU s", "warm s", "cold s"):
        ours = statistics.median(times["store", unit])
        for peer in ("npz", "npz_compressed"):
            name = f"store/read_whole_against_{peer}"
            records.append(record(name, ours, statistics.median(times[peer, unit]), unit))
    small = (folder / "small.npz").stat().st_size / array.size
    ours = folder_size(table.with_suffix(".zarr")) / len(stored_volumes([table])) / array.size
    return [*records, record("store/bytes_per_voxel_compressed", ours, small, "bytes")]


def forget(*places: Path) -> None:
    """Drop files from the page cache, so that the next read goes to the disk."""
    for place in places:
        for path in place.rglob("*") if place.is_dir() else (place,):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def whole(volume: StoredVolume) -> np.ndarray:
    """Return a volume as a model sees it, opened anew as a loader's process does."""
    array = StoredArray(volume.array.store, volume.array.node)
    return apply_window(array.read(), WINDOW, onto=RANGE)


def durability(table: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Return how long a volume takes to be written, with and without waiting for the disk."""
    array = stored_volumes([table])[0].read()
    create_store(folder / "sync.zarr", "volumes")
    sync = durable.os.fsync
    times: dict[str, list[float]] = {"with": [], "without": []}
    try:
        for i in range(rounds):
            for name, function in (("with", sync), ("without", lambda handle: None)):
                durable.os.fsync = function
                started = time.perf_counter()
                write_node(folder / "sync.zarr", f"{name}{i}@0", array, attributes={})
                times[name].append(time.perf_counter() - started)
    finally:
        durable.os.fsync = sync
    ours, peer = (statistics.median(times[name]) for name in ("with", "without"))
    return record("store/write_synced_against_unsynced", ours, peer, "s")


def sheet(table: Path) -> dict[str, Any]:
    """Return how long the quality sheet of the shard takes beside reading its volumes whole."""
    started = time.perf_counter()
    draw_sheet(table, WINDOW)
    ours = time.perf_counter() - started
    started = time.perf_counter()
    for volume in stored_volumes([table]):
        volume.read()
    return record("store/sheet_against_whole_reads", ours, time.perf_counter() - started, "s")


def record(name: str, ours: float, peer: float, unit: str) -> dict[str, Any]:
    """Return one comparison; a ratio above 1 is in favour of the store."""
    return {
        "name": name,
        "ours": float(f"{ours:.4g}"),
        "peer": float(f"{peer:.4g}"),
        "unit": unit,
        "ratio": round(peer / ours, 2) if ours else None,
        "machine": machine(),
        "commit": commit(),
    }


def main() -> None:
    """Print the table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes", type=int, default=20, help="scans that are ingested")
    parser.add_argument("--shape", type=int, nargs=3, default=[200, 512, 512], help="scan D H W")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file that the records are joined to")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = folder / "raw"
        root.mkdir()
        write_scans(root, args.volumes, tuple(args.shape))
        records, table = disk(root, folder)
        records += reads(table, folder, args.rounds)
        records += [durability(table, folder, args.rounds), sheet(table)]
        records += files(folder)
    publish(records, args.json)


if __name__ == "__main__":
    main()
