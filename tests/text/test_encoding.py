"""Texts as arrays."""

import numpy as np
import pytest

from ct3dlib.config import TextEncoderSpec
from ct3dlib.text.encoding import encode, text_id
from ct3dlib.text.reasoning import Reasoning
from ct3dlib.text.tokenizer import train_tokenizer

STEPS = (
    "The heart is enlarged, no pleural effusion.",
    "Both lungs are clear.",
    "The liver is normal; a nodule in the left upper lobe.",
)
TOKENIZER = train_tokenizer([*STEPS, *(f"{step} " for step in STEPS)], 320)
SPEC = TextEncoderSpec(max_steps=5, max_tokens=64)


def reasoning(*steps: str, question: str = "What is there?") -> Reasoning:
    return Reasoning(question, steps, "vqa")


def words(ids) -> str:
    return TOKENIZER.decode(ids.tolist())


def told(encoded, region: int) -> list[str]:
    """Return the words of each step that speak of a region."""
    chosen = (encoded.token_regions >> (region - 1)) & 1 == 1
    return [
        words(ids[one]).strip()
        for ids, one in zip(encoded.input_ids, chosen, strict=True)
        if one.any()
    ]


def test_steps_become_rows_in_order():
    encoded = encode(reasoning(*STEPS), TOKENIZER, SPEC)
    assert encoded.input_ids.shape == encoded.token_regions.shape == (5, 64)
    assert encoded.input_ids.dtype == encoded.token_regions.dtype == np.int32
    assert [words(row).strip() for row in encoded.input_ids] == [*STEPS, "", ""]
    for step, row in zip(STEPS, encoded.input_ids, strict=False):
        ids = TOKENIZER.encode(step).ids
        assert row.tolist() == ids + [0] * (64 - len(ids))
        assert (ids[0], ids[-1]) == (2, 3)
    assert encoded.truncated == 0


def test_tokens_tell_of_the_regions_of_their_clause():
    encoded = encode(reasoning(*STEPS), TOKENIZER, SPEC)
    assert told(encoded, 8) == ["The heart is enlarged"]
    assert told(encoded, 13) == ["no pleural effusion."]
    assert told(encoded, 15) == ["The liver is normal"]
    assert told(encoded, 1) == ["Both lungs are clear.", "a nodule in the left upper lobe."]
    assert told(encoded, 2) == ["Both lungs are clear."]
    assert told(encoded, 19) == []
    assert not encoded.token_regions[np.isin(encoded.input_ids, (0, 2, 3))].any()


def test_worst_word_on_a_region_counts():
    mention = encode(reasoning(*STEPS), TOKENIZER, SPEC).mention
    wanted = np.full(20, -1)
    wanted[[1 - 1, 8 - 1]] = 1
    wanted[[2 - 1, 3 - 1, 4 - 1, 5 - 1, 13 - 1, 15 - 1]] = 0
    assert mention.dtype == np.int8
    assert mention.tolist() == wanted.tolist()


def test_region_twenty_has_its_bit():
    encoded = encode(reasoning("A rib is broken."), TOKENIZER, SPEC)
    assert encoded.token_regions.max() == 1 << 19
    assert encoded.mention[19] == 1


def test_question_stands_first_and_mentions_nothing():
    asked = reasoning(*STEPS, question="Is the spine normal?")
    spec = SPEC.model_copy(update={"question": True})
    encoded, without = encode(asked, TOKENIZER, spec), encode(asked, TOKENIZER, SPEC)
    assert words(encoded.input_ids[0]).strip() == "Is the spine normal?"
    assert np.array_equal(encoded.input_ids[1:4], without.input_ids[:3])
    assert encoded.mention.tolist() == without.mention.tolist()
    assert encoded.text_id == without.text_id
    nothing = encode(reasoning(*STEPS, question=""), TOKENIZER, spec)
    assert np.array_equal(nothing.input_ids, without.input_ids)


