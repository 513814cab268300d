"""Self-attention over a grid of latents, whole or in windows.

Letters: B batch, C channels, D H W the grid, P windows of a grid, N positions of a window,
E channels of a head.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ct3dlib.config import LatentAttentionSpec, Shape
from ct3dlib.nn.position import grid_positions


class LatentAttention(nn.Module):
    """Add to every latent what it gathers from the others of its window, or of the whole grid.

    Windows start at the grid's first corner and are not shifted. Those that reach past its end
    are filled up with positions that nobody attends to. A bias per head and offset within a
    window is that of Liu et al. (arXiv:2103.14030, eq. 4).

    Args:
        spec: Window, heads and dropout; a window of two axes is (H, W) of single slices.
        channels: Of the latents.
    """

    def __init__(self, spec: LatentAttentionSpec, channels: int) -> None:
        super().__init__()
        self.num_heads = spec.num_heads
        self.window = _as_shape(spec.window)
        width = spec.num_heads * spec.head_size
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * width, bias=False)
        self.out = nn.Linear(width, channels)
        self.dropout = nn.Dropout(spec.dropout)
        self.bias = (
            RelativeBias(self.window, spec.num_heads)
            if spec.relative_bias and self.window is not None
            else None
        )

    def forward(self, x: Float[Tensor, "B C D H W"]) -> Float[Tensor, "B C D H W"]:
        """Return the latents with what they gathered added."""
        _, _, depth, height, width = x.shape
        grid = (depth, height, width)
        window = self.window or grid
        windows = to_windows(self.norm(x.movedim(1, -1)), window)  # B P N C
        # 3 B*P num_heads N E
        query, key, value = (
            self.qkv(windows.flatten(0, 1))
            .unflatten(-1, (3, self.num_heads, -1))
            .permute(2, 0, 3, 1, 4)
        )
        mask = self._mask(grid, window, query)
        gathered = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        gathered = self.out(gathered.transpose(1, 2).flatten(2))  # B*P N C
        gathered = from_windows(gathered.unflatten(0, windows.shape[:2]), grid, window=window)
        return x + self.dropout(gathered.movedim(-1, 1))

    def _mask(self, grid: Shape, window: Shape, query: Tensor) -> Tensor | None:
        """Return what is added to the scores, B*P num_heads N N; None for nothing.

        Without a mask the fastest kernels run.
        """
        bias = None if self.bias is None else self.bias()[None]  # 1 num_heads N N
        if any(side % step for side, step in zip(grid, window, strict=True)):
            inside = windows_inside(grid, window, device=query.device)  # P N
            items = len(query) // len(inside)
            keys = inside.repeat(items, 1)[:, None, None]  # B*P 1 1 N
            scores = torch.zeros((), device=query.device) if bias is None else bias
            bias = torch.where(keys, scores, -torch.inf)
        return None if bias is None else bias.to(query.dtype)


class RelativeBias(nn.Module):
    """A learned score for each head and each offset between two positions of a window."""

    offsets: Int64[Tensor, "N N"]

    def __init__(self, window: Shape, num_heads: int) -> None:
        super().__init__()
        depth, height, width = (2 * side - 1 for side in window)
        self.table = nn.Parameter(torch.empty(num_heads, depth * height * width))
        nn.init.trunc_normal_(self.table, std=0.02)
        positions = grid_positions(window, torch.device("cpu")).long()
        # An offset runs from 1 - side to side - 1 along each axis; its row counts from 0.
        steps = positions[:, None] - positions + positions[-1]  # N N 3
        rows = (steps[..., 0] * height + steps[..., 1]) * width + steps[..., 2]
        self.register_buffer("offsets", rows, persistent=False)

    def forward(self) -> Float[Tensor, "num_heads N N"]:
        """Return the scores of all pairs, query first."""
        return self.table[:, self.offsets]


def to_windows(x: Float[Tensor, "B D H W C"], window: Shape) -> Float[Tensor, "B P N C"]:
    """Return the windows of a grid, filled up with zeros past its end."""
    depth, height, width = window
    end = (-x.shape[3] % width, -x.shape[2] % height, -x.shape[1] % depth)
    x = F.pad(x, (0, 0, 0, end[0], 0, end[1], 0, end[2]))
    x = x.unflatten(3, (-1, width)).unflatten(2, (-1, height)).unflatten(1, (-1, depth))
    # B D' d H' h W' w C to B D' H' W' d h w C
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(1, 3)


def from_windows(
    windows: Float[Tensor, "B P N C"], grid: Shape, *, window: Shape
) -> Float[Tensor, "B D H W C"]:
    """Return the grid whose windows these are: the inverse of `to_windows`."""
    counts = [-(-side // step) for side, step in zip(grid, window, strict=True)]
    x = windows.unflatten(2, window).unflatten(1, counts)  # B D' H' W' d h w C
    x = x.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)
    return x[:, : grid[0], : grid[1], : grid[2]]


def windows_inside(grid: Shape, window: Shape, *, device: torch.device) -> Bool[Tensor, "P N"]:
    """Return which positions of the windows lie in the grid, not past its end."""
    return to_windows(torch.ones(1, *grid, 1, device=device), window)[0, :, :, 0] > 0


def _as_shape(window: tuple[int, ...] | None) -> Shape | None:
    """Return a window as (D, H, W), one slice deep where it has two axes."""
    if window is None:
        return None
    depth, height, width = (1, *window)[-3:]
    return depth, height, width
