"""The weight of guidance, step by step; what it does to logits is in `test_slabs`."""

from ct3dlib.config import SamplesSpec
from ct3dlib.inference.guidance import guidance_weight


def test_the_weight_rises_from_0_to_what_is_asked():
    spec = SamplesSpec(steps=5, guidance=2.0)
    assert [guidance_weight(spec, step) for step in range(5)] == [0, 0.5, 1, 1.5, 2]


def test_a_single_step_has_all_of_it():
    assert guidance_weight(SamplesSpec(steps=1, guidance=2.0), 0) == 2
