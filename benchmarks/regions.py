"""Regions of one scan without weights: ours beside the plain way to find lungs alone.

The peer thresholds the scan at its own resolution, drops the air around the patient, keeps the two
largest components and fills their slices. Ours finds all regions on its working grid and brings
them back. Both run on the same scan, in fresh processes with one thread; the run holds their lungs
to each other. Printed are CPU seconds and the peak of memory above what the scan and the imports
take. The scan is a phantom with a scanner's noise unless `--scan` names one.

    python benchmarks/regions.py --json metrics/benchmarks.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch
from ingest import publish, status_mib, write_phantom
from scipy import ndimage
from store import record

from ct3dlib.cohort.private import RawRoot
from ct3dlib.config import RegionsSpec
from ct3dlib.regions import build_segmenter
from ct3dlib.regions.label_map import LUNGS
from ct3dlib.scan.geometry import canonical
from ct3dlib.scan.intensity import to_hu
from ct3dlib.scan.nifti import read_nifti
from ct3dlib.scan.volume import Volume

LUNG_HU = -400
PROBE = (slice(None, None, 4),) * 3  # of the lungs, to see that both found the same
AGREEMENT = 0.9  # least Dice of both ways' lungs
CLAIMS = (("regions/segment", "CPU s", "cpu_s"), ("regions/segment_peak", "MiB", "peak_mib"))


def ours(volume: Volume) -> np.ndarray:
    """Find all regions; returns the lungs."""
    regions = build_segmenter(RegionsSpec(recipe="native"), RawRoot(Path("none")))(volume)
    return np.isin(regions.mask, LUNGS)


def peer(volume: Volume) -> np.ndarray:
    """Find the lungs alone."""
    numbers, _ = ndimage.label(volume.array < LUNG_HU)
    outside = np.unique(numbers[:, [0, -1]])
    sizes = np.bincount(numbers.ravel())
    sizes[[0, *outside]] = 0
    lungs = np.isin(numbers, np.argsort(sizes)[-2:])
    return np.stack([ndimage.binary_fill_holes(plane) for plane in lungs])


WAYS: dict[str, Callable[[Volume], np.ndarray]] = {way.__name__: way for way in (ours, peer)}


def measure(way: str, scan: Path) -> dict[str, Any]:
    """Run one way in this process."""
    torch.set_num_threads(1)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    volume = canonical(to_hu(read_nifti(scan), slope=None, intercept=None, state="auto").volume)
    base, started = status_mib("VmRSS"), time.process_time()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    lungs = WAYS[way](volume)
    cpu_s = time.process_time() - started
    return {
        "cpu_s": cpu_s,
        "peak_mib": status_mib("VmHWM") - base,
        "lungs": np.flatnonzero(lungs[PROBE]).tolist(),
    }


def in_fresh_process(way: str, scan: Path) -> dict[str, Any]:
    """Run one way in a process of its own."""
    command = [sys.executable, __file__, "--measure", way, "--scan", str(scan)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def compare(scan: Path, rounds: int) -> list[dict[str, Any]]:
    """Run both ways, in turns, and return the claims' records.

    Raises:
        RuntimeError: They found other lungs.
    """
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, found in runs.items():
            found.append(in_fresh_process(way, scan))
    a, b = (set(runs[way][0]["lungs"]) for way in WAYS)
    agreement = 2 * len(a & b) / max(len(a) + len(b), 1)
    if agreement < AGREEMENT:
        raise RuntimeError(f"the lungs of both ways have a Dice of only {agreement:.2f}")
    return [
        record(name, *(statistics.median(run[key] for run in runs[way]) for way in WAYS), unit)
        for name, unit, key in CLAIMS
    ]


def main() -> None:
    """Print the table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scan", type=Path, help="a .nii.gz in HU; default: a phantom")
    parser.add_argument("--shape", type=int, nargs=3, default=[300, 512, 512], help="phantom D H W")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file that the records are joined to")
    parser.add_argument("--measure", choices=list(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.scan)))
        return
    with tempfile.TemporaryDirectory() as folder:
        scan = args.scan or Path(folder) / "scan.nii.gz"
        if not args.scan:
            write_phantom(scan, tuple(args.shape))
        records = compare(scan, args.rounds)
    publish(records, args.json)


if __name__ == "__main__":
    main()
