"""Stored volumes by their examination."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ct3dlib.cohort.store import StoredVolume, stored_volumes
from ct3dlib.cohort.studies import Study, group_studies
from ct3dlib.config import RecipeSpec
from ct3dlib.errors import StoreError
from tests.stores import write_shard

# Shards part reconstructions of a study: their rows are in no order.
NAMES = ("1_b_1", "1_a_2", "2_a_1", "1_a_1")


@pytest.fixture
def volumes(tmp_path: Path) -> list[StoredVolume]:
    arrays = {name: np.zeros((1, 2, 2), np.int16) for name in NAMES}
    return stored_volumes([write_shard(tmp_path / "0.parquet", "volumes", arrays, RecipeSpec())])


@pytest.fixture
def catalog() -> pd.DataFrame:
    names = [*NAMES, "9_a_1"]  # the last is not stored
    rows = [{"volume": n, "study": n[:3], "patient": f"p{n[0]}", "labels": None} for n in names]
    return pd.DataFrame(rows)


def _names(studies: list[Study]) -> dict[str, list[str]]:
    return {study.name: [volume.volume for volume in study.volumes] for study in studies}


def test_reconstructions_stand_under_their_study_in_order(volumes, catalog, caplog):
    caplog.set_level(logging.INFO)
    studies = group_studies(volumes, catalog)
    wanted = {"1_a": ["1_a_1", "1_a_2"], "1_b": ["1_b_1"], "2_a": ["2_a_1"]}
    assert _names(studies) == wanted
    assert list(wanted) == [study.name for study in studies]
    assert [study.patient for study in studies] == ["p1", "p1", "p2"]
    assert caplog.messages == ["3 studies of 4 volumes, 0 volumes left out by the exclusions"]


@pytest.mark.parametrize(
    ("exclusions", "wanted"),
    [
        ({"1_a_2": True}, {"1_a": ["1_a_1"], "1_b": ["1_b_1"], "2_a": ["2_a_1"]}),
        ({"1_a": True}, {"1_b": ["1_b_1"], "2_a": ["2_a_1"]}),
        ({"p1": True}, {"2_a": ["2_a_1"]}),
        ({"p1": True, "1_a_2": False}, {"1_a": ["1_a_2"], "2_a": ["2_a_1"]}),
        ({"p1": True, "1_a": False, "1_a_1": True}, {"1_a": ["1_a_2"], "2_a": ["2_a_1"]}),
        ({"9_a_1": True, "p1": False}, None),
    ],
    ids=["volume", "study", "patient", "volume_again", "nearest", "not_stored"],
)
def test_exclusions_name_volumes_studies_or_patients(volumes, catalog, exclusions, wanted):
    left = group_studies(volumes, catalog, exclusions=exclusions)
    assert _names(left) == (wanted or _names(group_studies(volumes, catalog)))


def test_what_was_left_out_and_what_is_unknown_is_told(volumes, catalog, caplog):
    caplog.set_level(logging.INFO)
    group_studies(volumes, catalog, exclusions={"1_a": True, "1_a_3": True, "train_7": True})
    assert caplog.messages == [
        "2 of 3 exclusions are of no volume, study or patient of the catalog, first 1_a_3",
        "2 studies of 2 volumes, 2 volumes left out by the exclusions",
    ]


def test_a_volume_that_the_catalog_does_not_know_is_refused(volumes, catalog):
    with pytest.raises(StoreError, match=r"1_b_1: is stored and not in the catalog; run the rule"):
        group_studies(volumes, catalog.iloc[1:])
