import pytest
import torch

from ct3dlib.nn.norm import ChannelLayerNorm, ChannelRMSNorm, ConditionalSliceNorm, SliceNorm


def slow_norm(x: torch.Tensor, groups: int) -> torch.Tensor:
    out = torch.empty_like(x)
    size = x.shape[1] // groups
    for item in range(x.shape[0]):
        for d in range(x.shape[2]):
            for group in range(groups):
                part = x[item, group * size : (group + 1) * size, d]
                scaled = (part - part.mean()) / (part.var(correction=0) + 1e-5).sqrt()
                out[item, group * size : (group + 1) * size, d] = scaled
    return out


def test_slice_norm_matches_a_loop_over_slices_and_groups():
    x = torch.randn(2, 6, 3, 4, 5) * 3 + 1
    torch.testing.assert_close(SliceNorm(2, 6)(x), slow_norm(x, 2), rtol=1e-5, atol=1e-5)


def test_slice_norm_is_the_same_in_both_memory_layouts_and_keeps_them():
    x = torch.randn(2, 8, 3, 4, 5)
    last = x.contiguous(memory_format=torch.channels_last_3d)
    norm = SliceNorm(4, 8)
    torch.testing.assert_close(norm(last), norm(x), rtol=1e-5, atol=1e-6)
    assert norm(last).is_contiguous(memory_format=torch.channels_last_3d)


def test_conditional_norm_scales_and_shifts_position_by_position():
    x, condition = torch.randn(1, 4, 2, 3, 3), torch.randn(1, 2, 2, 3, 3)
    norm = ConditionalSliceNorm(2, 4, condition_channels=2)
    weight, bias = norm.modulation.weight.flatten(1), norm.modulation.bias
    at = (0, slice(None), 1, 2, 0)
    modulation = weight @ condition[at] + bias
    expected = slow_norm(x, 2)[at] * (1 + modulation[:4]) + modulation[4:]
    torch.testing.assert_close(norm(x, condition)[at], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", [(4,), (3, 4), (2, 3, 4)])
def test_channel_norms_see_one_position_at_a_time(grid: tuple[int, ...]):
    x = torch.randn(2, 6, *grid) * 3 + 1
    layer, rms = ChannelLayerNorm(6), ChannelRMSNorm(6, eps=0)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    torch.nn.init.normal_(rms.weight)
    at = (1, slice(None), *(side - 1 for side in grid))
    values = x[at]
    centred = (values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt()
    expected = centred * layer.weight + layer.bias
    torch.testing.assert_close(layer(x)[at], expected, rtol=1e-5, atol=1e-5)
    expected = values / values.square().mean().sqrt() * rms.weight
    torch.testing.assert_close(rms(x)[at], expected, rtol=1e-5, atol=1e-5)
