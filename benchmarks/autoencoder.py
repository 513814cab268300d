"""MAISI autoencoder: ours beside MONAI's stock class, with the same weights on the same crops.

Both quantize the latents in a training step. The stock class convolves in one part (its default of
16 parts refuses crops of 64 voxels) and never empties a cache that a CPU does not have. Before the
clock runs, the latents, the decoded volumes and the gradients of both are compared. One thread is
measured in CPU time, which other programs do not disturb; several are measured by the clock.

    python benchmarks/autoencoder.py --json metrics/benchmarks.json
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ingest import commit, machine, publish
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import (
    AutoencoderKlMaisi,
    MaisiGroupNorm3D,
)
from torch import Tensor, nn

from ct3dlib.config import MaisiTokenizerSpec
from ct3dlib.models.maisi import MaisiTokenizer

SPEC = MaisiTokenizerSpec()
NORM_SHAPE = (1, 32, 32, 32, 32)
TOLERANCE = 1e-5  # of the norm

Way = Callable[[], object]


def make_models() -> tuple[MaisiTokenizer, AutoencoderKlMaisi]:
    """Return ours and the stock model with the same weights."""
    torch.manual_seed(0)
    ours = MaisiTokenizer(SPEC)
    stock = AutoencoderKlMaisi(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        num_res_blocks=SPEC.num_res_blocks,
        num_channels=SPEC.num_channels,
        attention_levels=SPEC.attention_levels,
        latent_channels=ours.tokens.channels,
        norm_num_groups=SPEC.norm_groups,
        norm_eps=SPEC.norm_eps,
        num_splits=1,
        save_mem=False,
    )
    stock.load_state_dict(ours.state_dict(), strict=False)  # its variance head is not used
    return ours, stock


def step(model: nn.Module, volumes: Tensor, reconstruct: Callable[[Tensor], Tensor]) -> None:
    """Do the forward and backward pass of an L1 loss."""
    model.zero_grad()
    (reconstruct(volumes) - volumes).abs().mean().backward()


def model_ways(
    ours: MaisiTokenizer, stock: AutoencoderKlMaisi, volumes: Tensor
) -> dict[str, tuple[Way, Way]]:
    """Return what is timed of both models."""

    def stock_reconstruct(volumes: Tensor) -> Tensor:
        return stock.decode(ours.tokens(stock.encode(volumes)[0]).codes)

    return {
        "step": (
            lambda: step(ours, volumes, lambda volumes: ours(volumes).volumes),
            lambda: step(stock, volumes, stock_reconstruct),
        ),
        "encode": (
            torch.inference_mode(lambda: ours.encode(volumes)),
            torch.inference_mode(lambda: stock.encode(volumes)[0]),
        ),
    }


def norm_ways() -> tuple[Way, Way]:
    """Return a pass forward and back through one norm of each kind."""
    x = torch.randn(NORM_SHAPE, requires_grad=True)
    norms = nn.GroupNorm(32, 32), MaisiGroupNorm3D(32, 32, save_mem=False)
    ours, stock = (lambda norm=norm: norm(x).square().sum().backward() for norm in norms)
    return ours, stock


def check(ours: MaisiTokenizer, stock: AutoencoderKlMaisi, volumes: Tensor) -> None:
    """Raise unless both compute the same.

    Raises:
        RuntimeError: Latents, volumes or gradients differ by more than rounding.
    """
    latents, _ = stock.encode(volumes)
    found = [ours.encode(volumes), ours.decode(latents.detach())]
    wanted = [latents, stock.decode(latents.detach())]
    for results in (found, wanted):
        sum(result.square().mean() for result in results).backward()
    theirs = dict(stock.named_parameters())
    names, parameters = zip(*ours.named_parameters(), strict=True)
    found.append(torch.cat([parameter.grad.flatten() for parameter in parameters]))
    wanted.append(torch.cat([theirs[name].grad.flatten() for name in names]))
    for one, other in zip(found, wanted, strict=True):
        difference = float(((one - other).norm() / other.norm()).detach())
        if difference > TOLERANCE:
            raise RuntimeError(f"ours and the stock model differ by {difference:.1e}")


def medians(ways: tuple[Way, Way], rounds: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Return seconds of ours and of the stock way, run in turns after one that does not count."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for way, found in zip(ways, times, strict=True):
            began = clock()
            way()
            if turn:
                found.append(clock() - began)
    return statistics.median(times[0]), statistics.median(times[1])


def compare(shape: tuple[int, ...], rounds: int, thread_counts: list[int]) -> list[dict[str, Any]]:
    """Return the records of all comparisons; a ratio above 1 is in favour of ours."""
    ours, stock = make_models()
    volumes = torch.rand(shape) * 2 - 1
    check(ours, stock, volumes)
    ways = {**model_ways(ours, stock, volumes), "group_norm": norm_ways()}
    records = []
    for threads in thread_counts:
        torch.set_num_threads(threads)
        clock, unit = (time.process_time, "CPU ms") if threads == 1 else (time.perf_counter, "ms")
        for name, both in ways.items():
            a, b = medians(both, rounds, clock)
            records.append(
                {
                    "name": f"autoencoder/maisi_{name}_{threads}_threads",
                    "ours": round(a * 1e3, 1),
                    "peer": round(b * 1e3, 1),
                    "unit": unit,
                    "ratio": round(b / a, 2),
                    "machine": machine(),
                    "commit": commit(),
                }
            )
    return records


def main() -> None:
    """Print the table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crop", type=int, nargs=3, default=[64, 64, 64], help="voxels D H W")
    parser.add_argument("--batch", type=int, default=1, help="crops of a step")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file that the records are joined to")
    args = parser.parse_args()
    publish(compare((args.batch, 1, *args.crop), args.rounds, args.threads), args.json)


if __name__ == "__main__":
    main()
