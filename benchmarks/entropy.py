"""Entropy loss of lookup-free quantization: ours beside vector_quantize_pytorch's.

Both take the same latents forward and backward, each in a fresh process with one thread: the mean
entropy of the tokens less the entropy of the mean. The peer has a probability for each of the
2^bits codes and each token. Ours works bit by bit; beyond 10 bits its second term is the sum over
groups of bits, an upper bound. The first term is exact, and the run holds the two to each other.
Printed are CPU milliseconds and the peak of memory above what imports and a small call take.

    python benchmarks/entropy.py --json metrics/benchmarks.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ingest import publish, status_mib
from store import record
from torch import Tensor
from vector_quantize_pytorch import LFQ

from ct3dlib.losses.entropy import batch_entropy, code_probabilities, sample_entropy

BITS = 18
SHARPNESS = 100.0
CLAIMS = (
    ("entropy/forward_backward", "CPU ms", "cpu_ms"),
    ("entropy/forward_backward_peak", "MiB", "peak_mib"),
)


def ours(latents: Tensor) -> Tensor:
    """Run the factorised loss; returns the entropy of the tokens."""
    tokens = sample_entropy(latents, sharpness=SHARPNESS)
    (tokens - batch_entropy(code_probabilities(latents, sharpness=SHARPNESS))).backward()
    return tokens.detach()


def peer(latents: Tensor) -> Tensor:
    """Run the loss over all codes; returns the entropy of the tokens."""
    quantizer = LFQ(dim=latents.shape[1], entropy_loss_weight=1.0).train()
    quantized, parts = quantizer(latents, inv_temperature=SHARPNESS, return_loss_breakdown=True)
    quantized.entropy_aux_loss.backward()
    return parts.per_sample_entropy.detach()


WAYS: dict[str, Callable[[Tensor], Tensor]] = {way.__name__: way for way in (ours, peer)}


def latents_of(tokens: int, bits: int) -> Tensor:
    """Return latents of tokens of which some bits are undecided."""
    generator = torch.Generator().manual_seed(0)
    return (0.1 * torch.randn(1, bits, tokens, 1, 1, generator=generator)).requires_grad_()


def measure(way: str, tokens: int, bits: int) -> dict[str, float]:
    """Run one way in this process."""
    torch.set_num_threads(1)
    WAYS[way](latents_of(4, 4))
    latents = latents_of(tokens, bits)
    base, started = status_mib("VmRSS"), time.process_time()
    entropy = WAYS[way](latents)
    cpu_ms = 1e3 * (time.process_time() - started)
    peak = status_mib("VmHWM") - base
    return {"cpu_ms": cpu_ms, "peak_mib": peak, "entropy": entropy.item()}


def in_fresh_process(way: str, tokens: int, bits: int) -> dict[str, float]:
    """Run one way in a process of its own."""
    command = [sys.executable, __file__, "--measure", way]
    command += ["--tokens", str(tokens), "--bits", str(bits)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def compare(tokens: int, bits: int, rounds: int) -> list[dict[str, Any]]:
    """Run both ways, in turns, and return the claims' records.

    Raises:
        RuntimeError: The entropies of the tokens differ by more than 1 %.
    """
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, found in runs.items():
            found.append(in_fresh_process(way, tokens, bits))
    a, b = (runs[way][0]["entropy"] for way in ("ours", "peer"))
    if abs(a - b) > 0.01 * abs(b):
        raise RuntimeError(f"the entropies of the tokens differ: {a:.4f} and {b:.4f}")
    return [
        record(name, *(statistics.median(run[key] for run in runs[way]) for way in runs), unit)
        for name, unit, key in CLAIMS
    ]


def main() -> None:
    """Print the table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=256, help="of one batch")
    parser.add_argument("--bits", type=int, default=BITS, help="log2 of the number of codes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file that the records are joined to")
    parser.add_argument("--measure", choices=list(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.tokens, args.bits)))
        return
    publish(compare(args.tokens, args.bits, args.rounds), args.json)


if __name__ == "__main__":
    main()
