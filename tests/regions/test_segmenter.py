"""The chain: who is asked, who has a voxel, and what is said of each region."""

import logging

import numpy as np
import pytest

from ct3dlib.cohort.private import RawRoot
from ct3dlib.config import LabelMapSpec, RegionsSpec
from ct3dlib.errors import StoreError, VolumeError
from ct3dlib.regions import Segmenter, build_segmenter
from ct3dlib.regions.classical import ClassicalProvider
from ct3dlib.regions.label_map import DERIVED, FOUND, LUNGS, REGIONS
from ct3dlib.regions.labelmap import LabelMapProvider
from ct3dlib.regions.mask import Skipped
from ct3dlib.regions.provider import Provider
from ct3dlib.regions.refine import Refiner
from ct3dlib.regions.totalsegmentator import TotalSegmentatorProvider
from ct3dlib.scan.volume import Volume
from tests.regions.label_maps import UPRIGHT
from tests.regions.providers import Told

SHAPE = (4, 5, 6)
VOLUME = Volume(np.full(SHAPE, 40, np.int16), UPRIGHT)
NO_SHELLS = FOUND - {*LUNGS}  # without lungs nothing is drawn around others


def labels_of(**boxes):
    """Return labels with a region in a box of columns, in every slice and row."""
    labels = np.zeros(SHAPE, np.uint8)
    for name, columns in boxes.items():
        labels[:, :, slice(*columns)] = REGIONS.index(name)
    return labels


def told(name, known, sure=frozenset(), **boxes):
    return Told(labels_of(**boxes), frozenset(known), frozenset(sure), name)


def failing(name, reason, message):
    return Told(name=name, error=VolumeError(reason, message))


def segment(*providers, **about):
    return Segmenter(providers, None, 3.0)(VOLUME, **about)


def row(regions):
    """Return the ids of one row of the mask, which all rows have."""
    (line,) = np.unique(regions.mask.reshape(-1, SHAPE[2]), axis=0)
    return line.tolist()


def test_each_region_comes_from_the_first_that_knows_it():
    first = told("first", {8, 10}, heart=(0, 2))
    second = told("second", NO_SHELLS, heart=(0, 4), spine=(4, 5))
    regions = segment(first, second)
    assert row(regions) == [8, 8, 0, 0, 19, 0]  # no heart and no aorta of the second
    assert regions.sources["heart"] == regions.sources["aorta"] == "first"
    assert regions.sources["spine"] == "second"
    assert regions.backend == "second+first"


def test_a_later_provider_has_free_voxels_alone():
    first = told("first", {19}, spine=(2, 4))
    second = told("second", {8}, heart=(0, 6))
    assert row(segment(first, second)) == [8, 8, 19, 19, 8, 8]


def test_a_class_of_the_first_that_is_not_its_to_give_leaves_room():
    first = Told(labels_of(heart=(0, 3), spine=(3, 6)), frozenset({19}), name="first")
    second = told("second", {8, 10}, aorta=(0, 6))
    assert row(segment(first, second)) == [10, 10, 10, 19, 19, 19]


def test_nobody_is_asked_once_all_is_known():
    first, second, third = (told(n, k) for n, k in (("a", {8}), ("b", FOUND - {8}), ("c", FOUND)))
    regions = segment(first, second, third)
    assert [len(p.asked) for p in (first, second, third)] == [1, 1, 0]
    assert set(regions.sources.values()) == {"a", "b", "derived"}


def test_absent_and_not_looked_for_are_two_things():
    regions = segment(told("first", {8, 10, 19}, {8, 10}, heart=(0, 2), spine=(2, 3)))
    status = {"heart": "ok", "spine": "approximate"}
    assert regions.status == {name: status.get(name, "absent") for name in REGIONS[1:]}
    looked = {"heart", "aorta", "spine"}
    assert {name for name, who in regions.sources.items() if who == "first"} == looked
    assert {name for name, who in regions.sources.items() if who == "derived"} == {
        REGIONS[i] for i in DERIVED
    }
    assert "kidney_adrenal" not in regions.sources
    assert regions.backend == "first"


def test_sure_counts_for_what_a_provider_gives():
    first = told("first", {8}, heart=(0, 2))
    second = told("second", {8, 10}, {8, 10}, aorta=(2, 4))
    status = segment(first, second).status
    assert (status["heart"], status["aorta"]) == ("approximate", "ok")


