"""Scans, their regions and what was written of them, in one space.

Letters: B items, D H W voxels, N patches, R regions, S sentences of a text, L tokens of a
sentence, E the shared width.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor, nn

from ct3dlib.config import VlmNetworkSpec
from ct3dlib.models.slice_encoder import SliceEncoder, seen
from ct3dlib.models.text_encoder import TextEncoder
from ct3dlib.nn.linear import Linear

_LARGEST_SCALE = 100.0  # Radford et al., arXiv:2103.00020, section 2.5


class ScanEmbeddings(NamedTuple):
    """What a scan and its regions look like, vectors of length 1, float32.

    Args:
        global_: Of whole scans.
        region: Of their regions; of absent ones a vector that says so.
        present: Which regions a scan holds.
        local: Of patches, in the space of whole scans; None where nobody asked.
    """

    global_: Float[Tensor, "B E"]
    region: Float[Tensor, "B R E"]
    present: Bool[Tensor, "B R"]
    local: Float[Tensor, "B N E"] | None


class TextEmbeddings(NamedTuple):
    """What was written, vectors of length 1, float32.

    Args:
        global_: Of whole texts.
        region: Of what they say of each region; 0 where nothing.
        mentioned: Of which regions they say something.
    """

    global_: Float[Tensor, "B E"]
    region: Float[Tensor, "B R E"]
    mentioned: Bool[Tensor, "B R"]


class RegionLanguageModel(nn.Module):
    """A scan encoder and a text encoder, each projected into the shared space.

    `log_scale` and `region_log_scale` are logarithms of what cosines are multiplied by: of whole
    scans and of regions. They have one axis, of one number: what ranks share has an axis to share.
    """

    def __init__(self, spec: VlmNetworkSpec) -> None:
        super().__init__()
        self.vision = SliceEncoder(spec.vision, spec.shape, spec.spacing)
        self.text = TextEncoder(spec.text, spec.tokens)
        # What was read from a folder is kept with the weights: nobody needs the folder again.
        self.spec = spec.model_copy(update={"text": self.text.spec})
        width, text_width = spec.vision.encoder.hidden_size, self.text.width
        self.scan_projection = _projection(width, spec.embedding_size)
        self.region_projection = _projection(width, spec.embedding_size)
        self.text_projection = _projection(text_width, spec.embedding_size)
        learnt = spec.learnable_temperature
        start = torch.full((1,), -math.log(spec.temperature))
        self.log_scale = nn.Parameter(start.clone(), requires_grad=learnt)
        self.region_log_scale = nn.Parameter(start.clone(), requires_grad=learnt)

    def embed_scans(
        self,
        values: Shaped[Tensor, "B 1 D H W"],
        window: Float[Tensor, "B 2"],
        *,
        regions: UInt8[Tensor, "B 1 D H W"] | None = None,
        valid: Bool[Tensor, "B 1 D H W"] | None = None,
        known: Bool[Tensor, " B"] | None = None,
        want_local: bool = False,
    ) -> ScanEmbeddings:
        """Return the vectors of scans.

        Args:
            values: As stored: HU, or those of another domain.
            window: Values of the recipe's range, for each item.
            regions: 1 to 20, 0 and 255 elsewhere; None: of no item known.
            valid: False where a scan is padded; None: nowhere.
            known: Items whose regions the model may see; None: those that have any but 255.
            want_local: Also return the vectors of patches.
        """
        if regions is not None and known is None:
            known = (regions != 255).flatten(1).any(1)
        features = self.vision(
            seen(values, window, self.spec.vision.bounds),
            regions=regions,
            valid=valid,
            known=known,
            want_local=want_local,
        )
        local = features.local
        return ScanEmbeddings(
            global_=_unit(self.scan_projection(features.global_)),
            region=_unit(self.region_projection(features.region)),
            present=features.present,
            local=None if local is None else _unit(self.scan_projection(local)),
        )

    def embed_texts(
        self, input_ids: Int[Tensor, "B S L"], token_regions: Int[Tensor, "B S L"]
    ) -> TextEmbeddings:
        """Return the vectors of texts.

        Args:
            input_ids: Of the text tokenizer, 0 where there is none.
            token_regions: Bit r - 1 is set where a token's clause speaks of region r.
        """
        features = self.text(input_ids, token_regions)
        region = _unit(self.text_projection(features.region))
        return TextEmbeddings(
            global_=_unit(self.text_projection(features.global_)),
            region=torch.where(features.mentioned[..., None], region, 0.0),
            mentioned=features.mentioned,
        )

    def scales(self) -> tuple[Float[Tensor, "1"], Float[Tensor, "1"]]:
        """Return what cosines of whole scans and those of regions are multiplied by."""
        largest = math.log(_LARGEST_SCALE)
        return (
            _AtMost.apply(self.log_scale, largest).exp(),
            _AtMost.apply(self.region_log_scale, largest).exp(),
        )

    def blocks(self) -> Sequence[nn.Module]:
        """Return the repeated blocks of both encoders."""
        return [*self.vision.blocks(), *self.text.bert.encoder.layer]


class _AtMost(torch.autograd.Function):
    """The smaller of a number and its bound, which a step down may always leave again.

    With the gradient of a plain minimum, one step beyond the bound would be for good.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(value > bound)
        return value.clamp(max=bound)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (beyond,) = ctx.saved_tensors
        return gradient.masked_fill(beyond & (gradient < 0), 0.0), None


def _projection(width: int, size: int) -> Linear:
    """Return a linear map without bias that keeps lengths on average."""
    projection = Linear(width, size, bias=False)
    nn.init.normal_(projection.weight, std=width**-0.5)
    return projection


def _unit(vectors: Float[Tensor, "*rows E"]) -> Float[Tensor, "*rows E"]:
    """Return vectors of length 1, in float32 at least."""
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    return F.normalize(vectors.to(dtype), dim=-1)
