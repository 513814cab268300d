"""One vector for a volume and one for each of its regions, gathered from its tokens.

Letters: B volumes, N tokens, C channels, R regions, Q = 1 + R queries: the volume's first.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ct3dlib.config.encoder import VisionTransformerSpec
from ct3dlib.nn.linear import Linear
from ct3dlib.nn.occupancy import NUM_REGIONS


class Pooled(NamedTuple):
    """Vectors of volumes.

    Args:
        global_: Of the whole volume.
        region: Of each region; where a region is known to be absent, what stands for that.
    """

    global_: Float[Tensor, "B C"]
    region: Float[Tensor, "B R C"]


class RegionPool(nn.Module):
    """Attention of learned queries, one for the volume and one for each region, to its tokens.

    A region's query sees its own patches alone, each with the log of the region's share added to
    its score: shares then weigh a patch as often as its voxels would. All queries read the same
    keys and values, so a volume is projected once.

    Args:
        spec: Width and heads.
    """

    def __init__(self, spec: VisionTransformerSpec) -> None:
        super().__init__()
        width = spec.hidden_size
        self.num_heads = spec.num_heads
        # Queries are learnt where keys are: a projection of them would be learnt twice.
        self.queries = nn.Parameter(torch.empty(1 + NUM_REGIONS, width))
        self.absent = nn.Parameter(torch.empty(NUM_REGIONS, width))
        self.key_value = Linear(width, 2 * width)
        self.out = Linear(width, width)
        for table in (self.queries, self.absent):
            nn.init.normal_(table, std=0.02)

    def forward(
        self,
        tokens: Float[Tensor, "B N C"],
        occupied: Float[Tensor, "B N R"],
        *,
        present: Bool[Tensor, "B R"],
        known: Bool[Tensor, " B"],
        valid: Bool[Tensor, "B N"] | None = None,
    ) -> Pooled:
        """Return the vectors of volumes and of their regions; finite also where there is nothing.

        Args:
            tokens: Normalised.
            occupied: Shares of patches, as of `occupancy`.
            present: Which regions a volume has.
            known: False where nothing is known of a volume's regions: its queries look anywhere,
                whatever the other two say.
            valid: False where a token is padding, which nobody looks at; None: all are scan.
        """
        heads = (self.num_heads, -1)
        # 2 B num_heads N E
        key, value = self.key_value(tokens).unflatten(-1, (2, *heads)).permute(2, 0, 3, 1, 4)
        query = self.queries.unflatten(-1, heads).transpose(0, 1).to(key.dtype)
        query = query.expand(len(tokens), -1, -1, -1)  # B num_heads Q E
        scores = bias(occupied, known=known, valid=valid)[:, None].to(key.dtype)
        gathered = F.scaled_dot_product_attention(query, key, value, attn_mask=scores)
        pooled = self.out(gathered.transpose(1, 2).flatten(2))  # B Q C
        seen = (present | ~known[:, None])[..., None]
        return Pooled(pooled[:, 0], torch.where(seen, pooled[:, 1:], self.absent))


def bias(
    occupied: Float[Tensor, "B N R"],
    *,
    known: Bool[Tensor, " B"],
    valid: Bool[Tensor, "B N"] | None,
) -> Float[Tensor, "B Q N"]:
    """Return what is added to the scores of tokens: -inf where a query must not look.

    A query that could look nowhere looks everywhere: softmax of nothing is no number in some
    kernels, and what it gathers is not used.
    """
    # A share is 0, whose log is -inf, or at least one voxel: no epsilon is needed.
    shares = torch.where(known[:, None, None], occupied.log(), 0.0)
    scores = F.pad(shares, (1, 0))  # the volume's own query: 0 everywhere
    if valid is not None:
        scores = torch.where(valid[..., None], scores, -torch.inf)
    blind = scores.isneginf().all(1, keepdim=True)
    return torch.where(blind, 0.0, scores).transpose(1, 2).contiguous()
