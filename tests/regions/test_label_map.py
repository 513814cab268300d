import itertools
from importlib import resources

import numpy as np
import pytest
import yaml

from ct3dlib.regions.label_map import (
    COLORS,
    LABEL_MAP_VERSION,
    LUNGS,
    REGIONS,
    parse_label_map,
    region_id,
    region_of_totalsegmentator,
)


@pytest.fixture
def document():
    text = resources.files("ct3dlib.regions").joinpath("label_map.yaml").read_text()
    return yaml.safe_load(text)


def test_regions_are_the_twenty_and_other():
    assert len(REGIONS) == 21
    assert REGIONS[0] == "other"
    assert [REGIONS[i] for i in LUNGS] == [
        "lung_upper_lobe_left",
        "lung_lower_lobe_left",
        "lung_upper_lobe_right",
        "lung_middle_lobe_right",
        "lung_lower_lobe_right",
    ]
    assert (REGIONS[8], REGIONS[15], REGIONS[20]) == ("heart", "liver_biliary", "ribs_chest_wall")
    assert LABEL_MAP_VERSION == "2"


def test_region_id_inverts_the_table():
    assert [region_id(name) for name in REGIONS] == list(range(21))


def test_region_id_names_near_misses():
    with pytest.raises(ValueError, match="no region is named 'hart'; near: heart"):
        region_id("hart")


@pytest.mark.parametrize(
    ("source", "region"),
    [(10, 1), (14, 5), (16, 6), (51, 8), (61, 8), (52, 10), (79, 19), (25, 19), (117, 20), (21, 0)],
)
def test_totalsegmentator_class_maps_to_region(source, region):
    assert region_of_totalsegmentator(source) == region


@pytest.mark.parametrize("source", [-1, 118])
def test_totalsegmentator_refuses_unknown_class(source):
    with pytest.raises(ValueError, match=f"has ids 0 to 117, not {source}"):
        region_of_totalsegmentator(source)


def test_colors_are_told_apart():
    for one, other in itertools.combinations(COLORS, 2):
        assert np.linalg.norm(np.subtract(one, other)) > 40, (one, other)
    assert all(blue > red for red, _, blue in (COLORS[i] for i in LUNGS))


def test_label_map_refuses_a_21st_region(document):
    document["regions"].append(
        {"id": 21, "name": "knee", "totalsegmentator": [], "color": [1, 2, 3]}
    )
    with pytest.raises(ValueError, match="ids must be 0 to 20 in order, found"):
        parse_label_map(document)


def test_label_map_refuses_a_double_name(document):
    document["regions"][3]["name"] = "heart"
    with pytest.raises(ValueError, match=r"name stands twice: \['heart'\]"):
        parse_label_map(document)


def test_label_map_refuses_a_class_in_two_regions(document):
    document["regions"][7]["totalsegmentator"] = [51]
    with pytest.raises(ValueError, match=r"TotalSegmentator id stands twice: \[51\]"):
        parse_label_map(document)


def test_label_map_refuses_an_unknown_class(document):
    document["regions"][7]["totalsegmentator"] = [118]
    with pytest.raises(ValueError, match=r"has ids 1 to 117, found \[118\]"):
        parse_label_map(document)
