from itertools import pairwise

import pytest
import torch

from ct3dlib.config import SliceFeaturesSpec
from ct3dlib.models import build_model
from ct3dlib.models.slice_features import SliceFeatures


@pytest.fixture
def network() -> SliceFeatures:
    torch.manual_seed(0)
    return SliceFeatures(SliceFeaturesSpec(filters=8, num_levels=4, num_regions=5)).eval()


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        ((32, 48), [(32, 48), (16, 24), (8, 12), (4, 6)]),
        ((33, 20), [(33, 20), (17, 10), (9, 5), (5, 3)]),
    ],
    ids=["whole cells", "any size"],
)
def test_each_level_halves_the_grid_and_doubles_the_channels(network, size, sides):
    features = network(torch.zeros(3, 1, *size))
    assert [tuple(f.shape) for f in features] == [
        (3, channels, *grid) for channels, grid in zip((8, 16, 32, 64), sides, strict=True)
    ]
    assert network.region_logits(torch.zeros(3, 1, *size)).shape == (3, 5, *sides[-1])


def test_slices_of_a_batch_do_not_see_each_other(network):
    torch.manual_seed(1)
    slices = torch.randn(4, 1, 24, 32)
    for together, alone in zip(network(slices), network(slices[2:3]), strict=True):
        torch.testing.assert_close(together[2:3], alone, rtol=0, atol=1e-5)


def test_features_tell_uniform_slices_of_two_intensities_apart(network):
    air, tissue = (network(torch.full((1, 1, 32, 32), value)) for value in (-1.0, 0.04))
    for one, other in zip(air, tissue, strict=True):
        centre = (slice(None), slice(None), one.shape[2] // 2, one.shape[3] // 2)
        assert (one[centre] - other[centre]).abs().max() > 0.01


def test_the_default_has_as_many_weights_as_its_layers_say():
    widths = (1, 16, 32, 64, 128)
    levels = sum((a * b * 9 + b) + (b * b * 9 + b) + 2 * b for a, b in pairwise(widths))
    head = 2 * 128 + 128 * 21 + 21
    network = build_model(SliceFeaturesSpec())
    assert sum(p.numel() for p in network.parameters()) == levels + head == 296_677
