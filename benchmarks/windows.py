"""A long volume through the causal tokenizer: windows in batches, slices in chunks.

Encoding takes the windows that define the tokens in batches, beside one at a time as BTB3D's
script does; both give the same indices. Decoding takes the codes in chunks, beside all at once,
each in a fresh process; both give the same slices. Printed are CPU seconds with one thread, and
the peak of memory above what the model and a small call take. The model has the published widths,
one block a level instead of four, and random weights.

    python benchmarks/windows.py --json metrics/benchmarks.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from ingest import publish, status_mib
from store import record
from torch import Tensor

from ct3dlib.config import CausalTokenizerSpec
from ct3dlib.models.tokenizer import CausalTokenizer, join_windows

SPEC = CausalTokenizerSpec(num_res_blocks=1)
BATCHES = (2, 4)  # windows
CHUNK = 2  # latents


def make_model() -> CausalTokenizer:
    """Return a tokenizer with random weights, the same in every process."""
    torch.manual_seed(0)
    return CausalTokenizer(SPEC).eval()


@torch.inference_mode()
def encode(model: CausalTokenizer, windows: Tensor, windows_per_batch: int) -> Tensor:
    """Return the indices of windows N 1 S H W that are encoded some at a time."""
    latents = [model.encode_window(batch) for batch in windows.split(windows_per_batch)]
    return model.tokens(join_windows(torch.cat(latents)[None])).indices


def encoding(height: int, width: int, rounds: int) -> list[dict[str, Any]]:
    """Return the records of encoding one batch of the largest size.

    Raises:
        RuntimeError: A batch size gives other indices.
    """
    torch.set_num_threads(1)
    model = make_model()
    slices = 1 + max(BATCHES) * model.downsampling[0]
    windows = model.windows(torch.randn(1, 1, slices, height, width))[0]
    singly = encode(model, windows, 1)
    times: dict[int, list[float]] = {size: [] for size in (1, *BATCHES)}
    for _ in range(rounds):
        for size, found in times.items():
            started = time.process_time()
            indices = encode(model, windows, size)
            found.append(time.process_time() - started)
            if not torch.equal(indices, singly):
                raise RuntimeError(f"batches of {size} windows give other indices")
    alone, *batched = (statistics.median(found) for found in times.values())
    return [
        record(f"windows/encode_{size}_at_a_time", ours, alone, "CPU s")
        for size, ours in zip(BATCHES, batched, strict=True)
    ]


def in_chunks(model: CausalTokenizer, codes: Tensor) -> Iterable[Tensor]:
    """Decode chunk by chunk."""
    return model.decode_stream(codes, latents_per_chunk=CHUNK)


@torch.no_grad()
def at_once(model: CausalTokenizer, codes: Tensor) -> Iterable[Tensor]:
    """Decode in one piece."""
    return [model.decode(codes)]


WAYS: dict[str, Callable[[CausalTokenizer, Tensor], Iterable[Tensor]]] = {
    way.__name__: way for way in (in_chunks, at_once)
}


def measure(way: str, shape: tuple[int, int, int]) -> dict[str, float]:
    """Decode a volume of a shape in one way in this process, keeping the mean of each slice."""
    torch.set_num_threads(1)
    model = make_model()
    grid = [1 + (shape[0] - 1) // model.downsampling[0]]
    grid += [n // step for n, step in zip(shape[1:], model.downsampling[1:], strict=True)]
    codes = torch.randn(1, model.tokens.channels, *grid).sign()
    list(WAYS[way](model, codes[:, :, :2, :2, :2]))
    base, started = status_mib("VmRSS"), time.process_time()
    means = [m for volumes in WAYS[way](model, codes) for m in volumes.mean((0, 1, 3, 4)).tolist()]
    cpu = time.process_time() - started
    probe = sum(k * mean for k, mean in enumerate(means))
    return {"cpu_s": cpu, "peak_mib": status_mib("VmHWM") - base, "probe": probe}


def in_fresh_process(way: str, shape: tuple[int, int, int]) -> dict[str, float]:
    """Decode in a process of its own."""
    command = [sys.executable, __file__, "--measure", way, "--shape", *map(str, shape)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def decoding(shape: tuple[int, int, int], rounds: int) -> list[dict[str, Any]]:
    """Return the records of decoding.

    Raises:
        RuntimeError: The ways give different slices.
    """
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, found in runs.items():
            found.append(in_fresh_process(way, shape))
    ours, peer = (found[0]["probe"] for found in runs.values())
    if abs(ours - peer) > 1e-3 * max(1, abs(peer)):
        raise RuntimeError(f"the ways decode different slices: {ours:.6f} and {peer:.6f}")
    return [
        record(
            name, *(statistics.median(run[key] for run in found) for found in runs.values()), unit
        )
        for name, unit, key in (
            ("windows/decode_in_chunks", "CPU s", "cpu_s"),
            ("windows/decode_in_chunks_peak", "MiB", "peak_mib"),
        )
    ]


def main() -> None:
    """Print the table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=[241, 128, 128], help="voxels, D H W")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file that the records are joined to")
    parser.add_argument("--measure", choices=list(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    depth, height, width = args.shape
    if args.measure:
        print(json.dumps(measure(args.measure, (depth, height, width))))
        return
    records = encoding(height, width, args.rounds)
    records += decoding((depth, height, width), args.rounds)
    publish(records, args.json)


if __name__ == "__main__":
    main()
