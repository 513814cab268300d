"""Transformer blocks whose attention knows slices, on the grid of a scan's patches.

Pre-norm blocks as of Dosovitskiy et al. (arXiv:2010.11929); attention within slices, along z, or
both in turn as of Bertasius et al. (arXiv:2102.05095, section 3, "divided space-time"), with z for
time.

Letters: B volumes, N tokens (token (z h + y) w + x of a grid d h w), C channels, E channels of a
head, S rows of tokens that see each other, L tokens of a row.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from ct3dlib.config import SliceEncoderSpec
from ct3dlib.config.base import Shape
from ct3dlib.nn.linear import Linear

Reach = Literal["plane", "z", "joint"]
# Between these distances, in a bias's units, scores are straight lines; beyond the last they stay.
# Steps double: neighbours of 1 mm are told apart, and a chest of 400 mm still lies within.
_KNOTS = tuple(2.0**power for power in range(10))
NUM_KNOTS = 2 * len(_KNOTS) + 1


class SliceBlock(nn.Module):
    """Attention, in one or more reaches one after the other, and feed-forward; each is added.

    Args:
        spec: Width, heads, feed-forward and dropout.
        reaches: Which tokens see each other, for each attention of the block.
        unit: Distance of two patches along z: mm, or 1 where it varies.
    """

    def __init__(self, spec: SliceEncoderSpec, reaches: tuple[Reach, ...], unit: float) -> None:
        super().__init__()
        width = spec.encoder.hidden_size
        inner = round(spec.encoder.mlp_ratio * width)
        self.attentions = nn.ModuleList(GridAttention(spec, reach, unit) for reach in reaches)
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-6)
        self.feed_forward = nn.Sequential(
            Linear(width, inner),
            nn.GELU(),
            nn.Dropout(spec.dropout),
            Linear(inner, width),
            nn.Dropout(spec.dropout),
        )

    def forward(
        self,
        tokens: Float[Tensor, "B N C"],
        grid: Shape,
        valid: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B N C"]:
        """Return the tokens after attention and feed-forward.

        Args:
            tokens: Of a grid, x fastest.
            grid: Tokens along z, y, x.
            valid: False where a token is padding, which no other takes from; None: all are scan.
        """
        for attention in self.attentions:
            tokens = tokens + attention(tokens, grid, valid)
        return tokens + self.feed_forward(self.feed_forward_norm(tokens))

    def start_in_planes_(self) -> None:
        """Let attention along z add nothing: a block that was trained on slices starts as that."""
        for attention in self.attentions:
            if isinstance(attention, GridAttention) and attention.reach == "z":
                nn.init.zeros_(attention.out.weight)
                nn.init.zeros_(attention.out.bias)


class GridAttention(nn.Module):
    """What tokens gather from those of their slice, of their column along z, or of the volume.

    Along z, each head adds a learned score of the distance to a key, in mm, so that thick and thin
    slices differ. Padding is never a key, except for rows of nothing else: those stay finite in
    every kernel, and nobody reads them.

    Args:
        spec: Width, heads and dropout.
        reach: Which tokens see each other.
        unit: Distance of two patches along z: mm, or 1 where it varies.
    """

    def __init__(self, spec: SliceEncoderSpec, reach: Reach, unit: float) -> None:
        super().__init__()
        width = spec.encoder.hidden_size
        self.reach: Reach = reach
        self.num_heads = spec.encoder.num_heads
        self.attention_dropout = spec.attention_dropout
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.dropout = nn.Dropout(spec.dropout)
        self.bias = DistanceBias(self.num_heads, unit) if reach == "z" else None

    def forward(
        self,
        tokens: Float[Tensor, "B N C"],
        grid: Shape,
        valid: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B N C"]:
        """Return what each token gathers; arguments are those of `SliceBlock.forward`."""
        qkv = self.qkv(self.norm(tokens)).unflatten(-1, (3, self.num_heads, -1))
        # 3 S num_heads L E
        query, key, value = to_rows(qkv, grid, reach=self.reach).permute(2, 0, 3, 1, 4)
        gathered = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=self._mask(query, grid, valid),
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        rows = gathered.transpose(1, 2).flatten(2)  # S L C
        return self.dropout(self.out(from_rows(rows, grid, reach=self.reach)))

    def _mask(self, query: Tensor, grid: Shape, valid: Tensor | None) -> Tensor | None:
        """Return which keys are seen, or what is added to their scores; None for nothing.

        Without a mask the fastest kernels run.
        """
        keys = None
        if valid is not None:
            rows = to_rows(valid, grid, reach=self.reach)  # S L
            keys = (rows | ~rows.any(1, keepdim=True))[:, None, None]  # S 1 1 L
        if self.bias is None:
            return keys
        scores = self.bias(query.shape[2])[None].to(query.dtype)  # 1 num_heads L L
        return scores if keys is None else torch.where(keys, scores, -torch.inf)


class DistanceBias(nn.Module):
    """A learned score for each head and each distance up or down, linear between knots.

    A continuous form of the relative bias of Liu et al. (arXiv:2103.14030, eq. 4): what was
    learnt at one slice thickness means the same at another. It is 0 at first.

    Args:
        num_heads: Of the attention.
        unit: Distance of two neighbours: mm, or 1 where it varies.
    """

    knots: Tensor

    def __init__(self, num_heads: int, unit: float) -> None:
        super().__init__()
        self.unit = unit
        knots = [-knot for knot in reversed(_KNOTS)] + [0.0, *_KNOTS]
        self.register_buffer("knots", torch.tensor(knots), persistent=False)
        self.table = nn.Parameter(torch.zeros(num_heads, NUM_KNOTS))

    def forward(self, count: int) -> Float[Tensor, "num_heads L L"]:
        """Return the scores of all pairs of a row of tokens, query first."""
        places = self.unit * torch.arange(count, device=self.knots.device, dtype=torch.float32)
        away = places - places[:, None]  # L L, positive where the key lies further up
        upper = torch.bucketize(away, self.knots).clamp(1, NUM_KNOTS - 1)
        start, stop = self.knots[upper - 1], self.knots[upper]
        share = ((away - start) / (stop - start)).clamp(0, 1)
        return self.table[:, upper - 1] * (1 - share) + self.table[:, upper] * share


def to_rows(
    x: Shaped[Tensor, "B N *rest"], grid: Shape, *, reach: Reach
) -> Shaped[Tensor, "S L *rest"]:
    """Return tokens in the rows in which they see each other."""
    depth, height, width = grid
    match reach:
        case "joint":
            return x
        case "plane":
            return x.unflatten(1, (depth, height * width)).flatten(0, 1)
        case "z":
            return x.unflatten(1, (depth, height * width)).transpose(1, 2).flatten(0, 1)


def from_rows(
    rows: Shaped[Tensor, "S L *rest"], grid: Shape, *, reach: Reach
) -> Shaped[Tensor, "B N *rest"]:
    """Return tokens in the order of their grid: the inverse of `to_rows`."""
    depth, height, width = grid
    match reach:
        case "joint":
            return rows
        case "plane":
            return rows.unflatten(0, (-1, depth)).flatten(1, 2)
        case "z":
            return rows.unflatten(0, (-1, height * width)).transpose(1, 2).flatten(1, 2)


def reaches_of(spec: SliceEncoderSpec) -> list[tuple[Reach, ...]]:
    """Return which tokens see each other in each block of an encoder, first to last."""
    blocks = range(spec.encoder.num_layers)
    match spec.attention:
        case "plane":
            return [("plane",) for _ in blocks]
        case "joint":
            return [("joint",) for _ in blocks]
        case "divided":
            return [("plane", "z") for _ in blocks]
        case "alternating":
            return [("z",) if block % 2 else ("plane",) for block in blocks]
        case "hierarchical":
            turn = spec.plane_blocks + 1
            return [("plane",) if (block + 1) % turn else ("joint",) for block in blocks]
