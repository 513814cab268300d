import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from ct3dlib.cohort.split import (
    Assignments,
    Patient,
    assign_splits,
    check_drawn,
    check_patients,
    draw,
    drawn_with,
    load_assignments,
    save_assignments,
)
from ct3dlib.config import CatalogSpec, Split
from ct3dlib.errors import DatasetError, StoreError


def _spec(tune: float = 0.1, valid: float = 0.2, seed: int = 0) -> CatalogSpec:
    return CatalogSpec(
        dataset="folder",
        tune=tune,
        valid=valid,
        shards={"train": 1, "tune": 1, "valid": 1},
        seed=seed,
    )


def _people(number: int, origin: Split | None = None) -> list[Patient]:
    return [Patient(f"p{i}", origin=origin) for i in range(number)]


def test_draw_is_the_hash_over_its_range() -> None:
    digest = hashlib.blake2b(b"7/p1", digest_size=8).digest()
    assert draw("p1", 7) == pytest.approx(int.from_bytes(digest, "big") / 2**64, abs=1e-12)
    assert draw("p1", 7) != draw("p1", 8)


def test_shares_are_met() -> None:
    splits = list(assign_splits(_people(5000), _spec(), previous={}).values())
    assert splits.count("tune") / 5000 == pytest.approx(0.1, abs=0.015)
    assert splits.count("valid") / 5000 == pytest.approx(0.2, abs=0.02)


def test_train_of_the_data_set_gives_tune_only() -> None:
    patients = [*_people(1000, "train"), Patient("v", origin="valid")]
    splits = assign_splits(patients, _spec(), previous={})
    assert splits.pop("v") == "valid"
    assert set(splits.values()) == {"train", "tune"}
    assert list(splits.values()).count("tune") / 1000 == pytest.approx(0.1, abs=0.03)


def test_a_data_set_with_its_own_tune_is_not_drawn_anew() -> None:
    origins: dict[str, Split] = {"a": "train", "b": "train", "c": "tune", "d": "valid"}
    patients = [Patient(name, origin=origin) for name, origin in origins.items()]
    for seed in range(30):
        spec = _spec(0.4, 0.4, seed)
        assert assign_splits(patients, spec, previous={"a": "tune"}) == origins
    given = [replace(patients[0], given="valid"), *patients[1:]]
    assert assign_splits(given, _spec(), previous={}) == {**origins, "a": "valid"}


def test_a_patient_in_two_splits_is_refused() -> None:
    check_patients([("p", "train"), ("q", "valid"), ("p", "train")])
    with pytest.raises(DatasetError, match="patient p is in train and in valid: a model would be"):
        check_patients([("p", "train"), ("q", "valid"), ("p", "valid")])


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize(
    ("number", "origin", "wanted"),
    [
        (2, None, {"train", "valid"}),
        (3, None, {"train", "tune", "valid"}),
        (1, "train", {"train"}),
        (2, "train", {"train", "tune"}),
        (1, "valid", {"valid"}),
    ],
)
def test_few_patients_still_fill_the_splits(
    number: int, origin: Split | None, wanted: set[Split], seed: int
) -> None:
    splits = assign_splits(_people(number, origin), _spec(seed=seed), previous={})
    assert set(splits.values()) >= wanted


@pytest.mark.parametrize("seed", range(30))
def test_whole_patients_go_first(seed: int) -> None:
    broken = [Patient(f"b{i}", whole=False) for i in range(8)]
    splits = assign_splits([*broken, *_people(3)], _spec(0.3, 0.3, seed), previous={})
    assert {splits["p0"], splits["p1"], splits["p2"]} == {"train", "tune", "valid"}
    splits = assign_splits([*broken, *_people(2)], _spec(0.3, 0.3, seed), previous={})
    assert {splits["p0"], splits["p1"]} == {"train", "valid"}
    assert set(splits.values()) == {"train", "tune", "valid"}