def test_question_alone_tells_nothing_of_the_answer():
    spec = SPEC.model_copy(update={"question_only": True})
    encoded = encode(reasoning(*STEPS), TOKENIZER, spec)
    other = encode(reasoning("Another answer."), TOKENIZER, spec)
    assert words(encoded.input_ids[0]).strip() == "What is there?"
    assert not encoded.input_ids[1:].any()
    assert np.array_equal(encoded.input_ids, other.input_ids)
    assert encoded.text_id == other.text_id
    assert (encoded.mention == -1).all()
    with pytest.raises(ValueError, match="a text without question; leave its study out"):
        encode(reasoning(*STEPS, question=""), TOKENIZER, spec)


def test_joined_steps_are_one_row_with_the_same_mentions():
    spec = SPEC.model_copy(update={"joined": True, "max_tokens": 256})
    encoded, apart = (encode(reasoning(*STEPS), TOKENIZER, one) for one in (spec, SPEC))
    assert encoded.input_ids.shape == (1, 256)
    assert words(encoded.input_ids[0]).strip() == " ".join(STEPS)
    assert encoded.mention.tolist() == apart.mention.tolist()
    assert encoded.text_id == apart.text_id
    assert [told(encoded, region) for region in (8, 13)] == [told(apart, 8), told(apart, 13)]
    assert encoded.truncated == 0


def test_what_is_cut_is_counted_and_not_mentioned():
    size = len(TOKENIZER.encode(STEPS[0]).ids)
    spec = SPEC.model_copy(update={"max_tokens": size - 1})
    encoded = encode(reasoning(STEPS[0]), TOKENIZER, spec)
    ids = TOKENIZER.encode(STEPS[0]).ids
    assert encoded.input_ids[0].tolist() == [*ids[: size - 2], 3]
    assert encoded.truncated == 1
    assert told(encoded, 8) == ["The heart is enlarged"]  # its clause is whole
    assert encoded.mention[[7, 12]].tolist() == [1, -1]  # of pleura a token is lost
    assert not (encoded.token_regions >> 12 & 1).any()


def test_joined_steps_beyond_the_end_are_counted():
    spec = SPEC.model_copy(update={"joined": True, "max_tokens": 24})
    encoded = encode(reasoning(*STEPS), TOKENIZER, spec)
    everything = len(TOKENIZER.encode(" ".join(STEPS)).ids)
    assert encoded.truncated == everything - 24
    assert encoded.input_ids[0, -1] == 3
    assert encoded.mention[15 - 1] == -1


def test_long_reports_share_steps_and_lose_nothing():
    steps = [f"Nodule {number} of the liver." for number in range(9)]
    encoded = encode(reasoning(*steps), TOKENIZER, SPEC)
    rows = [words(row).strip() for row in encoded.input_ids]
    assert all(rows)
    assert " ".join(rows) == " ".join(steps)
    assert encoded.truncated == 0
    assert "".join(told(encoded, 15)).replace(" ", "") == "".join(steps).replace(" ", "")


def test_steps_without_a_place_are_counted():
    steps = [f"Nodule {number} of the liver." for number in range(4)]
    sizes = [len(TOKENIZER.encode(step).ids) for step in steps]
    spec = SPEC.model_copy(update={"max_steps": 2, "max_tokens": max(sizes)})
    encoded = encode(reasoning(*steps), TOKENIZER, spec)
    assert [words(row).strip() for row in encoded.input_ids] == steps[:2]
    assert encoded.truncated == sum(sizes[2:]) - 4


def test_text_id_is_of_the_words():
    assert text_id(["A  nodule.", "Two"]) == text_id(["a nodule. ", "two"])
    assert text_id(["A nodule."]) != text_id(["No nodule."])
    assert text_id(["Two", "A nodule."]) != text_id(["A nodule.", "Two"])
    # printf 'a nodule.' | sha256sum
    assert text_id(["A nodule."]) == -4633856143614564712


def test_text_without_steps_is_refused():
    with pytest.raises(ValueError, match="a text without steps; leave its study out"):
        encode(reasoning(), TOKENIZER, SPEC)
