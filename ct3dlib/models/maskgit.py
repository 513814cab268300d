"""The token transformer: which index stands at each masked position of a grid of tokens?

Chang et al., MaskGIT (arXiv:2202.04200), on 3D grids of any size. An index of many bits is split
into groups, each with its own embedding and its own classes, so that the heads of an 18-bit
codebook have 2 x 512 outputs and not 262,144 (Yu et al., arXiv:2310.05737, section 3.1).

Letters: B items, D H W the token grid, N = D x H x W tokens, C hidden channels, G groups of an
index, K classes of a group, L labels.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ct3dlib.config import MaskGITNetworkSpec
from ct3dlib.nn.position import grid_positions, rotary_angles, sincos_3d
from ct3dlib.nn.transformer import AdaLNZeroBlock


def split_groups(
    indices: Int[Tensor, "*shape"], *, num_groups: int, bits_per_group: int
) -> Int[Tensor, "*shape G"]:
    """Return the classes of each index's bit groups; group 0 holds the most significant bits."""
    shifts = bits_per_group * torch.arange(num_groups - 1, -1, -1, device=indices.device)
    return (indices.unsqueeze(-1) >> shifts) & (2**bits_per_group - 1)


def join_groups(classes: Int[Tensor, "*shape G"], *, bits_per_group: int) -> Int[Tensor, "*shape"]:
    """Return the indices whose bit groups are `classes`: the inverse of `split_groups`."""
    num_groups = classes.shape[-1]
    shifts = bits_per_group * torch.arange(num_groups - 1, -1, -1, device=classes.device)
    return (classes << shifts).sum(-1)


class MaskGIT(nn.Module):
    """Bidirectional transformer over a grid of indices, some of them masked.

    Labels steer every block through AdaLN-Zero; items without labels have a condition of their
    own, which label guidance contrasts with.
    """

    def __init__(self, spec: MaskGITNetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        hidden, groups, classes = spec.hidden_size, spec.num_groups, 2**spec.bits_per_group
        # Tokens start with the unit variance that the sines and cosines have beside them.
        self.group_embeddings = nn.Embedding(groups * classes, hidden)
        nn.init.normal_(self.group_embeddings.weight, std=groups**-0.5)
        self.masked_embedding = nn.Parameter(torch.randn(hidden))
        self.label_embeddings = nn.Parameter(torch.randn(spec.num_labels, hidden))
        self.presence_embeddings = nn.Parameter(torch.randn(2, hidden))  # labels absent, present
        self.dropout = nn.Dropout(spec.dropout)
        self.blocks = nn.ModuleList(AdaLNZeroBlock(spec) for _ in range(spec.num_layers))
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.heads = nn.Linear(hidden, groups * classes)

    def forward(
        self,
        indices: Int[Tensor, "B D H W"],
        masked: Bool[Tensor, "B D H W"],
        *,
        labels: Float[Tensor, "B L"],
        label_present: Bool[Tensor, " B"],
    ) -> Float[Tensor, "B D H W G K"]:
        """Return the logits of every group at every position.

        Args:
            indices: In [0, 2^bits); what stands at masked positions is ignored.
            masked: True where the index is hidden.
            labels: Multi-hot, in [0, 1]; ignored where absent.
            label_present: Whether an item has labels.
        """
        _, *grid = indices.shape
        positions = grid_positions((grid[0], grid[1], grid[2]), indices.device)  # N 3
        angles = rotary_angles(positions, self.spec.head_size)
        condition = self._condition(labels, label_present)
        # Rotations see distances only; without absolute positions a grid that is all masked would
        # be the same everywhere.
        tokens = self._embed(indices.flatten(1), masked.flatten(1))  # B N C
        tokens = self.dropout(tokens + sincos_3d(positions, self.spec.hidden_size))
        for block in self.blocks:
            tokens = block(tokens, condition=condition, angles=angles)
        logits = self.heads(self.norm(tokens))
        return logits.unflatten(-1, (self.spec.num_groups, -1)).unflatten(1, grid)

    def _condition(
        self, labels: Float[Tensor, "B L"], label_present: Bool[Tensor, " B"]
    ) -> Float[Tensor, "B C"]:
        """Return a vector per item: the sum of its labels' vectors and of their presence's."""
        labels = torch.where(label_present[:, None], labels, 0.0)
        return labels @ self.label_embeddings + self.presence_embeddings[label_present.long()]

    def _embed(
        self, indices: Int[Tensor, "B N"], masked: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B N C"]:
        """Return the sum of the group embeddings of each index, or the masked embedding."""
        classes = split_groups(
            indices, num_groups=self.spec.num_groups, bits_per_group=self.spec.bits_per_group
        )
        first_row = torch.arange(self.spec.num_groups, device=indices.device)
        first_row = first_row << self.spec.bits_per_group
        visible = self.group_embeddings(classes + first_row).sum(-2)
        return torch.where(masked[..., None], self.masked_embedding, visible)
