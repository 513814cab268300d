"""Ends of sentences, and steps that are told apart by lines or numbers."""

import pytest

from ct3dlib.text.sentences import split_sentences, split_steps

SENTENCES = {
    "plain": ("Heart is normal. Lungs are clear.", ("Heart is normal.", "Lungs are clear.")),
    "decimal": ("A mass of 3.5 mm is seen. Ok.", ("A mass of 3.5 mm is seen.", "Ok.")),
    "abbreviation": ("Signs, e.g. Kerley lines. Ok.", ("Signs, e.g. Kerley lines.", "Ok.")),
    "figure": ("See Fig. 2 for it. Ok.", ("See Fig. 2 for it.", "Ok.")),
    "number": ("Nodule No. 4 grew. No. It shrank.", ("Nodule No. 4 grew.", "No.", "It shrank.")),
    "unit_ends": ("It is 2 cm. The heart.", ("It is 2 cm.", "The heart.")),
    "unit_goes_on": ("It is 2 cm. in size. Ok.", ("It is 2 cm. in size.", "Ok.")),
    "segment": (
        "It is in segment 2. The rest is clear.",
        ("It is in segment 2.", "The rest is clear."),
    ),
    "no_blank": (
        "A nodule is seen.The heart is normal.",
        ("A nodule is seen.", "The heart is normal."),
    ),
    "lower_case": ("clear lungs. normal heart.", ("clear lungs.", "normal heart.")),
    "brackets": ("Nodules (4 mm). Ok!", ("Nodules (4 mm).", "Ok!")),
    "numbered": ("1. Clear. Really. 2. Normal.", ("Clear.", "Really.", "Normal.")),
    "heading": ("Impression: 1. Nodule. 2. Fluid.", ("Impression:", "Nodule.", "Fluid.")),
    "bullets": ("- A nodule\n* Fluid\n\n", ("A nodule", "Fluid")),
    "question": ("Is it clear? Yes.", ("Is it clear?", "Yes.")),
    "artery": ("The a. carotis is open. Ok.", ("The a. carotis is open.", "Ok.")),
    "nothing": (" . \n - ", ()),
}


@pytest.mark.parametrize(("text", "wanted"), SENTENCES.values(), ids=SENTENCES)
def test_sentences_end_where_they_end(text, wanted):
    assert split_sentences(text) == wanted


@pytest.mark.parametrize("text", [one[0] for one in SENTENCES.values()], ids=SENTENCES)
def test_splitting_again_changes_nothing(text):
    once = split_sentences(text)
    assert tuple(part for one in once for part in split_sentences(one)) == once


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Look at it. See.\nConclude. Stop.", ("Look at it. See.", "Conclude. Stop.")),
        ("1. Look. See. 2. Conclude.", ("Look. See.", "Conclude.")),
        ("Step 1: Look. See. Step 2: Conclude.", ("Look. See.", "Conclude.")),
        ("1) Look.\n2) Conclude.", ("Look.", "Conclude.")),
        ("Look. See. Conclude.", ("Look.", "See.", "Conclude.")),
        ("1. Only one number. It is none.", ("Only one number.", "It is none.")),
        ("2. A list that begins late. 3. It is none.", ("A list that begins late.", "It is none.")),
    ],
    ids=["lines", "numbers", "words", "brackets", "sentences", "one", "late"],
)
def test_steps_are_as_written(text, wanted):
    assert split_steps(text) == wanted
