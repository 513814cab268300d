"""The text tokenizers: trained ones, and those of a BERT's folder."""

import json
import os
import subprocess
import sys

import pytest
from tokenizers import Tokenizer

from ct3dlib.errors import CheckpointError
from ct3dlib.text.tokenizer import (
    SPECIAL,
    load_tokenizer,
    save_tokenizer,
    tokenizer_sha256,
    train_tokenizer,
)

TEXTS = [
    f"{size} mm nodule in the {side} {zone} lobe."
    for size in range(3, 12)
    for side in ("left", "right")
    for zone in ("upper", "lower")
] + ["The heart is normal.", "No pleural effusion.", "Œsophagus: 3 µm, ≥ 2 cm."]
PIECES = [*SPECIAL, "heart", "the", "no", "##dule", "##s", "The", "Heart", ".", "é", "e"]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(TEXTS, 400)


def write_vocabulary(folder, pieces, **settings):
    folder.joinpath("vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    if settings:
        folder.joinpath("tokenizer_config.json").write_text(json.dumps(settings))


def test_marks_have_the_first_ids(trained):
    assert [trained.token_to_id(mark) for mark in SPECIAL] == [0, 1, 2, 3, 4]
    assert 261 < trained.get_vocab_size() <= 400


def test_words_that_are_frequent_are_one_token(trained):
    tokens = trained.encode("the left lobe").tokens
    assert tokens == ["[CLS]", "\u0120the", "\u0120left", "\u0120lobe", "[SEP]"]


@pytest.mark.parametrize("text", ["Unknown wörds, 3.5 ± 2 cm²!", "日本 🫁", "a  b\tc\nd", "[CLS?]"])
def test_any_text_can_be_read_back(trained, text):
    encoding = trained.encode(text)
    assert 1 not in encoding.ids
    assert trained.decode(encoding.ids) == " " + text  # a word is one token, wherever it stands


def test_offsets_cover_the_words_without_blanks(trained):
    text = "No nodule of 4 mm in the µ-heart."
    encoding = trained.encode(text)
    words = [
        (start, end)
        for (start, end), mark in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
        if not mark
    ]
    covered = sorted({place for start, end in words for place in range(start, end)})
    assert covered == [place for place, letter in enumerate(text) if letter != " "]


def test_order_and_repetitions_do_not_count(trained):
    other = train_tokenizer([*TEXTS[::-1], *TEXTS, " "], 400)
    assert other.to_str() == trained.to_str()
    assert tokenizer_sha256(other) == tokenizer_sha256(trained)
    assert tokenizer_sha256(train_tokenizer(TEXTS, 300)) != tokenizer_sha256(trained)


def test_another_process_writes_the_same_bytes(trained, tmp_path):
    save_tokenizer(trained, tmp_path / "here")
    code = (
        "import sys, json, pathlib\n"
        "from ct3dlib.text.tokenizer import save_tokenizer, train_tokenizer\n"
        "texts = set(json.loads(sys.stdin.read()))\n"  # another order in each process
        "save_tokenizer(train_tokenizer(texts, 400), pathlib.Path(sys.argv[1]))\n"
    )
    for seed, threads in (("1", "true"), ("2", "false")):
        there = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", code, str(there)],
            input=json.dumps(TEXTS),
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": threads},
        )
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert there.joinpath(name).read_bytes() == tmp_path.joinpath("here", name).read_bytes()


def test_folder_is_read_here_and_by_transformers(trained, tmp_path):
    save_tokenizer(trained, tmp_path)
    again = load_tokenizer(tmp_path)
    assert tokenizer_sha256(again) == tokenizer_sha256(trained)
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = "A 4 mm nodule; no effusion."
    assert theirs(text)["input_ids"] == trained.encode(text).ids
    assert [theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id] == [0, 1, 2]
    assert [theirs.sep_token_id, theirs.mask_token_id] == [3, 4]


def test_bert_with_a_vocabulary_alone_is_transformers_own(tmp_path):
    write_vocabulary(tmp_path, PIECES)
    from transformers import BertTokenizer

    ours = load_tokenizer(tmp_path)
    theirs = BertTokenizer.from_pretrained(tmp_path, do_lower_case=False)
    for text in ("The heart no nodules.", "Héart é [MASK] xyz"):
        assert ours.encode(text).ids == theirs(text)["input_ids"]


@pytest.mark.parametrize(
    ("pieces", "settings", "tokens"),
    [
        (PIECES, {}, ["The", "Heart", "é"]),  # capitals: cased, as BioBERT
        ([p for p in PIECES if p in SPECIAL or p == p.lower()], {}, ["the", "heart", "e"]),
        (PIECES, {"do_lower_case": True}, ["the", "heart", "e"]),
    ],
    ids=["cased", "uncased", "stated"],
)
def test_case_is_that_of_the_vocabulary(tmp_path, pieces, settings, tokens):
    write_vocabulary(tmp_path, pieces, **settings)
    found = load_tokenizer(tmp_path).encode("The Heart É".replace("É", "é")).tokens
    assert found == ["[CLS]", *tokens, "[SEP]"]


def test_padding_and_cuts_of_a_folder_are_taken_off(trained, tmp_path):
    other = Tokenizer.from_str(trained.to_str())
    other.enable_truncation(4)
    other.enable_padding(length=8)
    other.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer_sha256(load_tokenizer(tmp_path)) == tokenizer_sha256(trained)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"none: no tokenizer\.json or vocab\.txt; put a BERT"
    ):
        load_tokenizer(tmp_path / "none")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_file_is_named(tmp_path, name):
    write_vocabulary(tmp_path, PIECES)
    tmp_path.joinpath(name).write_text("{")
    with pytest.raises(
        CheckpointError, match=r"(tokenizer\.json|vocab\.txt): no tokenizer \(.*again"
    ):
        load_tokenizer(tmp_path)


def test_padding_must_be_zero(tmp_path):
    write_vocabulary(tmp_path, ["heart", *PIECES])
    with pytest.raises(CheckpointError, match=r"vocab\.txt: \[PAD\] has id 1, wanted 0"):
        load_tokenizer(tmp_path)


def test_marks_must_stand_around_a_text(trained, tmp_path):
    plain = json.loads(trained.to_str())
    plain["post_processor"] = None
    tmp_path.joinpath("tokenizer.json").write_text(json.dumps(plain))
    with pytest.raises(CheckpointError, match=r"wanted \[CLS\] before and \[SEP\] after it"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("texts", "vocabulary", "message"),
    [
        ([" ", ""], 400, "no texts to train a tokenizer on"),
        (TEXTS, 260, "a vocabulary of 260 tokens, wanted at least 261"),
    ],
)
def test_what_cannot_be_trained(texts, vocabulary, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(texts, vocabulary)
