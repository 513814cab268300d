import pytest
import torch
import torch.nn.functional as F
from monai.networks.utils import pixelshuffle

from ct3dlib.nn.upsample import SubpixelUpsample


@pytest.mark.parametrize("factors", [(1, 2, 2), (2, 2, 2), (3, 1, 2), (1, 1, 1)])
def test_a_new_upsampling_repeats_one_convolution_as_the_nearest_neighbour(factors):
    torch.manual_seed(0)
    upsample = SubpixelUpsample(4, factors=factors, kernel_size=(3, 3, 3))
    x = torch.randn(2, 4, 3, 4, 5)
    coarse = F.conv3d(x, upsample.conv.weight[:4], upsample.conv.bias[:4], padding=1)
    scale = tuple(float(factor) for factor in factors)
    expected = F.interpolate(coarse, scale_factor=scale, mode="nearest")
    torch.testing.assert_close(upsample(x), expected, rtol=1e-5, atol=1e-6)


def test_sub_positions_are_those_of_a_library():
    torch.manual_seed(0)
    upsample = SubpixelUpsample(4, factors=(2, 2, 2), kernel_size=(1, 3, 3))
    torch.nn.init.normal_(upsample.conv.weight)
    x = torch.randn(2, 4, 2, 3, 5)
    channels = upsample.conv(x)  # read as (sub-positions, 4) here, as (4, sub-positions) there
    other = channels.unflatten(1, (8, 4)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(upsample(x), pixelshuffle(other, 3, 2))
