from typing import Any

import pytest

from ct3dlib.text.reports import Report, clean, sections, stated_pair, template_pair


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Not given.", ""),
        (" not given ", ""),
        ("nan", ""),
        ("", ""),
        ('"Both lungs are clear."', "Both lungs are clear."),
        ("['Both lungs are clear.']", "Both lungs are clear."),
        ("'Clear.'", "Clear."),
        ("Nodule (4 mm)\n  in the\tright lung.", "Nodule (4 mm) in the right lung."),
        ("Bochdalek's hernia; aorta 'normal'", "Bochdalek's hernia; aorta 'normal'"),
        ("Size [cm] is normal.", "Size [cm] is normal."),
        ("Nodule. Size [4 mm]", "Nodule. Size [4 mm]"),
    ],
)
def test_clean_leaves_the_words(text: str, wanted: str) -> None:
    assert clean(text) == wanted
    assert clean(wanted) == wanted


def test_sections_take_findings_and_impressions() -> None:
    cells = {"Findings_EN": " Clear. ", "Impressions_EN": "Not given.", "Technique_EN": "x"}
    assert sections(cells) == Report("Clear.", "")


def test_template_answers_with_the_report() -> None:
    question, answer = template_pair(Report("Clear lungs.", "Normal."))
    assert question.endswith("?")
    assert answer == "Clear lungs. Normal."
    assert template_pair(Report()) == ("", "")


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        ({"question": "Is it?", "answer": "No."}, ("Is it?", "No.")),
        (
            {
                "conversations": [
                    {"from": "human", "value": "<image>\nIs it?<long_answer>"},
                    {"from": "gpt", "value": "No."},
                    {"from": "human", "value": "And?"},
                ]
            },
            ("Is it?", "No."),
        ),
        ({"question": "Is it?", "answer": "Not given."}, ("", "")),
        ({"question": "Is it?"}, ("", "")),
        ({"conversations": []}, ("", "")),
    ],
)
def test_stated_pair_reads_both_forms(record: dict[str, Any], wanted: tuple[str, str]) -> None:
    assert stated_pair(record) == wanted
