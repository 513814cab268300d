"""The report's tables of samples."""

from typing import Any

import pytest

from ct3dlib.report.measures import measures_section
from ct3dlib.report.page import Table, render


def _generation(**values: Any) -> dict[str, Any]:
    real = {"kid_real": 0.00012, "kid_std_real": 0.001, "frechet_real": None}
    none = dict.fromkeys(("slice_fid", "slice_kid", "slice_fid_real", "slice_kid_real"))
    distances = {"kid": 0.123456, "kid_std": 0.0321, "frechet": None, **real, **none}
    return {**distances, "copies": 0, "n": 4, "label_balanced_accuracy": {}, **values}


def _tables(generation: dict[str, Any]) -> list[Table]:
    section = measures_section({"reconstruction": {}, "generation": generation})
    return [block for block in section.blocks if isinstance(block, Table)]


def test_distances_of_samples_stand_over_those_of_real_volumes():
    _, distances, _ = _tables(_generation())
    assert distances.frame.to_dict("records") == [
        {"volumes": "samples", "kernel": "0.1235 ± 0.032"},
        {"volumes": "training volumes, as many", "kernel": "0.00012 ± 0.001"},
    ]


def test_planes_have_columns_and_what_is_not_known_is_blank():
    found = {
        "slice_fid": {"axial": 12.3456, "coronal": None, "mean": None},
        "slice_kid": {"axial": 0.5, "coronal": 1.25, "mean": 0.875},
        "slice_fid_real": {"axial": 1.5, "coronal": None, "mean": None},
        "slice_kid_real": {"axial": -0.001, "coronal": 0.0, "mean": -0.0005},
    }
    _, distances, _ = _tables(_generation(**found, frechet=3.0))
    first, second = distances.frame.to_dict("records")
    assert first == {
        "volumes": "samples",
        "kernel": "0.1235 ± 0.032",
        "Fréchet": "3",
        "axial FID": "12.35",
        "axial KID": "0.5",
        "coronal KID": "1.25",
        "mean KID": "0.875",
    }
    assert (second["axial KID"], second["coronal KID"], second["Fréchet"]) == ("-0.001", "0", "")


def test_other_numbers_stand_once():
    _, distances, others = _tables(_generation(ms_ssim_diversity=0.51239))
    row = {"copies": 0, "n": 4, "ms_ssim_diversity": 0.5124}
    assert others.frame.to_dict("records") == [pytest.approx(row)]
    assert "standard error" in distances.caption


def test_a_distance_without_a_spread_stands_alone():
    _, distances, _ = _tables(_generation(kid_std=None))
    assert distances.frame["kernel"].tolist() == ["0.1235", "0.00012 ± 0.001"]


def test_too_few_samples_for_any_distance_are_drawn():
    nothing = dict.fromkeys(("kid", "kid_std", "kid_real", "kid_std_real"))
    section = measures_section({"reconstruction": {}, "generation": _generation(**nothing)})
    assert "training volumes, as many" in render("title", [section])


def test_labels_stand_beside_what_the_classifier_tells_on_held_out_volumes():
    judged = {
        "label_balanced_accuracy": {"Cardiomegaly": 0.91666, "Emphysema": 0.5},
        "held_out_balanced_accuracy": {"Cardiomegaly": 0.85, "Hiatal hernia": 0.4},
    }
    *_, labels = _tables(_generation(**judged))
    assert labels.frame.to_dict("records") == [
        {"label": "Cardiomegaly", "samples": "0.92", "held-out volumes": "0.85"},
        {"label": "Emphysema", "samples": "0.50", "held-out volumes": ""},
    ]
    assert "chance: 0.5" in labels.caption


def test_what_the_transformer_learnt_stands_beside_knowing_no_context():
    tune = {"bits_per_index": 12.3456, "baseline_bits_per_index": 14.2832, "n": 3}
    tune |= {"accuracy_digit_0": 0.25, "baseline_accuracy_digit_0": 0.125}
    metrics = {"reconstruction": {}, "generation": _generation()}
    section = measures_section({**metrics, "transformer": {"tune": tune, "valid": {"n": 0}}})
    assert isinstance(section.blocks[1], Table)
    first, second = section.blocks[1].frame.to_dict("records")
    assert first == {
        "split": "tune",
        "bits an index": "12.35",
        "without context": "14.28",
        "first digit right": "0.25",
        "without context, right": "0.125",
        "volumes": "3",
    }
    assert (second["bits an index"], second["volumes"]) == ("", "0")