def test_derived_ids_of_a_provider_do_not_count():
    first = told("first", {8, 9, 12, 13}, {9}, heart=(0, 2), pericardium=(2, 4), pleura=(4, 6))
    regions = segment(first)
    assert row(regions) == [8, 8, 0, 0, 0, 0]
    assert regions.status["pericardium"] == "absent"
    assert regions.sources["pericardium"] == "derived"


def test_a_provider_that_can_say_nothing_is_passed_over_and_noted(caplog):
    missing = failing("labelmap", "NO_LABEL_MAP", "a: no label map a.nii.gz in masks")
    with caplog.at_level(logging.WARNING):
        regions = segment(missing, told("second", {8}, heart=(0, 2)), name="a")
    note = Skipped("labelmap", "NO_LABEL_MAP", "a: no label map a.nii.gz in masks")
    assert regions.skipped == (note,)
    assert regions.sources["heart"] == regions.backend == "second"
    assert caplog.messages == ["a: labelmap: a: no label map a.nii.gz in masks"]


def test_a_chain_that_fails_names_each_link():
    with pytest.raises(VolumeError) as caught:
        segment(failing("labelmap", "NO_LABEL_MAP", "none"), failing("ts", "PROVIDER_FAILED", "no"))
    assert caught.value.reason == "PROVIDER_FAILED"
    assert str(caught.value) == "labelmap: none; ts: no"


def test_other_errors_are_not_passed_over():
    broken = Told(name="broken", error=StoreError("a pseudonym that nobody tells"))
    with pytest.raises(StoreError, match="that nobody tells"):
        segment(broken, told("second", FOUND))


def test_every_provider_is_told_all_of_the_volume():
    first = told("first", {8})
    assert isinstance(first, Provider)
    segment(first, name="vol", sources=("a.nii.gz",))
    (request,) = first.asked
    assert (request.name, request.sources, request.record) == ("vol", ("a.nii.gz",), None)
    assert request.volume is VOLUME
    assert request.scan.hu.shape == (4, 3, 3)  # 12 x 10 x 9 mm in cells of 3 mm
    assert request.scan.spacing == pytest.approx((3, 10 / 3, 3))


def test_identity_asks_every_provider():
    segmenter = Segmenter([told("a", {8}), told("b", {8})], None, 3.0)
    assert segmenter.identity("v", ("s",)) == ["a of v ('s',)", "b of v ('s',)"]


class Redrawn(Refiner):
    """Gives the heart the third column."""

    def __call__(self, volume, labels):
        assert volume is VOLUME
        moved = np.where(labels == 8, 0, labels)
        moved[:, :, 2] = 8
        return moved.astype(np.uint8), {8: 0.875, 19: 0.25}, frozenset({8})


def test_what_was_drawn_anew_says_so():
    first = told("first", {8, 19}, {8}, heart=(0, 2), spine=(4, 6))
    segmenter = Segmenter([first], object.__new__(Redrawn), 3.0)
    regions = segmenter(VOLUME)
    assert row(regions) == [0, 0, 8, 0, 19, 19]
    assert (regions.sources["heart"], regions.sources["spine"]) == ("first+medsam2", "first")
    assert regions.agreement == {"heart": 0.875, "spine": 0.25}
    assert regions.backend == "first+medsam2"
    assert regions.status["heart"] == "ok"


def test_the_spec_says_who_is_asked_in_which_order(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "TotalSegmentator").write_text("#!/bin/sh\necho 2.7.0\n")
    (tmp_path / "TotalSegmentator").chmod(0o755)
    command = {"command": [str(tmp_path / "TotalSegmentator")]}
    spec = RegionsSpec.model_validate(
        {
            "recipe": "a",
            "providers": ["totalsegmentator", "labelmap", "classical"],
            "labelmap": {"folder": "masks"},
            "totalsegmentator": command,
            "classical": {"spacing": 4.0},
        }
    )
    segmenter = build_segmenter(spec, RawRoot(tmp_path))
    assert [type(p) for p in segmenter.providers] == [
        TotalSegmentatorProvider,
        LabelMapProvider,
        ClassicalProvider,
    ]
    assert [p.name for p in segmenter.providers] == list(spec.providers)
    assert all(isinstance(p, Provider) for p in segmenter.providers)
    assert (segmenter.refiner, segmenter.spacing) == (None, 4.0)


def test_a_folder_that_is_not_there_stops_the_chain_before_it_starts(tmp_path):
    spec = RegionsSpec(
        recipe="a", providers=("labelmap", "classical"), labelmap=LabelMapSpec(folder="masks")
    )
    with pytest.raises(StoreError, match="masks is no folder"):
        build_segmenter(spec, RawRoot(tmp_path))
