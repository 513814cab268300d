import pytest
from pydantic import ValidationError

from ct3dlib.config import AugmentSpec, FeaturesSpec, SliceFeaturesSpec
from ct3dlib.regions.label_map import REGIONS

VALUES = {"steps": 1, "batch_size": 1, "micro_batch_size": 1, "recipe": "chest", "crop": (80, 96)}


def test_levels_double_the_channels_and_halve_the_grid():
    assert SliceFeaturesSpec().widths == (16, 32, 64, 128)
    assert SliceFeaturesSpec().cell == 8
    assert SliceFeaturesSpec(filters=8, num_levels=2).cell == 2


def test_the_default_knows_every_region_of_the_label_map():
    assert SliceFeaturesSpec().num_regions == len(REGIONS)


def test_a_crop_of_broken_cells_is_refused():
    with pytest.raises(ValidationError, match=r"crop \(80, 92\) must be multiples of 8, the pix"):
        FeaturesSpec.model_validate({**VALUES, "crop": (80, 92)})
    assert FeaturesSpec.model_validate(VALUES).crop == (80, 96)


def test_a_shift_out_of_the_slice_is_refused():
    with pytest.raises(ValidationError, match=r"augment\.shift moves a slice out of .* at 0"):
        FeaturesSpec.model_validate({**VALUES, "augment": AugmentSpec(shift=1.0)})
