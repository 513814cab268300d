import json
from pathlib import Path

import pytest

from ct3dlib.cohort.catalog import Row
from ct3dlib.config import CatalogSpec
from ct3dlib.datasets import build_catalog, read_dataset
from ct3dlib.errors import DatasetError
from tests.datasets.trees import (
    omniabnorm_entry,
    reasoning,
    write_json,
    write_omniabnorm,
    write_omniabnorm_single,
    write_picture,
)


def _rows(root: Path) -> dict[str, Row]:
    rows = list(read_dataset("omniabnorm", root))
    by_id = {row.volume: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


def _message(row: Row) -> str:
    assert row.problem_message is not None
    return row.problem_message


def test_slices_masks_and_texts_of_a_case_are_joined(tmp_path: Path) -> None:
    write_omniabnorm(tmp_path)
    row = _rows(tmp_path)["12_1_0_7"]
    names = [f"{n}.{'jpeg' if n % 2 else 'jpg'}" for n in (-4, -3, -2, -1, 0, 1, 2, 3, 4)]
    assert row.sources == tuple(f"image/12_1_0_7/{name}" for name in names)
    assert (row.kind, row.domain, row.shape, row.spacing) == (
        "pictures",
        "window8",
        (9, 5, 6),
        None,
    )
    # The mask of the first abnormality, which is called 1, comes first.
    assert row.lesion_mask == "mask/12_1_0_7/1.jpeg"
    assert row.findings == "Cyst of 12_1_0_7. Stone."
    assert (row.question, row.answer, row.qa_source) == (
        "What does this CT image show?",
        "Cyst of 12_1_0_7. Stone.",
        "template",
    )
    assert row.label is None
    one, two = (f"mask/12_1_0_7/{name}.jpeg" for name in (1, 0))
    assert json.loads(row.metadata) == {
        "offsets": [-4, -3, -2, -1, 0, 1, 2, 3, 4],
        "masks": {"1": one, "0": two},
        "abnormalities": [
            {"id": "1", "text": "Cyst of 12_1_0_7.", "category": "cyst", "mask": one},
            {"id": "0", "text": "Stone.", "category": "stone", "mask": two},
        ],
    }


def test_key_slices_of_a_patient_stay_in_one_split(tmp_path: Path) -> None:
    write_omniabnorm(tmp_path)
    patients = {row.volume: row.patient for row in _rows(tmp_path).values()}
    assert patients == {"12_1_0_7": "12", "12_2_0_3": "12", "13_1_0_5": "13", "14_1_0_2": "14"}
    for seed in range(5):
        spec = CatalogSpec(
            dataset="omniabnorm", shards={"train": 1, "tune": 1, "valid": 1}, seed=seed
        )
        frame = build_catalog(tmp_path, spec)
        assert frame.groupby("patient")["split"].nunique().max() == 1


def test_single_pictures_are_joined_with_their_reasoning(tmp_path: Path) -> None:
    write_omniabnorm_single(tmp_path)
    rows = _rows(tmp_path)
    row = rows["a_1"]
    assert (row.sources, row.shape) == (("images/a_1.jpg",), (1, 5, 6))
    assert (row.lesion_mask, row.label) == ("masks/a_1.jpg", "nodule")
    assert (row.answer, row.qa_source) == ("Look at a_1. A nodule.", "template")
    assert (row.patient, row.findings) == ("a_1", "")
    metadata = json.loads(row.metadata)
    assert metadata["steps"] == ["Look at a_1.", "A nodule."]
    assert (metadata["region"], metadata["offsets"]) == ("Chest", [0])
    assert rows["c_1"].lesion_mask == "images/c_1_mask.jpg"


def test_both_kinds_of_entry_of_a_case_are_one(tmp_path: Path) -> None:
    write_omniabnorm(tmp_path)
    write_json(tmp_path / "cot/one.json", reasoning("13_1_0_5"))
    stated = {"question": "Where?", "answer": "Liver.", **reasoning("12_1_0_7")}
    write_json(tmp_path / "cot/more.json", {"results": [stated]})
    rows = _rows(tmp_path)
    assert len(rows) == 4
    row = rows["13_1_0_5"]
    assert row.findings == "Cyst of 13_1_0_5. Stone."
    assert row.answer == "Look at 13_1_0_5. A nodule."
    assert json.loads(row.metadata)["abnormalities"][2] == {"category": "nodule"}
    other = rows["12_1_0_7"]
    assert (other.question, other.answer, other.qa_source) == ("Where?", "Liver.", "vqa")


@pytest.mark.parametrize(
    "image",
    ["image/13_1_0_5/0.jpg", "C:\\data\\image\\13_1_0_5", "", "/elsewhere/9_9_9_9"],
    ids=["file", "other_system", "not_stated", "unknown"],
)
def test_slices_are_found_by_path_or_id(tmp_path: Path, image: str) -> None:
    write_omniabnorm(tmp_path)
    entry = {**omniabnorm_entry("13_1_0_5"), "image": image}
    write_json(tmp_path / "12_1_0_7.json", {"13_1_0_5": entry})
    row = _rows(tmp_path)["13_1_0_5"]
    assert row.problem is None
    assert len(row.sources) == 9


def test_of_two_folders_of_a_case_the_stated_one_counts(tmp_path: Path) -> None:
    for folder in ("first/1_0", "second/1_0"):
        write_picture(tmp_path / f"{folder}/0.jpg")
    write_json(tmp_path / "cases.json", {"1_0": {"image": "/data/second/1_0", "abnormality": []}})
    rows = _rows(tmp_path)
    assert rows["1_0"].sources == ("second/1_0/0.jpg",)
    again = rows["1_0-2"]
    assert (again.sources, again.problem) == (("first/1_0/0.jpg",), "DUPLICATE_NAME")
    assert _message(again) == "1_0-2: second/1_0 has this name too; rename or remove one"


def test_cases_called_by_numbers_are_told_from_slices(tmp_path: Path) -> None:
    for name in ("7", "8"):
        write_picture(tmp_path / f"images/{name}.jpg")
        write_picture(tmp_path / f"masks/{name}.jpg")
    write_json(tmp_path / "cot.json", [reasoning("7"), reasoning("8")])
    rows = _rows(tmp_path)
    assert {name: (row.sources, row.lesion_mask) for name, row in rows.items()} == {
        "7": (("images/7.jpg",), "masks/7.jpg"),
        "8": (("images/8.jpg",), "masks/8.jpg"),
    }


def test_what_does_not_match_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_omniabnorm_single(tmp_path)
    write_picture(tmp_path / "images/lone.jpg")
    write_picture(tmp_path / "masks/nobody.jpg")
    write_json(tmp_path / "cot/batch_2.json", [reasoning("gone")])
    rows = _rows(tmp_path)
    assert rows["lone"].problem is None
    assert rows["lone"].answer == ""
    assert (rows["gone"].problem, rows["gone"].sources) == ("FILE_MISSING", ("cot/batch_2.json",))
    assert _message(rows["gone"]) == (
        "cot/batch_2.json: case gone: no picture gone.jpg below the root; fetch it"
    )
    assert "1 pictures are of no case" in caplog.text
    assert "1 masks are of no case" in caplog.text


def test_two_entries_of_one_picture_are_told(tmp_path: Path) -> None:
    write_picture(tmp_path / "image/1_0/0.jpg")
    entry = {"image": "image/1_0", "abnormality": []}
    write_json(tmp_path / "cases.json", {"1_0": entry, "2_0": entry})
    rows = _rows(tmp_path)
    assert rows["1_0"].problem is None
    assert rows["2_0"].problem == "DUPLICATE_NAME"
    assert _message(rows["2_0"]) == (
        "cases.json: case 2_0: image/1_0 is of case 1_0; keep one of them"
    )


def test_malformed_entries_are_rejected_rows_or_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_omniabnorm_single(tmp_path)
    entries = [
        {**reasoning("a_1"), "cot_reasoning": "a text"},
        {**reasoning("b_1"), "abnormality": [3, {"id": 0}]},
        {**reasoning("c_1"), "case_id": None},
        "c_1",
        7,
    ]
    write_json(tmp_path / "cot/batch_a_1.json", entries)
    rows = _rows(tmp_path)
    assert {name: row.problem for name, row in rows.items()} == {
        "a_1": "BAD_METADATA",
        "b_1": "BAD_METADATA",
        "c_1": None,
    }
    assert _message(rows["a_1"]) == (
        "cot/batch_a_1.json: case a_1: cot_reasoning is no list; correct the entry"
    )
    assert "abnormality has 1 parts that are no entry" in _message(rows["b_1"])
    assert "cot/batch_a_1.json: 3 parts are no entry of a case and left out" in caplog.text


def test_a_case_that_comes_again_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_omniabnorm_single(tmp_path)
    write_json(tmp_path / "cot/batch_b.json", [{**reasoning("a_1"), "region": "Head"}])
    assert json.loads(_rows(tmp_path)["a_1"].metadata)["region"] == "Chest"
    assert "cot/batch_b.json: 1 entries repeat a case; the first counts" in caplog.text


def test_odd_slices_are_rejected_rows(tmp_path: Path) -> None:
    write_omniabnorm(tmp_path, ("1_0", "2_0"))
    (tmp_path / "image/1_0/0.jpg").unlink()
    write_picture(tmp_path / "image/2_0/1.jpg")
    rows = _rows(tmp_path)
    assert rows["1_0"].problem == "FILE_MISSING"
    assert _message(rows["1_0"]) == "image/1_0: no key slice 0.jpg; fetch it again"
    assert rows["2_0"].problem == "DUPLICATE_POSITIONS"
    assert "two pictures of one slice" in _message(rows["2_0"])


def test_missing_or_damaged_parts_name_the_way_out(tmp_path: Path) -> None:
    write_picture(tmp_path / "image/1_0/0.jpg")
    with pytest.raises(DatasetError, match=r"1 JPEG files and 0 cases.*catalog\.dataset: folder"):
        _rows(tmp_path)
    (tmp_path / "cases.json").write_text("[" * 100_000)
    with pytest.raises(DatasetError, match=r"cases\.json: cannot be read .*restore or remove it"):
        _rows(tmp_path)
