"""MedSAM2's tracker: ours beside the way of its inference script, the same network and weights.

Ours encodes each slice once and follows all objects in both directions in one batch. The peer takes
one object and one direction at a time, encodes each slice it comes to again, and has a batch of
one. Before the clock counts, the masks of both are compared. Weights are random, each by the hash
of its name, so that nothing here is about the quality of masks. On a CPU, CPU seconds of one
thread; on a GPU, seconds by the clock, and bfloat16 beside float32 with its peak of memory.

    python benchmarks/tracker.py --json metrics/benchmarks.json
    python benchmarks/tracker.py --device cuda --slices 300 --objects 20 --size 512 --rounds 1
"""

import argparse
import json
import math
import statistics
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ingest import publish
from store import record
from torch import Tensor

from ct3dlib.regions.medsam2_network import Network, make_network
from ct3dlib.regions.tracker import Precision, Prompt, encode, track

SHAPES = Path(__file__).parents[1] / "tests/golden/medsam2/native_keys.json"
PRESENCE = "sam_mask_decoder.pred_obj_score_head.layers.2.bias"
BATCH = 8  # slices that ours encodes at a time
LEAST_DICE = 0.99


def random_weights() -> dict[str, Tensor]:
    """Return weights of MedSAM2's names and shapes, of a size that keeps activations in bounds."""
    weights = {}
    for name, shape in json.loads(SHAPES.read_text()).items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        values = torch.randn(shape, generator=generator)
        if values.numel() > 4096 and len(shape) > 1:
            weights[name] = values / math.sqrt(math.prod(shape[1:]))
        else:
            weights[name] = 0.1 * values + ("norm" in name and name.endswith("weight"))
    weights[PRESENCE] += 1  # objects are there
    return weights


def phantom(slices: int, size: int) -> Tensor:
    """Return slices of waves that drift, uint8."""
    z, y, x = np.ogrid[:slices, :size, :size]
    grey = 120 + 100 * np.sin(18 * x / size + z / 5) * np.cos(12 * y / size)
    return torch.from_numpy(grey.astype(np.uint8))


def make_prompts(slices: int, size: int, objects: int) -> list[Prompt]:
    """Return a box for each object, on slices and at places that differ."""
    prompts = []
    for i in range(objects):
        left, top = size * (0.1 + 0.5 * i / objects), size * (0.6 - 0.5 * i / objects)
        box = (left, top, left + 0.3 * size, top + 0.25 * size)
        prompts.append(Prompt(slices * (i + 1) // (objects + 1), 0, slices, box=box))
    return prompts


def ours(network: Network, pictures: Tensor, prompts: list[Prompt], of: Precision) -> list[Tensor]:
    """Return the logits of all objects, from one batch."""
    features = encode(network, pictures, range(len(pictures)), batch=BATCH, precision=of)
    tracks = track(network, features, prompts, patience=None, precision=of)
    return [one.logits for one in tracks]


def peer(network: Network, pictures: Tensor, prompts: list[Prompt], of: Precision) -> list[Tensor]:
    """Return the logits of all objects, one object and one direction at a time."""

    def half(prompt: Prompt) -> Tensor:
        slices = range(prompt.start, prompt.stop)
        some = pictures[prompt.start : prompt.stop]
        features = encode(network, some, slices, batch=1, precision=of)
        return track(network, features, [prompt], patience=None, precision=of)[0].logits

    found = []
    for prompt in prompts:
        up, down = (
            half(replace(prompt, start=prompt.key)),
            half(replace(prompt, stop=prompt.key + 1)),
        )
        found.append(torch.cat((down, up[1:])))
    return found


def timed(run: Callable[[], list[Tensor]], device: torch.device) -> tuple[float, list[Tensor]]:
    """Return the seconds of a call, and what it returned."""
    if device.type == "cpu":
        started = time.process_time()
        found = run()
        return time.process_time() - started, found
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    found = run()
    torch.cuda.synchronize()
    return time.perf_counter() - started, found


def dice(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Return how well masks agree, over the slices in which both see the object."""
    both = total = 0
    for one, other in zip(found, wanted, strict=True):
        a, b = one > 0, other > 0
        seen = a.any(dim=(1, 2)) & b.any(dim=(1, 2))
        both += 2 * int((a & b)[seen].sum())
        total += int(a[seen].sum() + b[seen].sum())
    return both / total if total else 0.0


def compare(
    size: int, *, slices: int, objects: int, device: torch.device, rounds: int
) -> list[dict[str, Any]]:
    """Run both ways, in turns, and return the claims' records.

    Raises:
        RuntimeError: The two draw different masks.
    """
    torch.set_num_threads(1)
    network = make_network(random_weights(), path=SHAPES, size=size).to(device)
    pictures, prompts = phantom(slices, size), make_prompts(slices, size, objects)
    timed(lambda: ours(network, pictures[:2], [replace(prompts[0], key=0, stop=2)], "fp32"), device)
    runs: list[tuple[float, float]] = []
    for _ in range(rounds):
        ours_s, found = timed(lambda: ours(network, pictures, prompts, "fp32"), device)
        peer_s, wanted = timed(lambda: peer(network, pictures, prompts, "fp32"), device)
        if (agreed := dice(found, wanted)) < LEAST_DICE:
            raise RuntimeError(f"the masks differ: Dice {agreed:.3f}, wanted {LEAST_DICE}")
        runs.append((ours_s, peer_s))
    unit = "CPU s" if device.type == "cpu" else "s"
    sides = [statistics.median(side) for side in zip(*runs, strict=True)]
    records = [record("tracker/all_tracks_in_one_batch", *sides, unit)]
    if device.type == "cuda":
        records += halved(network, pictures, prompts)
    return records


def halved(network: Network, pictures: Tensor, prompts: list[Prompt]) -> list[dict[str, Any]]:
    """Return the records of bfloat16 beside float32 on a GPU, and print how well they agree."""
    seconds, peaks, masks = [], [], []
    for precision in ("bf16", "fp32"):
        ours(network, pictures, prompts, precision)
        took, found = timed(
            lambda of=precision: ours(network, pictures, prompts, of), torch.device("cuda")
        )
        seconds.append(took)
        peaks.append(torch.cuda.max_memory_allocated() / 2**20)
        masks.append(found)
    print(f"Dice of bf16 and fp32 masks: {dice(*masks):.4f}")
    return [record("tracker/bf16", *seconds, "s"), record("tracker/bf16_peak", *peaks, "MiB")]


def main() -> None:
    """Print the table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128, help="pixels of a side")
    parser.add_argument("--slices", type=int, default=12)
    parser.add_argument("--objects", type=int, default=4)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file that the records are joined to")
    args = parser.parse_args()
    shape = {name: getattr(args, name) for name in ("slices", "objects", "device", "rounds")}
    publish(compare(args.size, **shape), args.json)


if __name__ == "__main__":
    main()
