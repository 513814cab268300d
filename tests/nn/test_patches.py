import pytest
import torch
import torch.nn.functional as F

from ct3dlib.nn.patches import grid_of, patchify, unpatchify


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("shape", [(32, 32, 32), (32, 64, 96)])
def test_putting_together_undoes_cutting(shape, channels):
    volumes = torch.rand(2, channels, *shape)
    patches = patchify(volumes, (16, 16, 16))
    assert patches.shape[1:] == (shape[0] * shape[1] * shape[2] // 4096, 4096 * channels)
    grid = grid_of(shape, (16, 16, 16))
    torch.testing.assert_close(unpatchify(patches, (16, 16, 16), grid=grid), volumes)


def test_patches_run_along_columns_then_rows_then_slices():
    z, y, x = torch.meshgrid(*(torch.arange(n) for n in (4, 6, 8)), indexing="ij")
    volume = (100 * z + 10 * y + x).float()[None, None]
    patches = patchify(volume, (2, 3, 4))
    assert patches[0, :, 0].tolist() == [0, 4, 30, 34, 200, 204, 230, 234]
    assert patches[0, 0, :8].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


def test_a_linear_layer_on_patches_is_a_convolution_of_their_stride():
    torch.manual_seed(0)
    volumes, weight, bias = torch.rand(2, 1, 8, 12, 16), torch.randn(5, 1, 4, 4, 4), torch.randn(5)
    wanted = F.conv3d(volumes, weight, bias, stride=4).flatten(2).transpose(1, 2)
    found = F.linear(patchify(volumes, (4, 4, 4)), weight.flatten(1), bias)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