def test_earlier_splits_are_kept_when_patients_are_added() -> None:
    before = assign_splits(_people(3), _spec(), previous={})
    after = assign_splits(_people(300), _spec(), previous=before)
    assert {name: after[name] for name in before} == before
    moved = assign_splits(_people(3), _spec(seed=1, valid=0.8), previous=before)
    assert moved == before


def test_given_splits_count_most() -> None:
    patients = [Patient("a", given="train"), Patient("b", given="train", origin="valid")]
    assert assign_splits(patients, _spec(), previous={"a": "valid"}) == {
        "a": "train",
        "b": "train",
    }


def test_too_few_patients_raise() -> None:
    with pytest.raises(DatasetError, match=r"no patient for train: 1 found \(p0\), at least 2 .*"):
        assign_splits(_people(1), _spec(valid=0.8), previous={"p0": "valid"})
    with pytest.raises(DatasetError, match=r"no patient for valid.*catalog\.split_csv"):
        assign_splits(_people(2), _spec(), previous={"p0": "train", "p1": "train"})


def test_assignments_survive_a_catalog_without_them(tmp_path: Path) -> None:
    path = tmp_path / "new/assignments.json"
    assert load_assignments(path) == Assignments(path=path)
    save_assignments(path, {"a": "train", "b": "valid"}, spec=_spec())
    save_assignments(path, {"c": "tune"}, spec=_spec())
    assert json.loads(path.read_text()) == {
        "seed": 0,
        "tune": 0.1,
        "valid": 0.2,
        "patients": {"a": "train", "b": "valid", "c": "tune"},
    }
    kept: dict[str, Split] = {"a": "train", "b": "valid", "c": "tune"}
    assert load_assignments(path) == Assignments(kept, drawn_with(_spec()), path)
    assert [p.name for p in path.parent.iterdir()] == ["assignments.json"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"a": "train"}',
        '{"seed": 0, "tune": 0.1, "valid": 0.1, "patients": {"a": "test"}}',
        '{"seed": 0, "tune": 0.1, "valid": 0.1, "patients": {"a": ["train"]}}',
        '{"seed": 0, "tune": null, "valid": 0.1, "patients": {"a": "train"}}',
        '{"seed": 0, "tune": 0.1, "patients": {"a": "train"}}',
    ],
)
def test_damaged_assignments_raise(tmp_path: Path, text: str) -> None:
    path = tmp_path / "assignments.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=r"assignments\.json: .*delete it to draw anew"):
        load_assignments(path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (_spec(seed=1), "with seed 0, tune 0.1, valid 0.2; the config says seed 1, tune 0.1, "),
        (_spec(tune=0.3), "the config says seed 0, tune 0.3, valid 0.2; set it back, or delete"),
        (_spec(valid=0.3), "the config says seed 0, tune 0.1, valid 0.3; set it back, or delete"),
    ],
    ids=["seed", "tune", "valid"],
)
def test_other_draws_than_those_that_are_kept_raise(changed: CatalogSpec, message: str) -> None:
    earlier = Assignments({"p0": "train"}, drawn_with(_spec()), Path("x/assignments.json"))
    check_drawn(earlier, _people(3), _spec())
    check_drawn(earlier, [Patient("new")], changed)
    check_drawn(Assignments(), _people(3), changed)
    with pytest.raises(DatasetError, match=f"{re.escape(message)}.*x/assignments.json to draw"):
        check_drawn(earlier, _people(3), changed)


def test_patients_whose_split_is_stated_bind_no_draw() -> None:
    splits: dict[str, Split] = {"a": "train", "b": "valid", "c": "tune"}
    earlier = Assignments(splits, drawn_with(_spec()))
    official = [Patient("a", origin="train"), Patient("b", origin="valid")]
    check_drawn(earlier, official, _spec(valid=0.4))
    with pytest.raises(DatasetError, match=r"with seed 0, tune 0\.1; .* seed 0, tune 0\.2; set"):
        check_drawn(earlier, official, _spec(tune=0.2))
    check_drawn(earlier, [*official, Patient("c", origin="tune")], _spec(seed=3, tune=0.2))
    check_drawn(earlier, [Patient("a", given="valid")], _spec(seed=3))
