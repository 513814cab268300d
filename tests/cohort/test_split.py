import hashlib
from pathlib import Path

import pytest

from ct3dlib.cohort.split import (
    Patient,
    assign_splits,
    draw,
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
    assert load_assignments(path) == {}
    save_assignments(path, {"a": "train", "b": "valid"})
    save_assignments(path, {"c": "tune"})
    assert load_assignments(path) == {"a": "train", "b": "valid", "c": "tune"}
    assert [p.name for p in path.parent.iterdir()] == ["assignments.json"]


@pytest.mark.parametrize("text", ["{", '{"a": "test"}', "[]", '{"a": ["train"]}'])
def test_damaged_assignments_raise(tmp_path: Path, text: str) -> None:
    path = tmp_path / "assignments.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=r"assignments\.json: .*delete it to draw anew"):
        load_assignments(path)
