"""The token transformer: which index stands at each masked position of a grid of tokens?

Chang et al., MaskGIT (arXiv:2202.04200), on 3D grids of any size. An index is split into digits,
each with its own embedding and its own classes, so that the heads of an 18-bit codebook have
2 x 512 outputs and not 262,144 (Yu et al., arXiv:2310.05737, section 3.1). The digits of an FSQ
index are the levels of its channels.

Letters: B items, D H W the token grid, N = D x H x W tokens, C hidden channels, G digits of an
index, K classes of the largest digit, L labels, E numbers of a text's embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from ct3dlib.config import MaskGITNetworkSpec
from ct3dlib.nn.position import grid_positions, rotary_angles, sincos_3d
from ct3dlib.nn.transformer import AdaLNZeroBlock, PreNormBlock

# Finite, so that differences of logits stay numbers, and far below any that a head makes.
_IMPOSSIBLE = -1e4


class Digits(nn.Module):
    """Indices as digits of mixed radix, the least significant first.

    Args:
        radices: Classes of each digit; their product is the size of the codebook.
    """

    radices: Int64[Tensor, " G"]
    weights: Int64[Tensor, " G"]
    possible: Bool[Tensor, "G K"]

    def __init__(self, radices: Sequence[int]) -> None:
        super().__init__()
        sizes = torch.tensor(radices)
        weights = torch.cat((torch.ones(1, dtype=torch.int64), sizes.cumprod(0)[:-1]))
        self.register_buffer("radices", sizes, persistent=False)
        self.register_buffer("weights", weights, persistent=False)
        possible = torch.arange(max(radices)) < sizes[:, None]
        self.register_buffer("possible", possible, persistent=False)

    def split(self, indices: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape G"]:
        """Return the digits of each index."""
        return indices.unsqueeze(-1) // self.weights % self.radices

    def join(self, digits: Int[Tensor, "*shape G"]) -> Int[Tensor, "*shape"]:
        """Return the indices of digits: the inverse of `split`."""
        return (digits * self.weights).sum(-1)


@dataclass(frozen=True, eq=False)
class Source:
    """Another volume that is translated, of the same grid.

    Args:
        indices: In the codebook; ignored where absent.
        labels: Multi-hot, what it is; ignored where absent.
        present: Whether an item has a source.
    """

    indices: Int[Tensor, "B D H W"]
    labels: Float[Tensor, "B L"]
    present: Bool[Tensor, " B"]


@dataclass(frozen=True, eq=False)
class Text:
    """What a text says of each item.

    Args:
        embeddings: What an encoder made of it, of any scale; ignored where absent.
        present: Whether an item has a text.
    """

    embeddings: Float[Tensor, "B E"]
    present: Bool[Tensor, " B"]


@dataclass(frozen=True, eq=False)
class Conditions:
    """What is asked of each item.

    Args:
        labels: Multi-hot, in [0, 1]; ignored where absent.
        label_present: Whether an item has labels.
        source: What is translated, of a model that sees one; None: nothing.
        text: What it is to show, of a model that reads; None: no text.
    """

    labels: Float[Tensor, "B L"]
    label_present: Bool[Tensor, " B"]
    source: Source | None = None
    text: Text | None = None


class MaskGIT(nn.Module):
    """Bidirectional transformer over a grid of indices, some of them masked.

    Labels steer every block through AdaLN-Zero; items without labels have a condition of their
    own, which guidance contrasts with. The tokens of a source join those at their own positions,
    and its labels steer beside the labels that are wanted. In context, the condition is a token
    before all others, and those of a source stand between, at their own positions. The text of an
    item is one vector, and joins its labels.
    """

    def __init__(self, spec: MaskGITNetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        hidden, num_digits, classes = spec.hidden_size, len(spec.radices), max(spec.radices)
        self.digits = Digits(spec.radices)
        # Tokens start with the unit variance that the sines and cosines have beside them.
        self.digit_embeddings = nn.Embedding(num_digits * classes, hidden)
        nn.init.normal_(self.digit_embeddings.weight, std=num_digits**-0.5)
        self.masked_embedding = nn.Parameter(torch.randn(hidden))
        self.label_embeddings = nn.Parameter(torch.randn(spec.num_labels, hidden))
        self.presence_embeddings = nn.Parameter(torch.randn(2, hidden))  # labels absent, present
        if spec.source:
            self.source_tokens = nn.Linear(hidden, hidden)
            self.source_label_embeddings = nn.Parameter(torch.randn(spec.num_labels, hidden))
            self.source_presence_embeddings = nn.Parameter(torch.randn(2, hidden))
        if spec.text_size:
            # Without bias: what an absent text says is said by its presence alone.
            self.text_embedding = nn.Linear(spec.text_size, hidden, bias=False)
            self.text_presence_embeddings = nn.Parameter(torch.randn(2, hidden))
        self.dropout = nn.Dropout(spec.dropout)
        kind = AdaLNZeroBlock if spec.conditioning == "adaln" else PreNormBlock
        self.blocks = nn.ModuleList(kind(spec) for _ in range(spec.num_layers))
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.heads = nn.Linear(hidden, num_digits * classes)

    def forward(
        self,
        indices: Int[Tensor, "B D H W"],
        masked: Bool[Tensor, "B D H W"],
        conditions: Conditions,
        *,
        start: Int[Tensor, " B"] | None = None,
        wanted: Bool[Tensor, "B D H W"] | None = None,
    ) -> Float[Tensor, "B D H W G K"]:
        """Return the logits of every digit at every position.

        Classes that a digit does not have get logits of -10,000.

        Args:
            indices: In the codebook; what stands at masked positions is ignored.
            masked: True where the index is hidden.
            conditions: What is asked for.
            start: Where the indices begin in their volume, tokens along D; None: at its first.
            wanted: Positions whose logits are used: the last block does without the others', which
                are anything. None: all.

        Raises:
            ValueError: A source is given to a model without one, or a text that it cannot read.
        """
        source = self._source(conditions, indices)
        _, *grid = indices.shape
        positions = grid_positions((grid[0], grid[1], grid[2]), indices.device)  # N 3
        angles = rotary_angles(positions, self.spec.head_size)
        condition = self._condition(conditions, source)
        # Rotations see distances only; without absolute positions a grid that is all masked would
        # be the same everywhere.
        visible = self._embed(indices.flatten(1))  # B N C
        tokens = torch.where(masked.flatten(1)[..., None], self.masked_embedding, visible)
        places = sincos_3d(_moved(positions, start), self.spec.hidden_size)  # [B] N C
        context = [] if source is None else [self._source_tokens(source)]
        at = None if wanted is None else _places(wanted)
        if self.spec.conditioning == "adaln":
            tokens = self.dropout(sum(context, tokens + places))
            for block in self.blocks:
                here = at if block is self.blocks[-1] else None
                tokens = block(tokens, condition=condition, angles=angles, at=here)
        else:
            parts = [part + places for part in (*context, tokens)]
            sequence = self.dropout(torch.cat((condition[:, None], *parts), dim=1))
            # The condition is nowhere: it does not turn.
            turns = torch.cat((torch.zeros_like(angles[:1]), *[angles] * len(parts)))
            before = sequence.shape[1] - len(angles)
            for block in self.blocks:
                here = before + at if at is not None and block is self.blocks[-1] else None
                sequence = block(sequence, turns, here)
            tokens = sequence[:, before:] if at is None else sequence
        logits = self.heads(self.norm(tokens)).unflatten(-1, self.digits.possible.shape)
        if at is not None:
            everywhere = logits.new_zeros(len(logits), len(angles), *logits.shape[2:])
            logits = everywhere.scatter(1, at[..., None, None].expand_as(logits), logits)
        return logits.masked_fill(~self.digits.possible, _IMPOSSIBLE).unflatten(1, grid)

    def _source(self, conditions: Conditions, indices: Int[Tensor, "B D H W"]) -> Source | None:
        """Return the source of a model that sees one, absent where none is given."""
        source = conditions.source
        if not self.spec.source:
            if source is not None:
                raise ValueError("this model was trained without a source; leave it out")
            return None
        if source is None:
            absent = torch.zeros(len(indices), dtype=torch.bool, device=indices.device)
            return Source(torch.zeros_like(indices), torch.zeros_like(conditions.labels), absent)
        return source

    def _source_tokens(self, source: Source) -> Float[Tensor, "B N C"]:
        """Return what is seen of a source, zeros where it is absent."""
        seen = self.source_tokens(self._embed(source.indices.flatten(1)))
        return torch.where(source.present[:, None, None], seen, 0.0)

    def _condition(self, conditions: Conditions, source: Source | None) -> Float[Tensor, "B C"]:
        """Return a vector per item: the sum of all that is asked, and of what is there of it."""
        present = conditions.label_present
        labels = torch.where(present[:, None], conditions.labels, 0.0)
        found = labels @ self.label_embeddings + self.presence_embeddings[present.long()]
        if source is not None:
            labels = torch.where(source.present[:, None], source.labels, 0.0)
            presence = self.source_presence_embeddings[source.present.long()]
            found = found + labels @ self.source_label_embeddings + presence
        text = self._text(conditions)
        if text is not None:
            embeddings = torch.where(text.present[:, None], text.embeddings, 0.0)
            # Encoders differ in scale, and some make lengths of 1: here the variance is 1 of all.
            said = self.text_embedding(F.layer_norm(embeddings, embeddings.shape[1:], eps=1e-8))
            found = found + said + self.text_presence_embeddings[text.present.long()]
        return found

    def _text(self, conditions: Conditions) -> Text | None:
        """Return the text of a model that reads, absent where none is given."""
        text, size = conditions.text, self.spec.text_size
        if text is not None and text.embeddings.shape[1] != size:
            wanted = f"{size}; ask the same encoder" if size else "no text; leave it out"
            raise ValueError(
                f"the text's embeddings have {text.embeddings.shape[1]} numbers, this model was "
                f"trained with {wanted}"
            )
        if text is None and size:
            labels = conditions.labels
            absent = torch.zeros_like(conditions.label_present)
            return Text(labels.new_zeros(len(labels), size), absent)
        return text

    def _embed(self, indices: Int[Tensor, "B N"]) -> Float[Tensor, "B N C"]:
        """Return the sum of the digit embeddings of each index."""
        num_digits, classes = self.digits.possible.shape
        first_row = classes * torch.arange(num_digits, device=indices.device)
        return self.digit_embeddings(self.digits.split(indices) + first_row).sum(-2)


def _places(wanted: Bool[Tensor, "B D H W"]) -> Int64[Tensor, "B M"]:
    """Return where the wanted positions of each item are, and others where it wants fewer."""
    flat = wanted.flatten(1)
    most = int(flat.sum(1).max())
    return flat.float().topk(most, dim=1).indices


def _moved(
    positions: Float[Tensor, "N 3"], start: Int[Tensor, " B"] | None
) -> Float[Tensor, "*batch N 3"]:
    """Return where the tokens are in their volumes, which are told apart where items start."""
    if start is None:
        return positions
    along_d = positions.new_tensor([1.0, 0.0, 0.0])
    return positions + start[:, None, None] * along_d
