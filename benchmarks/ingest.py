"""Ingest of one scan: ours beside the ways that tokenizers and MAE pretraining prepare CT.

Every way reads the same .nii.gz and brings it to 1.5 x 0.75 x 0.75 mm, 241 x 512 x 512 voxels, in
a fresh process with one thread. Printed are CPU seconds and the peak of memory above what the
imports take, the median of some rounds. The scan is a phantom with a scanner's noise unless
`--scan` names one.

    python benchmarks/ingest.py --json metrics/benchmarks.json
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

import nibabel
import numpy as np
import SimpleITK
import torch
from torch.nn import functional as F

from ct3dlib.cohort.store import create_store, write_node
from ct3dlib.config import RecipeSpec
from ct3dlib.datasets.phantom_findings import make_patient
from ct3dlib.datasets.phantom_render import render
from ct3dlib.datasets.phantom_scanner import Reconstruction, acquire
from ct3dlib.datasets.phantom_space import Grid
from ct3dlib.scan.intensity import to_hu
from ct3dlib.scan.nifti import read_nifti, write_nifti
from ct3dlib.scan.normalize import normalize
from ct3dlib.scan.resample import resize
from ct3dlib.scan.volume import Volume

TARGET = (1.5, 0.75, 0.75)  # mm, D H W
SHAPE = (241, 512, 512)
FIELD_OF_VIEW = (340.0, 360.0, 360.0)  # mm
PROBE = (slice(None, None, 16),) * 3  # of a result, to see that all make the same volume
SLAB = 20  # slices to which noise is added at a time
MIB = 1024.0

# What is claimed: name, unit, ours, peer, key of the measurement.
CLAIMS = (
    ("ingest/read_hu_resample", "CPU s", "ct3d", "float64", "cpu_s"),
    ("ingest/read_hu_resample_peak", "MiB", "ct3d", "float64", "peak_mib"),
    ("ingest/read_hu_resample_write", "CPU s", "ct3d_zarr", "float64_npz", "cpu_s"),
    ("ingest/read_hu_resample_write_peak", "MiB", "ct3d_zarr", "float64_npz", "peak_mib"),
    ("ingest/b_spline", "CPU s", "ct3d", "b_spline", "cpu_s"),
    ("ingest/b_spline_peak", "MiB", "ct3d", "b_spline", "peak_mib"),
)


def ct3d(scan: Path) -> np.ndarray:
    """Ingest as a shard does: checked, hashed, HU state found, int16 HU."""
    hu = to_hu(read_nifti(scan), slope=None, intercept=None, state="auto")
    return normalize(hu.volume, RecipeSpec(spacing=TARGET, shape=SHAPE))[0].array


def ct3d_zarr(scan: Path) -> np.ndarray:
    """The same, into a compressed store that is read back and compared."""
    array = ct3d(scan)
    store = scan.parent / "ours.zarr"
    create_store(store, "volumes")
    write_node(store, "scan@0", array, attributes={})
    return array


def float64(scan: Path) -> np.ndarray:
    """Work in float64 from the file to the clip; axes i, j, k become k, j, i."""
    image = nibabel.load(scan)
    spacing = [float(zoom) for zoom in image.header.get_zooms()][::-1]
    values = 1.0 * image.get_fdata() + 0.0  # slope and intercept
    tensor = torch.from_numpy(values.transpose(2, 1, 0))[None, None]
    size = [int(n * (a / b)) for n, a, b in zip(tensor.shape[2:], spacing, TARGET, strict=True)]
    resized = F.interpolate(tensor, size=size, mode="trilinear", align_corners=False)[0, 0]
    seen = (resized.numpy().clip(-1000, 1000) / 1000).astype(np.float32)
    return centered(seen, fill=-1)


def float64_npz(scan: Path) -> np.ndarray:
    """The same, into a float32 .npz."""
    array = float64(scan)
    np.savez(scan.parent / "peer.npz", array)
    return array


def b_spline(scan: Path) -> np.ndarray:
    """Resample with ITK's cubic B-spline, then clip."""
    image = SimpleITK.ReadImage(str(scan), SimpleITK.sitkFloat32)
    given, shape = image.GetSpacing(), image.GetSize()
    size = [int(n * (a / b)) for n, a, b in zip(shape, given, TARGET[::-1], strict=True)]
    spacing = [n * a / m for n, a, m in zip(shape, given, size, strict=True)]
    shift = [(b - a) / 2 for a, b in zip(given, spacing, strict=True)]
    grid = SimpleITK.Image(size, SimpleITK.sitkFloat32)
    grid.SetSpacing(spacing)
    grid.SetDirection(image.GetDirection())
    origin = np.array(image.GetOrigin()) + np.reshape(image.GetDirection(), (3, 3)) @ shift
    grid.SetOrigin(origin.tolist())
    resampled = SimpleITK.Resample(
        image, grid, SimpleITK.Transform(), SimpleITK.sitkBSpline, -1024.0
    )
    seen = SimpleITK.GetArrayFromImage(resampled).clip(-1000, 1000) / np.float32(1000)
    return centered(seen, fill=-1)


