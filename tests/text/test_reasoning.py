"""Rows of a catalog as texts."""

import math

import pytest

from ct3dlib.text.reasoning import Reasoning, read_reasoning


def row(**columns):
    empty = {"findings": "", "impressions": "", "question": "", "answer": "", "qa_source": None}
    return {**empty, **columns}


def test_report_is_read_in_order_and_before_the_answer():
    found = read_reasoning(
        row(
            findings="Heart is normal. A nodule of 3.5 mm is seen.",
            impressions="Nodule.",
            question="Is there a nodule?",
            answer="Yes.",
            qa_source="vqa",
        )
    )
    steps = ("Heart is normal.", "A nodule of 3.5 mm is seen.", "Nodule.")
    assert found == Reasoning("Is there a nodule?", steps, "vqa")


def test_answer_stands_for_a_missing_report():
    found = read_reasoning(row(question="What is it?", answer="A cyst. Or two.", qa_source="vqa"))
    assert found.steps == ("A cyst.", "Or two.")


def test_pair_made_up_of_a_report_says_so():
    texts = {"findings": "Clear lungs.", "impressions": "Normal.", "answer": "Clear lungs. Normal."}
    found = read_reasoning(row(**texts, question="What does it show?", qa_source="template"))
    assert found == Reasoning("What does it show?", ("Clear lungs.", "Normal."), "template")


def test_reasoning_beside_findings_is_read_step_by_step():
    steps = "1. The lesion is bright. It is round. 2. So it is a stone."
    found = read_reasoning(
        row(findings="A stone.", question="What is it?", answer=steps, qa_source="template")
    )
    assert found.steps == ("The lesion is bright. It is round.", "So it is a stone.")


def test_lines_of_a_reasoning_stay():
    answer = "First, e.g. this. And that.\n\nThen the other."
    found = read_reasoning(row(question="What?", answer=answer, qa_source="vqa"))
    assert found.steps == ("First, e.g. this. And that.", "Then the other.")


def test_report_without_a_question():
    found = read_reasoning(row(findings="Clear lungs."))
    assert found == Reasoning("", ("Clear lungs.",), "report")


@pytest.mark.parametrize("empty", [None, math.nan, "", "Not given.", "  \n "])
def test_nothing_written_is_too_short(empty):
    found = read_reasoning(row(findings=empty, impressions=empty, answer=empty, question=empty))
    assert found == Reasoning("", (), "report")
    assert found.tokens == 0
    assert found.too_short


def test_ten_tokens_are_too_short_and_eleven_are_not():
    ten = Reasoning("", ("One two three four.", "Five, six seven."), "report")  # 5 + 5
    assert (ten.tokens, ten.too_short) == (10, True)
    eleven = Reasoning("", ("One two three four.", "Five, six seven eight."), "report")
    assert (eleven.tokens, eleven.too_short) == (11, False)


class OnlyTexts(dict):
    def get(self, key, default=None):
        assert key in {"findings", "impressions", "question", "answer", "qa_source"}
        return super().get(key, default)

    def __getitem__(self, key):
        return self.get(key)


def test_names_of_volumes_never_get_in():
    named = row(
        volume="train_53_a_1",
        findings="In train_53_a_1.nii.gz a nodule. See valid_7_b and x/y.nii too.",
        question="What does train_53_a_1 show?",
        answer="A nodule.",
        qa_source="vqa",
    )
    found = read_reasoning(OnlyTexts(named))
    assert found.steps == ("In a nodule.", "See and too.")
    assert found.question == "What does show?"


def test_half_characters_are_left_out():
    assert read_reasoning(row(findings="A \ud83d nodule.")).steps == ("A nodule.",)
