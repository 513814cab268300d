"""Masked autoencoder on a GPU: time, memory and share of the card's peak of a training step.

The published size on volumes of 256 voxels in bfloat16, from stored int16 values that lie on the
GPU, for batches of 1, 2, 4, 8 ... volumes until memory ends; compiled (`ct3d` in the table) beside
not compiled. Memory of a volume is what a step takes above weights, gradients and optimizer. The
share of the peak counts matrix products and attention alone: 6 x MACs a volume, 2 operations for
each multiplication and addition, one pass forward and two back; work that is done for nothing
counts as time. MACs of a stack of L layers of width C with an inner width r C, on N tokens:

    L x (N x C^2 x (4 + 2 r) + 2 x N^2 x C)

beside those of the layers before, between and behind the stacks.

    python benchmarks/mae_gpu.py --peak-tflops 989 --json metrics/benchmarks.json
    python benchmarks/mae_gpu.py --device cpu --smoke
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ingest import publish
from mae import RANGE, TINY, WINDOW, Ours, network
from store import record

from ct3dlib.config import MaskedAutoencoderNetworkSpec, VisionTransformerSpec
from ct3dlib.nn.intensity import windowed

WARM_UP, STEPS = 3, 10
UNITS = {
    "step_s": "s",
    "volumes_per_s": "volumes/s",
    "volume_gib": "GiB a volume",
    "share": "share of the peak",
}
MORE_IS_BETTER = ("volumes/s", "share of the peak")
GIB, TERA = 2.0**30, 1e12


@dataclass(frozen=True)
class Measured:
    """What one batch size takes: seconds, GiB, share of the peak."""

    step_s: float
    volumes_per_s: float
    volume_gib: float
    share: float


def stack_macs(spec: VisionTransformerSpec, tokens: int) -> float:
    """Return multiplications with additions of a forward pass of transformer blocks."""
    width = spec.hidden_size
    products = tokens * width**2 * (4 + 2 * spec.mlp_ratio)
    return spec.num_layers * (products + 2 * tokens**2 * width)


def macs(spec: MaskedAutoencoderNetworkSpec) -> float:
    """Return those of one volume in the whole model."""
    patches, visible = spec.network.num_patches, spec.num_visible
    voxels = math.prod(spec.patch_size)
    width, narrow = spec.encoder.hidden_size, spec.decoder.hidden_size
    between = visible * voxels * width + (1 + visible) * width * narrow
    behind = (patches - visible) * narrow * voxels
    stacks = stack_macs(spec.encoder, 1 + visible) + stack_macs(spec.decoder, 1 + patches)
    return between + behind + stacks


def make_step(
    spec: MaskedAutoencoderNetworkSpec, batch: int, *, compiled: bool, device: torch.device
) -> Callable[[], None]:
    """Return a training step of a new model on stored values."""
    torch.manual_seed(0)
    low, high = (int(end) for end in WINDOW)
    values = torch.randint(low, high, (batch, 1, *spec.shape), dtype=torch.int16).to(device)
    window = torch.tensor([WINDOW] * batch, device=device)
    model = Ours(spec).to(device)
    if compiled:
        # Without a GPU the graph is traced but not built: enough to try the script.
        model.compile(backend="inductor" if device.type == "cuda" else "eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(windowed(values, window, onto=RANGE))
        loss.backward()
        optimizer.step()
        # Gradients stay where they are, so that they are no part of what a volume takes.
        optimizer.zero_grad(set_to_none=False)

    return step


def measure(
    step: Callable[[], None], device: torch.device, *, batch: int, operations: float
) -> Measured:
    """Take some steps that do not count, then some whose median does.

    Args:
        step: A training step.
        device: Where it works.
        batch: Its volumes.
        operations: What the card could do in a second, in training steps of one volume.
    """
    for _ in range(WARM_UP):
        step()
    at_rest = memory(device, reset=True)
    times = []
    for _ in range(STEPS):
        wait(device)
        began = time.perf_counter()
        step()
        wait(device)
        times.append(time.perf_counter() - began)
    rate = batch / statistics.median(times)
    taken = (memory(device, reset=False) - at_rest) / batch / GIB
    return Measured(batch / rate, rate, taken, rate / operations)


def wait(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory(device: torch.device, *, reset: bool) -> int:
    """Return the bytes that a GPU holds now, to count the peak from, or those of the peak."""
    if device.type != "cuda":
        return 0
    wait(device)
    if reset:
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return torch.cuda.max_memory_allocated(device)


def sweep(
    spec: MaskedAutoencoderNetworkSpec,
    device: torch.device,
    *,
    largest: int,
    peak_tflops: float,
) -> Iterator[dict[str, Any]]:
    """Yield the records of each batch size, until one does not fit or the largest is done."""
    operations = peak_tflops * TERA / (6 * macs(spec))
    batch = 1
    while batch <= largest:
        try:
            plain, compiled = (
                measure(
                    make_step(spec, batch, compiled=compiled, device=device),
                    device,
                    batch=batch,
                    operations=operations,
                )
                for compiled in (False, True)
            )
        except torch.OutOfMemoryError:
            return
        finally:
            torch.compiler.reset()
            if device.type == "cuda":
                torch.cuda.empty_cache()
        name = f"mae/{device.type}_{spec.shape[0]}_batch_{batch}"
        for field, unit in UNITS.items():
            ours, peer = getattr(compiled, field), getattr(plain, field)
            yield figure(f"{name}_{field}", ours, peer, unit)
        batch *= 2


def figure(name: str, compiled: float, plain: float, unit: str) -> dict[str, Any]:
    """Return one comparison; a ratio above 1 is in favour of the compiled model."""
    found = record(name, compiled, plain, unit)
    if unit in MORE_IS_BETTER and plain:
        found["ratio"] = round(compiled / plain, 2)
    return found


def main() -> None:
    """Print the table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--size", type=int, default=256, help="voxels of a volume's side")
    parser.add_argument("--largest-batch", type=int, default=64)
    parser.add_argument(
        "--peak-tflops", type=float, default=989.0, help="of dense bfloat16; an H200's: 989"
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--json", type=Path, help="file that the records are joined to")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("mae_gpu: no GPU here, nothing is measured; --device cpu --smoke tries the script")
        return
    spec = network(TINY if args.smoke else {}, args.size)
    device = torch.device(args.device)
    records = sweep(spec, device, largest=args.largest_batch, peak_tflops=args.peak_tflops)
    publish(list(records), args.json)


if __name__ == "__main__":
    main()
