"""A text as arrays: token ids by steps, and which tokens speak of which region.

Letters: S steps, L tokens of a step, R regions.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int8, Int32
from numpy import ndarray
from tokenizers import Encoding, Tokenizer

from ct3dlib.config import TextEncoderSpec
from ct3dlib.regions.label_map import NUM_REGIONS
from ct3dlib.text.mentions import Mention, find_mentions
from ct3dlib.text.reasoning import Reasoning


@dataclass(frozen=True, eq=False)
class EncodedText:
    """One text.

    Args:
        input_ids: Tokens with [CLS] before and [SEP] after each step; 0: padding.
        token_regions: Bit r - 1 is set where a token is in a clause that mentions region r.
        mention: Of each region: -1 not mentioned, 0 normal, 1 abnormal in some clause.
        text_id: Of what the steps say; equal texts have one, whatever their case and blanks.
        truncated: Tokens of the text that found no place.
    """

    input_ids: Int32[ndarray, "S L"]
    token_regions: Int32[ndarray, "S L"]
    mention: Int8[ndarray, " R"]
    text_id: np.int64
    truncated: int


@dataclass(frozen=True)
class _Part:
    """Words that become one step, with what they mention."""

    text: str
    mentions: tuple[Mention, ...]
    encoding: Encoding

    @property
    def size(self) -> int:
        """Tokens, marks included."""
        return len(self.encoding.ids)


def encode(reasoning: Reasoning, tokenizer: Tokenizer, spec: TextEncoderSpec) -> EncodedText:
    """Return a text as arrays of S = `max_steps`, or 1 where the steps are joined.

    Steps keep their order. Of more than `max_steps` the shortest neighbours share one while they
    fit, so that a long report loses nothing; what is still too much is cut from the end and
    counted. A clause of which a token is cut mentions nothing. The question mentions nothing.

    Args:
        reasoning: At least one step, or a question where that alone is read.
        tokenizer: 0 is padding.
        spec: max_steps, max_tokens, joined, question, question_only.

    Raises:
        ValueError: The text has no steps, or no question where that alone is read.
    """
    steps = () if spec.question_only else reasoning.steps
    parts = [_part(step, find_mentions(step), tokenizer) for step in steps]
    if (spec.question or spec.question_only) and reasoning.question:
        parts = [_part(reasoning.question, (), tokenizer), *parts]
    if not (reasoning.question if spec.question_only else steps):
        what = "question" if spec.question_only else "steps"
        raise ValueError(f"a text without {what}; leave its study out")
    most = 1 if spec.joined else spec.max_steps
    parts = _join(parts, tokenizer, most=most, longest=None if spec.joined else spec.max_tokens)
    input_ids = np.zeros((most, spec.max_tokens), np.int32)
    token_regions = np.zeros_like(input_ids)
    mention = np.full(NUM_REGIONS, -1, np.int8)
    for step, part in enumerate(parts[:most]):
        _fill_(part, input_ids[step], token_regions[step], mention)
    kept = sum(min(part.size, spec.max_tokens) for part in parts[:most])
    marks = 2 * len(parts[most:])  # of steps that are left out
    return EncodedText(
        input_ids=input_ids,
        token_regions=token_regions,
        mention=mention,
        text_id=text_id(steps or (reasoning.question,)),
        truncated=sum(part.size for part in parts) - kept - marks,
    )


def text_id(steps: Sequence[str]) -> np.int64:
    """Return a hash of what steps say; case and blanks do not count."""
    plain = "\n".join(" ".join(step.casefold().split()) for step in steps)
    digest = hashlib.sha256(plain.encode("utf-8", "surrogatepass")).digest()
    return np.int64(int.from_bytes(digest[:8], "big", signed=True))


def _part(text: str, mentions: tuple[Mention, ...], tokenizer: Tokenizer) -> _Part:
    return _Part(text, mentions, tokenizer.encode(text))


def _join(
    parts: list[_Part], tokenizer: Tokenizer, *, most: int, longest: int | None
) -> list[_Part]:
    """Join neighbours until there are at most `most`, the shortest pair first.

    Args:
        parts: In order.
        tokenizer: Of their words.
        most: Parts that there may be.
        longest: Tokens of a joined part; None: as many as there are.
    """
    if most == 1 and longest is None:
        return [_merge(parts, tokenizer)]
    while len(parts) > most:
        sizes = [a.size + b.size - 2 for a, b in pairwise(parts)]
        first = min(range(len(sizes)), key=sizes.__getitem__)
        if longest is not None and sizes[first] > longest:
            break
        parts = [*parts[:first], _merge(parts[first : first + 2], tokenizer), *parts[first + 2 :]]
    return parts


def _merge(parts: Sequence[_Part], tokenizer: Tokenizer) -> _Part:
    """Return parts as one, their clauses moved along."""
    mentions: list[Mention] = []
    text = ""
    for part in parts:
        start = len(text) + 1 if text else 0
        text = f"{text} {part.text}" if text else part.text
        mentions += [
            Mention(one.region, one.start + start, one.end + start, one.abnormal)
            for one in part.mentions
        ]
    return _part(text, tuple(mentions), tokenizer)


def _fill_(
    part: _Part,
    input_ids: Int32[ndarray, " L"],
    token_regions: Int32[ndarray, " L"],
    mention: Int8[ndarray, " R"],
) -> None:
    """Write a step into its row; a longer one loses its end, not its [SEP]."""
    ids, offsets = part.encoding.ids, np.array(part.encoding.offsets)
    words = np.array(part.encoding.special_tokens_mask) == 0
    kept = len(ids)
    if kept > len(input_ids):
        kept = len(input_ids)
        ids = [*ids[: kept - 1], ids[-1]]
        lost = words.copy()
        lost[: kept - 1] = False
        end = int(offsets[lost, 0].min())  # where the text ends that is still read
        words[kept - 1] = False
    else:
        end = len(part.text)
    input_ids[:kept] = ids
    for one in part.mentions:
        inside = words[:kept] & (offsets[:kept, 0] < one.end) & (offsets[:kept, 1] > one.start)
        if one.end <= end and inside.any():
            token_regions[:kept][inside] |= 1 << (one.region - 1)
            mention[one.region - 1] = max(mention[one.region - 1], int(one.abnormal))
