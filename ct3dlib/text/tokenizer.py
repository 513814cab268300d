"""Text tokenizers: a byte-level BPE trained on the reports, or that of a BERT on disk.

Both give [CLS] before and [SEP] after a text, and 0 for [PAD]. Trained is always the same: from the
same texts come the same bytes, in whatever order and process. Of tokenizers' trainers that holds
for byte-level BPE with a sorted alphabet, not for WordPiece.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from ct3dlib.errors import CheckpointError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4
_FAST, _VOCABULARY, _SETTINGS = "tokenizer.json", "vocab.txt", "tokenizer_config.json"
_LONGEST = 512


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Return a byte-level BPE of the texts: any text can be written in it, and read back.

    Args:
        texts: Of the train split alone; their order and repetitions do not count.
        vocabulary: Most tokens; fewer where the texts have no more pairs that come twice.

    Raises:
        ValueError: There are no texts, or the vocabulary cannot hold the 256 bytes and the marks.
    """
    corpus = sorted({text for text in texts if text.strip()})
    least = len(pre_tokenizers.ByteLevel.alphabet()) + len(SPECIAL)
    if not corpus:
        raise ValueError("no texts to train a tokenizer on; the train split has no reports")
    if vocabulary < least:
        raise ValueError(f"a vocabulary of {vocabulary} tokens, wanted at least {least}")
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    # Offsets leave out the blank before a word.
    offsets = processors.ByteLevel(trim_offsets=True)
    tokenizer.post_processor = processors.Sequence([offsets, _marks(tokenizer)])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer into a folder from which `load_tokenizer` and transformers read it."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": _LONGEST,
        "clean_up_tokenization_spaces": False,
        **{f"{mark[1:-1].lower()}_token": mark for mark in SPECIAL},
    }
    (folder / _FAST).write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (folder / _SETTINGS).write_text(text, encoding="utf-8")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder: tokenizer.json, else a BERT's vocab.txt.

    Nothing is fetched. A vocabulary with capitals is cased, whatever its folder leaves unsaid:
    BioBERT's does.

    Raises:
        CheckpointError: The folder or its files are missing or damaged, or the tokenizer does not
            mark texts as BERT does.
    """
    folder = folder.expanduser()
    fast, vocabulary = folder / _FAST, folder / _VOCABULARY
    if not fast.is_file() and not vocabulary.is_file():
        raise CheckpointError(
            f"{folder}: no {_FAST} or {_VOCABULARY}; put a BERT with its tokenizer there, or leave "
            f"model.text.path out for one that is trained here"
        )
    path = fast if fast.is_file() else vocabulary
    try:
        tokenizer = Tokenizer.from_file(str(fast)) if path == fast else _word_pieces(vocabulary)
    except Exception as error:  # tokenizers raises nothing narrower
        raise CheckpointError(f"{path}: no tokenizer ({error}); fetch it again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _check(tokenizer, path)
    return tokenizer


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """Return the sha256 of a tokenizer: vocabulary, merges and rules."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def _marks(tokenizer: Tokenizer) -> processors.TemplateProcessing:
    """Return what puts [CLS] and [SEP] around a text."""
    marks = [(mark, tokenizer.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")]
    return processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)


def _word_pieces(path: Path) -> Tokenizer:
    """Return BERT's tokenizer of a list of word pieces (Devlin et al., arXiv:1810.04805)."""
    pieces = path.read_text(encoding="utf-8").splitlines()
    capitals = any(piece != piece.lower() for piece in pieces if piece not in SPECIAL)
    lower = bool(_settings(path.parent / _SETTINGS).get("do_lower_case", not capitals))
    table = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(table, unk_token="[UNK]"))
    tokenizer.add_special_tokens([mark for mark in SPECIAL if mark in table])
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    if "[CLS]" in table and "[SEP]" in table:
        tokenizer.post_processor = _marks(tokenizer)
    return tokenizer


def _settings(path: Path) -> dict[str, Any]:
    """Return a folder's settings; none where there are none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _check(tokenizer: Tokenizer, path: Path) -> None:
    """Refuse a tokenizer whose [PAD] is not 0 or that leaves texts without [CLS] and [SEP]."""
    if (pad := tokenizer.token_to_id("[PAD]")) != 0:
        raise CheckpointError(f"{path}: [PAD] has id {pad}, wanted 0; use a BERT's tokenizer")
    tokens = tokenizer.encode("heart").tokens
    if tokens[0] != "[CLS]" or tokens[-1] != "[SEP]":
        raise CheckpointError(
            f"{path}: a text becomes {tokens}, wanted [CLS] before and [SEP] after it; use a "
            f"BERT's tokenizer"
        )