WAYS: dict[str, Callable[[Path], np.ndarray]] = {
    way.__name__: way for way in (ct3d, float64, ct3d_zarr, float64_npz, b_spline)
}


def centered(array: np.ndarray, *, fill: float) -> np.ndarray:
    """Crop, then pad, to SHAPE."""
    cut = [max((n - t) // 2, 0) for n, t in zip(array.shape, SHAPE, strict=True)]
    array = array[tuple(slice(a, a + t) for a, t in zip(cut, SHAPE, strict=True))]
    rest = [t - n for n, t in zip(array.shape, SHAPE, strict=True)]
    return np.pad(array, [(n // 2, n - n // 2) for n in rest], constant_values=fill)


def write_phantom(path: Path, shape: tuple[int, int, int]) -> None:
    """Write a chest phantom with a scanner's noise; detail is that of a quarter of the matrix."""
    d, h, w = (length / n for length, n in zip(FIELD_OF_VIEW, shape, strict=True))
    corner = (-w * (shape[2] - 1) / 2, -h * (shape[1] - 1) / 2 + 8, -190.0)
    coarse = tuple(max(n // 4, 16) for n in shape)
    step = tuple(length / n for length, n in zip(FIELD_OF_VIEW, coarse, strict=True))
    patient = make_patient(np.random.default_rng(0), ["Lung nodule"])
    clean, _, _ = render(patient, Grid(coarse, step, corner))
    hu = resize(Volume(clean, np.eye(4)), shape).array
    grid = Grid(shape, (d, h, w), corner)
    noisy = [
        acquire(hu[k : k + SLAB], Reconstruction(grid, False, 20.0, False, seed=k))
        for k in range(0, shape[0], SLAB)
    ]
    write_nifti(path, Volume(np.concatenate(noisy), grid.affine))


def status_mib(field: str) -> float:
    """Return a figure of this process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / MIB


def measure(way: str, scan: Path) -> dict[str, Any]:
    """Run one way in this process."""
    torch.set_num_threads(1)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    base, started = status_mib("VmRSS"), time.process_time()
    array = WAYS[way](scan)
    cpu, peak = time.process_time() - started, status_mib("VmHWM") - base
    probe = array[PROBE].astype(np.float64) * (1 if array.dtype == np.int16 else 1000)
    return {"cpu_s": cpu, "peak_mib": peak, "probe": np.clip(probe, -1000, 1000).tolist()}


def in_fresh_process(way: str, scan: Path) -> dict[str, Any]:
    """Run one way in a process of its own."""
    command = [sys.executable, __file__, "--measure", way, "--scan", str(scan)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def machine() -> str:
    """Return the processor and its number of cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else 'unknown processor'}, {os.cpu_count()} cores"


def commit() -> str:
    """Return the commit that is measured."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def compare(scan: Path, rounds: int) -> list[dict[str, Any]]:
    """Run every way, in turns, and return the claims' records.

    Raises:
        RuntimeError: Ours and the float64 way differ by more than the rounding of HU.
    """
    runs = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, found in runs.items():
            found.append(in_fresh_process(way, scan))
    ours, peer = (np.array(runs[way][0]["probe"]) for way in ("ct3d", "float64"))
    if np.abs(ours - peer).max() > 1:
        raise RuntimeError(f"the ways differ by up to {np.abs(ours - peer).max():.1f} HU")
    records = []
    for name, unit, our_way, peer_way, key in CLAIMS:
        a, b = (statistics.median(run[key] for run in runs[way]) for way in (our_way, peer_way))
        record = {"name": name, "ours": round(a, 3), "peer": round(b, 3), "unit": unit}
        records.append({**record, "ratio": round(b / a, 2)})
    return [{**record, "machine": machine(), "commit": commit()} for record in records]


def publish(records: list[dict[str, Any]], path: Path | None) -> None:
    """Print the records as a table; in a file, they replace those of the same names."""
    print("| claim | ct3d | peer | unit | ratio |\n|---|---|---|---|---|")
    for record in records:
        print("| {name} | {ours} | {peer} | {unit} | {ratio} |".format(**record))
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        names = {record["name"] for record in records}
        old = json.loads(path.read_text()) if path.exists() else []
        kept = [record for record in old if record["name"] not in names]
        path.write_text(json.dumps([*kept, *records], indent=2) + "\n")


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
        scan = Path(folder) / "scan.nii.gz"
        if args.scan:
            scan.symlink_to(args.scan.resolve())
        else:
            write_phantom(scan, tuple(args.shape))
        records = compare(scan, args.rounds)
    publish(records, args.json)


if __name__ == "__main__":
    main()
