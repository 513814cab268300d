"""A BERT over the steps of a text, and what it makes of the whole and of each region.

Letters: B texts, S steps, L tokens of a step, M steps that are not empty, R regions, C channels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ct3dlib.config import TextEncoderSpec
from ct3dlib.config.encoder import VisionTransformerSpec
from ct3dlib.config.vlm import TextPooling
from ct3dlib.errors import CheckpointError
from ct3dlib.nn.occupancy import NUM_REGIONS

_POSITIONS = 512
# What a BERT must be for its shape to be told by a `TextEncoderSpec` alone.
_PLAIN = {
    "hidden_act": "gelu",
    "max_position_embeddings": _POSITIONS,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """What texts become.

    Args:
        global_: Of the whole text; 0 for a text without tokens.
        region: Mean of the tokens that speak of a region; 0 where none does.
        mentioned: Whether some token speaks of a region.
    """

    global_: Float[Tensor, "B C"]
    region: Float[Tensor, "B R C"]
    mentioned: Bool[Tensor, "B R"]


class TextEncoder(nn.Module):
    """Steps through BERT one by one; one learned query over the steps, which know their order.

    `rate` 0 freezes BERT, `bert`: no gradients, no dropout. What pools its steps is learnt.

    Args:
        spec: Of BERT. With `path` its weights are read from that folder.
        tokens: Size of the vocabulary.

    Raises:
        CheckpointError: The folder holds no BERT that can be used.
        ValueError: Texts are longer than a BERT reads.
    """

    def __init__(self, spec: TextEncoderSpec, tokens: int) -> None:
        super().__init__()
        self.bert = (
            _new(spec, tokens) if spec.path is None else _load(Path(spec.path), spec, tokens)
        )
        width: int = self.bert.config.hidden_size
        self.width = width
        self.spec = spec if spec.path is None else _without_path(spec, self.bert.config)
        self._tokens = tokens
        self._pooling: TextPooling = spec.pooling
        self.order = nn.Embedding(1 if spec.joined else spec.max_steps, width)
        self.order_norm = nn.LayerNorm(width)
        self.key = nn.Linear(width, width, bias=False)
        self.query = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.order.weight, std=0.3)
        nn.init.normal_(self.query)  # scores differ from the first step on
        self._frozen = spec.rate == 0
        if self._frozen:
            self.bert.requires_grad_(requires_grad=False).eval()

    def train(self, mode: bool = True) -> "TextEncoder":
        """Set the mode of all but a frozen BERT."""
        super().train(mode)
        if self._frozen:
            self.bert.eval()
        return self

    def forward(
        self, input_ids: Int[Tensor, "B S L"], token_regions: Int[Tensor, "B S L"]
    ) -> TextFeatures:
        """Return what texts become, in float32 at least.

        Args:
            input_ids: Tokens from the start of each step; 0: padding. Steps without tokens may
                stand anywhere, as may texts without steps.
            token_regions: Bit r - 1 is set where a token speaks of region r.

        Raises:
            ValueError: There are more steps than `max_steps`, or a token beyond the vocabulary.
        """
        if input_ids.shape[1] > self.order.num_embeddings:
            raise ValueError(
                f"texts of {input_ids.shape[1]} steps, wanted at most "
                f"{self.order.num_embeddings}; raise max_steps"
            )
        longest = max(1, int((input_ids != 0).sum(-1).max()))
        ids, bits = input_ids[..., :longest], token_regions[..., :longest]
        if (largest := int(ids.max())) >= self._tokens:
            raise ValueError(
                f"token {largest} of a vocabulary of {self._tokens}; use the tokenizer that "
                f"belongs to this text encoder"
            )
        filled = (ids != 0).any(-1)  # B S
        valid = ids[filled] != 0  # M L
        states, steps = self._read(ids[filled], valid)
        with torch.autocast(ids.device.type, enabled=False):
            told = bits[filled] * valid
            region, mentioned = _pool_regions(_wide(states), told, filled)
            return TextFeatures(self._pool_steps(_wide(steps), filled), region, mentioned)

    def blocks(self) -> list[nn.Module]:
        """Return BERT's layers."""
        return list(self.bert.encoder.layer)

    def _read(
        self, ids: Int[Tensor, "M L"], valid: Bool[Tensor, "M L"]
    ) -> tuple[Float[Tensor, "M L C"], Float[Tensor, "M C"]]:
        """Return BERT's states of all tokens and what stands for each step."""
        if not len(ids):
            states = self.order.weight.new_zeros(*ids.shape, self.width)
            return states, states[:, 0]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen):
            out = self.bert(input_ids=ids, attention_mask=valid.long())
        states = out.last_hidden_state
        match self._pooling:
            case "cls":
                return states, states[:, 0]
            case "mean":
                weights = valid[..., None].to(states.dtype)
                return states, (states * weights).sum(1) / weights.sum(1)
            case "pooler":
                return states, out.pooler_output

    def _pool_steps(
        self, steps: Float[Tensor, "M C"], filled: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B C"]:
        """Return the mean of the steps, each told its place, by attention to one query."""
        places = self.order.weight[: filled.shape[1]]  # S C
        rows = steps.new_zeros(*filled.shape, self.width)
        rows[filled] = steps
        rows = self.order_norm(rows + places)  # B S C
        scores = self.key(rows) @ self.query * self.width**-0.5  # B S
        weights = scores.masked_fill(~filled, torch.finfo(scores.dtype).min).softmax(-1)
        return torch.einsum("bs,bsc->bc", weights * filled, rows)


def _wide(values: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Return values in float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _pool_regions(
    states: Float[Tensor, "M L C"], bits: Int[Tensor, "M L"], filled: Bool[Tensor, "B S"]
) -> tuple[Float[Tensor, "B R C"], Bool[Tensor, "B R"]]:
    """Return the mean state of each region's tokens over all steps, and whether there is one."""
    shifts = torch.arange(NUM_REGIONS, device=bits.device)
    told = ((bits[..., None] >> shifts) & 1).to(states.dtype)  # M L R
    owner = filled.nonzero()[:, 0]  # M
    sums = states.new_zeros(len(filled), NUM_REGIONS, states.shape[-1])
    sums = sums.index_add(0, owner, told.transpose(1, 2) @ states)
    counts = states.new_zeros(len(filled), NUM_REGIONS).index_add(0, owner, told.sum(1))
    return sums / counts.clamp(min=1)[..., None], counts > 0


def _new(spec: TextEncoderSpec, tokens: int) -> Any:
    """Return a BERT with random weights."""
    # transformers takes seconds to import, and few programs read texts.
    from transformers import BertConfig, BertModel

    encoder = spec.encoder
    config = BertConfig(
        vocab_size=tokens,
        hidden_size=encoder.hidden_size,
        num_hidden_layers=encoder.num_layers,
        num_attention_heads=encoder.num_heads,
        intermediate_size=round(encoder.mlp_ratio * encoder.hidden_size),
        hidden_dropout_prob=spec.dropout,
        attention_probs_dropout_prob=spec.dropout,
        **_PLAIN,
    )
    return BertModel(config, add_pooling_layer=spec.pooling == "pooler")


def _load(folder: Path, spec: TextEncoderSpec, tokens: int) -> Any:
    """Return the BERT of a folder, its table of words cut to the vocabulary.

    Raises:
        CheckpointError: A file is missing or damaged, the BERT is of another build, lacks weights
            or knows fewer tokens than the vocabulary.
    """
    folder = folder.expanduser()
    _check_files(folder)
    from transformers import BertConfig, BertModel

    try:
        config = BertConfig.from_pretrained(folder, local_files_only=True)
        _check_config(config, folder, tokens)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = spec.dropout
        loaded: Any = BertModel.from_pretrained(
            folder,
            config=config,
            add_pooling_layer=spec.pooling == "pooler",
            attn_implementation="sdpa",
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
    except CheckpointError:
        raise
    except Exception as error:  # what readers of weights raise has no base but this
        raise CheckpointError(
            f"{folder}: no BERT can be read ({type(error).__name__}: {error}); fetch it again"
        ) from error
    bert, report = loaded
    if missing := sorted(report["missing_keys"]):
        way = "; choose pooling cls or mean" if all("pooler" in name for name in missing) else ""
        raise CheckpointError(f"{folder}: no weights of {', '.join(missing[:3])}{way}")
    if tokens < config.vocab_size:
        bert.resize_token_embeddings(tokens)
    return bert.train()


def _check_files(folder: Path) -> None:
    """Raise unless a folder has a BERT's config and weights."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder}: no config.json; model.text.path is a folder of a BERT, with its config, "
            f"weights and tokenizer: download it there, or set path to null for a small one"
        )
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise CheckpointError(
            f"{folder}: no weights, wanted {' or '.join(_WEIGHTS)}; download one of them"
        )


def _check_config(config: Any, folder: Path, tokens: int) -> None:
    """Raise unless a BERT is a plain one whose words are at least the tokenizer's."""
    for key, wanted in _PLAIN.items():
        if (found := getattr(config, key)) != wanted:
            raise CheckpointError(
                f"{folder}/config.json: {key} is {found}, wanted {wanted} as BERT has it; use "
                f"another text encoder"
            )
    if tokens > config.vocab_size:
        raise CheckpointError(
            f"{folder}: knows {config.vocab_size} tokens, but the tokenizer has {tokens}; they do "
            f"not belong together, use the tokenizer of this BERT"
        )


def _without_path(spec: TextEncoderSpec, config: Any) -> TextEncoderSpec:
    """Return a spec that builds the same network without its folder, to fill from a checkpoint."""
    encoder = VisionTransformerSpec(
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
    )
    return spec.model_copy(update={"path": None, "encoder": encoder})
