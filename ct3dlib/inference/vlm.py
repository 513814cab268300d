"""A trained vision-language encoder in use: vectors of scans, of their regions and of texts.

Letters: B and N items, D H W voxels, R regions, S sentences of a text, L tokens of a sentence,
E the shared width.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from ct3dlib.config import RecipeSpec, Shape
from ct3dlib.errors import CheckpointError
from ct3dlib.models.exported import load_model
from ct3dlib.models.vlm import RegionLanguageModel, ScanEmbeddings
from ct3dlib.regions.label_map import LABEL_MAP_VERSION
from ct3dlib.text.encoding import EncodedText, encode
from ct3dlib.text.mentions import lexicon_version
from ct3dlib.text.reasoning import Reasoning
from ct3dlib.text.tokenizer import load_tokenizer, tokenizer_sha256

logger = logging.getLogger(__name__)

TOKENIZER = "tokenizer"  # the folder beside a model's weights
_TEXTS = 32  # at a time


@dataclass(frozen=True, eq=False)
class TextTable:
    """Texts in the shared space.

    Args:
        global_: Vectors of whole texts, of length 1.
        region: Vectors of what they say of each region; 0 where nothing.
        mention: -1 where a region is not mentioned or its mention was cut off, 0 where it is
            called normal, 1 abnormal.
        text_ids: Equal for equal texts.
        region_ids: Equal where texts say the same of a region.
        truncated: Tokens or sentences that did not fit, of all texts.
    """

    global_: Float[np.ndarray, "N E"]
    region: Float[np.ndarray, "N R E"]
    mention: Int[np.ndarray, "N R"]
    text_ids: Int[np.ndarray, " N"]
    region_ids: Int[np.ndarray, "N R"]
    truncated: int


@dataclass(frozen=True, eq=False)
class TrainedVlm:
    """A trained vision-language encoder with its tokenizer and the volumes it is for.

    Args:
        model: In eval mode.
        recipe: How its volumes were normalised.
        tokenizer: Of its texts.
        sha256: Hash of its weights.
    """

    model: RegionLanguageModel
    recipe: RecipeSpec
    tokenizer: Tokenizer
    sha256: str

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"the model {self.sha256[:12]}"

    @property
    def shape(self) -> Shape:
        """Voxels of a volume, in the model's order of axes."""
        return self.model.spec.shape

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.model.log_scale.device

    @property
    def scale(self) -> float:
        """What cosines of whole scans and texts are multiplied by."""
        return float(self.model.scales()[0].detach())

    @torch.inference_mode()
    def embed_volumes(
        self,
        values: Shaped[Tensor, "B 1 D H W"],
        window: Float[Tensor, "B 2"],
        *,
        regions: UInt8[Tensor, "B 1 D H W"] | None = None,
        valid: Bool[Tensor, "B 1 D H W"] | None = None,
        want_local: bool = False,
    ) -> ScanEmbeddings:
        """Return the vectors of stored volumes, on the CPU.

        Args:
            values: As stored, in the model's order of axes.
            window: Values that map to the ends of the recipe's range.
            regions: 1 to 20, 0 elsewhere; 255 all over where they are not known.
            valid: False where a volume is padded; None: nowhere.
            want_local: Also the vectors of patches.
        """
        device = self.device
        found = self.model.embed_scans(
            values.to(device),
            window.to(device),
            regions=None if regions is None else regions.to(device),
            valid=None if valid is None else valid.to(device),
            want_local=want_local,
        )
        return ScanEmbeddings(
            found.global_.cpu(),
            found.region.cpu(),
            found.present.cpu(),
            None if found.local is None else found.local.cpu(),
        )

    def embed_texts(self, texts: Sequence[Reasoning]) -> TextTable:
        """Return the vectors of texts and of what they say of each region.

        Raises:
            ValueError: There is no text.
        """
        if not texts:
            raise ValueError("there is no text to embed")
        spec = self.model.spec.text
        encoded = [encode(text, self.tokenizer, spec) for text in texts]
        starts = range(0, len(encoded), _TEXTS)
        parts = [self._embed(encoded[start : start + _TEXTS]) for start in starts]
        global_, region, mentioned = (np.concatenate(part) for part in zip(*parts, strict=True))
        mention = np.where(mentioned, np.stack([one.mention for one in encoded]), -1)
        return TextTable(
            global_=global_,
            region=region,
            mention=mention.astype(np.int8),
            text_ids=np.array([one.text_id for one in encoded], np.int64),
            region_ids=np.stack([_region_ids(one, mention.shape[1]) for one in encoded]),
            truncated=sum(one.truncated for one in encoded),
        )

    def embed_sentences(self, sentences: Sequence[str]) -> Float[np.ndarray, "N E"]:
        """Return the vectors of sentences, each a text by itself, of length 1."""
        return self.embed_texts([Reasoning("", (text,), "report") for text in sentences]).global_

    @torch.inference_mode()
    def _embed(
        self, texts: Sequence[EncodedText]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        """Return the vectors of texts, of their regions, and which they mention."""
        ids, regions = (
            torch.from_numpy(np.stack(arrays)).to(self.device)
            for arrays in ([t.input_ids for t in texts], [t.token_regions for t in texts])
        )
        found = self.model.embed_texts(ids, regions)
        return (
            found.global_.cpu().numpy(),
            found.region.cpu().numpy(),
            found.mentioned.cpu().numpy(),
        )


def load_vlm(folder: Path, device: torch.device) -> TrainedVlm:
    """Load a trained vision-language encoder with its tokenizer onto a device.

    A lexicon of another version is warned of: what counts as a mention is then another thing than
    in training.

    Raises:
        CheckpointError: A file is missing or damaged, it is another kind of model, its contract
            has holes, the tokenizer is another one, or region ids meant something else.
    """
    loaded = load_model(folder)
    if not isinstance(loaded.module, RegionLanguageModel):
        raise CheckpointError(
            f"{folder}: a {type(loaded.module).__name__}, no vision-language encoder; give what "
            f"the rule vlm trained"
        )
    tokenizer = load_tokenizer(folder / TOKENIZER)
    recipe = _check_contract(folder, loaded.contract, tokenizer_sha256(tokenizer))
    return TrainedVlm(loaded.module.to(device), recipe, tokenizer, loaded.sha256)


def vlm_contract(recipe: RecipeSpec, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what a model's file says of the scans and texts it is for."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "lexicon": lexicon_version(),
        "label_map": LABEL_MAP_VERSION,
    }


def freshly_drawn(model: TrainedVlm, *, seed: int) -> TrainedVlm:
    """Return a model of the same spec, recipe and tokenizer that has learnt nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model.model)(model.model.spec)
    return replace(model, model=fresh.eval().to(model.device), sha256="0" * 64)


def _check_contract(folder: Path, contract: Mapping[str, Any], tokenizer: str) -> RecipeSpec:
    """Return the recipe of a contract that fits the tokenizer and this program."""
    try:
        recipe = RecipeSpec.model_validate(contract["recipe"])
        wanted, lexicon = contract["tokenizer_sha256"], contract["lexicon"]
        label_map = contract["label_map"]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{folder}: its contract is incomplete ({error})") from error
    if wanted != tokenizer:
        raise CheckpointError(
            f"{folder / TOKENIZER}: sha256 is {tokenizer[:12]}, the model was trained with "
            f"{wanted[:12]}; put the tokenizer of its training there"
        )
    if label_map != LABEL_MAP_VERSION:
        raise CheckpointError(
            f"{folder}: trained on label map {label_map}, this program has {LABEL_MAP_VERSION}: "
            f"its regions are other ones; train the model again"
        )
    if lexicon != lexicon_version():
        logger.warning(
            "%s: trained with lexicon %s of mentions, this program has %s: scores of regions are "
            "of other mentions than its training",
            *(folder, lexicon, lexicon_version()),
        )
    return recipe


def _region_ids(text: EncodedText, num_regions: int) -> NDArray[np.int64]:
    """Return a hash of the tokens that a text has for each region."""
    found = []
    for r in range(num_regions):
        tokens = text.input_ids[text.token_regions >> r & 1 == 1]
        digest = hashlib.sha256(tokens.astype(np.int32).tobytes()).digest()
        found.append(int.from_bytes(digest[:8], "little", signed=True))
    return np.array(found, np.int64)
