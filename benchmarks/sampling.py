"""Token transformer: ours beside a plain one as prod9 builds it, at equal width and depth.

The peer reads continuous codes through a convolution, attends with weights that are kept, modulates
every token by a condition of its own, has one class for every code, and samples with two forward
passes a step. Both draw 12 steps with guidance on one grid and take one training step of one item.
CPU time on one thread, untrained weights.

    python benchmarks/sampling.py --json metrics/benchmarks.json
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ingest import publish
from store import record
from torch import Tensor, nn

from ct3dlib.config import FSQSpec, MaskGITNetworkSpec, SamplesSpec, TransformerSpec
from ct3dlib.inference.sampler import Prompt, commit_counts, sample_indices
from ct3dlib.models.maskgit import Conditions, MaskGIT
from ct3dlib.objectives.maskgit import MaskGITObjective
from ct3dlib.quantizers.fsq import FSQ

LEVELS, GUIDANCE = (8, 8, 8), 1.5
MASKED_VALUE = -100.0
CLAIMS = ("sampling/12_steps_with_guidance", "sampling/training_step")


class PeerBlock(nn.Module):
    """Attention with weights and a feed-forward, modulated token by token."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Return the tokens, B N C, after both."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.modulation(condition).chunk(6, -1)
        seen = self.norm(tokens) * (1 + scale_a) + shift_a
        tokens = tokens + gate_a * self.attention(seen, seen, seen, need_weights=True)[0]
        seen = self.norm(tokens) * (1 + scale_f) + shift_f
        return tokens + gate_f * self.feed_forward(seen)


class Peer(nn.Module):
    """Logits of every code from codes, some of them replaced by a number."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        channels, codes = len(LEVELS), math.prod(LEVELS)
        self.tokens = nn.Conv3d(channels, width, 1)
        self.condition = nn.Conv3d(channels, width, 1)
        self.blocks = nn.ModuleList(PeerBlock(width, heads) for _ in range(depth))
        self.heads = nn.Sequential(nn.Conv3d(width, width, 1), nn.Conv3d(width, codes, 1))

    def forward(self, codes: Tensor, condition: Tensor) -> Tensor:
        """Return logits B V D H W of codes and a condition, both B C D H W."""
        tokens = self.tokens(codes).flatten(2).mT
        places = torch.arange(tokens.shape[1])[:, None] / 1e4 ** torch.linspace(
            0, 1, tokens.shape[2] // 2
        )
        tokens = tokens + torch.cat((places.sin(), places.cos()), dim=1)
        steered = self.condition(condition).flatten(2).mT
        for block in self.blocks:
            tokens = block(tokens, steered)
        return self.heads(tokens.mT.unflatten(2, codes.shape[2:]))


@torch.no_grad()
def peer_sample(peer: Peer, grid: tuple[int, int, int], steps: int) -> Tensor:
    """Commit the likeliest of the most certain positions at every step; returns indices."""
    quantizer = FSQ(FSQSpec(levels=LEVELS))
    condition = torch.zeros(1, len(LEVELS), *grid)
    latent = torch.full_like(condition, MASKED_VALUE)
    indices = torch.full((1, *grid), -1)
    for count in commit_counts("log2", math.prod(grid), steps=steps):
        asked, unasked = peer(latent, condition + 1), peer(latent, condition)
        share, best = ((1 + GUIDANCE) * asked - GUIDANCE * unasked).softmax(1).max(1)
        share = share.masked_fill(indices >= 0, -1).flatten()
        chosen = share.topk(count).indices
        indices.view(-1)[chosen] = best.view(-1)[chosen]
        codes = quantizer.lookup(indices.clamp_min(0))
        latent = torch.where((indices >= 0)[:, None], codes, MASKED_VALUE)
    return indices


def peer_step(peer: Peer, optimizer: torch.optim.Optimizer, indices: Tensor) -> float:
    """Take a training step on indices, D H W, of which half are masked; returns the loss."""
    codes = FSQ(FSQSpec(levels=LEVELS)).lookup(indices[None])
    masked = torch.rand(1, *indices.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    logits = peer(codes.masked_fill(masked[:, None], MASKED_VALUE), torch.zeros_like(codes))
    loss = F.cross_entropy(logits, indices[None].masked_fill(~masked, -100))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def our_sample(model: MaskGIT, grid: tuple[int, int, int], steps: int) -> Tensor:
    """Draw one sample."""
    spec = SamplesSpec(steps=steps, schedule="log2", guidance=GUIDANCE)
    asked = Conditions(torch.ones(1, 1), torch.ones(1, dtype=torch.bool))
    return sample_indices(model.eval(), Prompt([0], asked), grid=grid, spec=spec)


def our_step(
    objective: MaskGITObjective, optimizer: torch.optim.Optimizer, indices: Tensor
) -> None:
    """Take a training step on indices, D H W."""
    batch = {
        "indices": indices[None],
        "labels": torch.ones(1, 1),
        "label_present": torch.ones(1, dtype=torch.bool),
        "item_seed": torch.tensor([0]),
        "step": torch.tensor(0),
    }
    loss, _ = objective.train().loss(batch, "model")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a call, and what it returned."""
    started = time.process_time()
    result = run()
    return time.process_time() - started, result


def compare(
    grid: tuple[int, int, int], *, width: int, depth: int, heads: int, steps: int, rounds: int
) -> list[dict[str, Any]]:
    """Run both, in turns, and return the claims' records.

    Raises:
        RuntimeError: A sample is not whole.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    training = {"steps": 1, "batch_size": 1, "micro_batch_size": 1}
    shape = {"hidden_size": width, "num_layers": depth, "num_heads": heads, "dropout": 0.0}
    spec = TransformerSpec.model_validate({**training, "model": shape})
    network = MaskGITNetworkSpec(**shape, radices=LEVELS, num_labels=1)
    objective, peer = MaskGITObjective(spec, network), Peer(width, depth, heads)
    ours, theirs = (torch.optim.AdamW(m.parameters(), lr=1e-4) for m in (objective, peer))
    indices = torch.randint(0, math.prod(LEVELS), grid)
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in CLAIMS}
    for _ in range(rounds):
        ours_s, drawn = timed(lambda: our_sample(objective.model, grid, steps))
        theirs_s, other = timed(lambda: peer_sample(peer.eval(), grid, steps))
        if not all(0 <= one.min() <= one.max() < math.prod(LEVELS) for one in (drawn, other)):
            raise RuntimeError("a sample is not whole")
        runs[CLAIMS[0]].append((ours_s, theirs_s))
        ours_s, _ = timed(lambda: our_step(objective, ours, indices))
        theirs_s, _ = timed(lambda: peer_step(peer.train(), theirs, indices))
        runs[CLAIMS[1]].append((ours_s, theirs_s))
    return [
        record(name, *(statistics.median(side) for side in zip(*found, strict=True)), "CPU s")
        for name, found in runs.items()
    ]


def main() -> None:
    """Print the table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=int, nargs=3, default=[8, 16, 16], help="tokens D H W")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file that the records are joined to")
    args = parser.parse_args()
    shape = {name: getattr(args, name) for name in ("width", "depth", "heads", "steps", "rounds")}
    publish(compare(tuple(args.grid), **shape), args.json)


if __name__ == "__main__":
    main()
