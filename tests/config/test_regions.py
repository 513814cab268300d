"""Section `regions`: what is refused, and which GPUs a job asks for."""

import pytest
from pydantic import ValidationError

from ct3dlib.config import RegionsSpec

MEDSAM2 = {"weights": "hf://wanglab/MedSAM2/MedSAM2_latest.pt", "sha256": "a" * 64}
LABELMAP = {"folder": "ts_total"}


def spec(**section):
    return RegionsSpec.model_validate({"recipe": "native", **section})


def test_the_default_needs_nothing_but_a_recipe():
    found = spec()
    assert found.providers == ("classical",)
    assert found.labelmap is None
    assert found.medsam2 is None
    assert found.classical.spacing == 3.0
    assert found.gpus == 0


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"providers": []}, "at least 1 item"),
        ({"providers": ["classical", "classical"]}, r"one stands twice in \['classical'"),
        ({"providers": ["labelmap"]}, "nothing says where label maps lie; set labelmap.folder"),
        ({"providers": ["medsam2"]}, "Input should be 'labelmap', 'totalsegmentator' or 'class"),
        ({"labelmap": {"folder": ""}}, "at least 1 character"),
        ({"labelmap": {}}, r"labelmap.folder\s+Field required"),
        ({"labelmap": {**LABELMAP, "strip": -1}}, "greater than or equal to 0"),
        ({"labelmap": {**LABELMAP, "numbering": "v1"}}, "'totalsegmentator_v2' or 'regions'"),
        ({"totalsegmentator": {"command": []}}, "at least 1 item"),
        ({"totalsegmentator": {"command": "TotalSegmentator"}}, "should be a valid tuple"),
        ({"totalsegmentator": {"device": "cuda"}}, "Input should be 'gpu', 'cpu' or 'mps'"),
        ({"medsam2": {"weights": "a.pt"}}, r"medsam2.sha256\s+Field required"),
        ({"medsam2": {**MEDSAM2, "sha256": "g" * 64}}, "String should match pattern"),
        ({"medsam2": {**MEDSAM2, "sha256": "a" * 63}}, "String should match pattern"),
        ({"medsam2": {**MEDSAM2, "accept": 1.5}}, "less than or equal to 1"),
        ({"medsam2": {**MEDSAM2, "patience": 0}}, "greater than 0"),
        ({"backend": "classical"}, "Extra inputs are not permitted"),
        ({"classical": {"spacing": 0}}, "greater than or equal to 0.01"),
    ],
    ids=[
        "nobody", "twice", "no-folder", "no-provider", "empty-folder", "folder-left-out", "strip",
        "numbering", "no-command", "command-as-text", "ts-device", "no-hash", "no-hex",
        "short-hash", "accept", "patience", "key-of-before", "spacing",
    ],
)  # fmt: skip
def test_what_no_run_could_use_is_refused(section, message):
    with pytest.raises(ValidationError, match=message):
        spec(**section)


@pytest.mark.parametrize(
    ("section", "gpus"),
    [
        ({"providers": ["labelmap", "classical"], "labelmap": LABELMAP}, 0),
        ({"providers": ["totalsegmentator"]}, 1),
        ({"providers": ["totalsegmentator"], "totalsegmentator": {"device": "cpu"}}, 0),
        ({"providers": ["totalsegmentator"], "totalsegmentator": {"device": "mps"}}, 0),
        ({"totalsegmentator": {"device": "gpu"}}, 0),
        ({"medsam2": MEDSAM2}, 1),
        ({"medsam2": {**MEDSAM2, "device": "cpu"}}, 0),
        ({"medsam2": MEDSAM2, "providers": ["totalsegmentator"]}, 1),
        ({"medsam2": {**MEDSAM2, "device": "cpu"}, "providers": ["totalsegmentator"]}, 1),
    ],
    ids=[
        "label-maps", "ts", "ts-cpu", "ts-mps", "ts-not-asked", "medsam2", "medsam2-cpu", "both",
        "ts-alone-on-it",
    ],
)  # fmt: skip
def test_a_job_asks_for_the_gpu_that_it_uses(section, gpus):
    assert spec(**section).gpus == gpus


def test_a_hash_may_be_written_in_capitals():
    found = spec(medsam2={**MEDSAM2, "sha256": "AB" * 32})
    assert found.medsam2.sha256 == "ab" * 32
