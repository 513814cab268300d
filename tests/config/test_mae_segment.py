import pytest
from pydantic import ValidationError

from ct3dlib.config import MaeSegmentSpec

VALUES = {"steps": 1, "batch_size": 1, "micro_batch_size": 1, "recipe": "chest"}


def test_a_kind_of_masks_stands_once():
    with pytest.raises(ValidationError, match=r"masks \['lesions', 'lesions'\]: a kind stands twi"):
        MaeSegmentSpec.model_validate({**VALUES, "masks": ["lesions", "lesions"]})
    spec = MaeSegmentSpec.model_validate({**VALUES, "masks": ["lesions", "regions"]})
    assert spec.masks == ("lesions", "regions")


def test_without_any_loss_nothing_is_learnt():
    with pytest.raises(ValidationError, match="cross_entropy are both 0: nothing is learnt"):
        MaeSegmentSpec.model_validate({**VALUES, "dice": 0, "cross_entropy": 0})
    assert MaeSegmentSpec.model_validate({**VALUES, "dice": 0}).cross_entropy == 1
