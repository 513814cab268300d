"""The section that names a network for the distances of slices."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from ct3dlib.config import GenerationSpec


def test_without_a_network_there_is_no_file():
    spec = GenerationSpec()
    assert (spec.network, spec.weights) == (None, None)


def test_a_file_may_lie_in_the_home_folder():
    spec = GenerationSpec(network="exported", weights="~/net.pt2")
    assert spec.weights == str(Path.home() / "net.pt2")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"network": "alex"}, "network alex needs weights, a local file; nothing is downloaded"),
        ({"weights": "net.pt2"}, r"weights net\.pt2: of which network\? Set network to alex, vgg"),
        ({"planes": ["axial", "axial"]}, r"planes \['axial', 'axial'\]: one is named twice"),
        ({"planes": []}, "at least 1 item"),
        ({"slices": 0}, "greater than 0"),
    ],
    ids=["no file", "no network", "twice", "no plane", "no slice"],
)
def test_what_does_not_fit_is_refused(section, message):
    with pytest.raises(ValidationError, match=message):
        GenerationSpec.model_validate(section)
