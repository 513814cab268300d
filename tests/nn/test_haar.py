import pytest
import torch

from ct3dlib.nn.haar import haar, inverse_haar


def test_haar_of_one_block_matches_hand_computation():
    block = torch.tensor([[1.0, 2.0], [3.0, 5.0]]).expand(1, 1, 2, 2, 2)
    expected = torch.tensor([2.75, -0.75, -1.25, 0.25, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(haar(block).flatten(), expected, rtol=0, atol=0)


def test_haar_bands_are_numbered_by_depth_height_width():
    volume = torch.arange(1.0, 13.0).reshape(1, 1, 3, 2, 2)
    doubled = torch.cat((volume[:, :, :1], volume), dim=2)
    expected = torch.tensor(
        [[2.5, 8.5], [-0.5, -0.5], [-1, -1], [0, 0], [0, -2], [0, 0], [0, 0], [0, 0]]
    )
    torch.testing.assert_close(haar(doubled)[0, :, :, 0, 0], expected, rtol=0, atol=0)


def test_haar_of_a_constant_is_its_low_band_alone():
    bands = haar(torch.full((2, 1, 4, 6, 8), 0.3))
    assert torch.equal(bands[:, 0], torch.full((2, 2, 3, 4), 0.3))
    assert not bands[:, 1:].any()


@pytest.mark.parametrize("channels", [1, 3])
def test_inverse_haar_restores_the_volumes(channels: int):
    volumes = torch.randn(2, channels, 4, 6, 8, dtype=torch.float64)
    restored = inverse_haar(haar(volumes))
    torch.testing.assert_close(restored, volumes, rtol=0, atol=1e-14)


def test_haar_keeps_energy_up_to_its_scale():
    volumes = torch.randn(1, 1, 4, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(8 * haar(volumes).square().sum(), volumes.square().sum())


def test_haar_refuses_odd_lengths():
    with pytest.raises(ValueError, match=r"even lengths, not \(4, 5, 6\)"):
        haar(torch.zeros(1, 1, 4, 5, 6))


def test_inverse_haar_refuses_a_missing_band():
    with pytest.raises(ValueError, match="8 bands a channel, not 7"):
        inverse_haar(torch.zeros(1, 7, 2, 2, 2))
