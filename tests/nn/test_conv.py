import pytest
import torch
import torch.nn.functional as F

from ct3dlib.nn.conv import (
    CausalConv3d,
    CausalSequential,
    Downsample,
    History,
    ResBlock,
    Upsample,
    depth_to_space,
)


def test_causal_conv_matches_hand_computation_along_slices():
    conv = CausalConv3d(1, 1, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, :, 1, 1] = torch.tensor([100.0, 10.0, 1.0])
    slices = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 4, 1, 1)
    assert conv(slices).flatten().tolist() == [1, 12, 123, 234]


@pytest.mark.parametrize("temporal", [True, False])
def test_a_later_slice_changes_no_earlier_output(temporal: bool):
    layers = torch.nn.Sequential(
        ResBlock(4, 8, num_groups=2),
        Downsample(8, temporal=temporal),
        Upsample(8, temporal=temporal),
    )
    x = torch.randn(1, 4, 5, 4, 6)
    changed = x.clone()
    changed[:, :, 3:] += 1
    # With t = 2, slices 3 and 4 make up position 2 of the coarse grid, which makes 3 and 4 again.
    same = (layers(x) == layers(changed)).all(dim=(0, 1, 3, 4))
    assert same.tolist() == [True, True, True, False, False]


@pytest.mark.parametrize(("temporal", "slices"), [(True, 5), (False, 9)])
def test_down_and_up_follow_the_length_law(temporal: bool, slices: int):
    x = torch.randn(1, 4, 9, 8, 12)
    coarse = Downsample(4, temporal=temporal)(x)
    assert coarse.shape == (1, 4, slices, 4, 6)
    up = Upsample(4, temporal=temporal)
    assert up(coarse).shape == up.repeat(coarse).shape == x.shape


def test_repeat_gives_every_fine_position_the_condition_of_its_upsampled_value():
    condition = torch.arange(3.0).view(1, 1, 3, 1, 1)
    fine = Upsample(2, temporal=True).repeat(condition)
    assert fine[0, 0, :, 0, 0].tolist() == [0, 1, 1, 2, 2]
    assert (fine == fine[..., :1, :1]).all()


def test_depth_to_space_reads_channels_as_depth_height_width_channel():
    x = torch.arange(16.0).view(1, 16, 1, 1, 1)
    assert depth_to_space(x, (2, 2, 2))[0, 1].tolist() == [[[1, 3], [5, 7]], [[9, 11], [13, 15]]]


def test_depth_to_space_matches_a_loop_in_both_memory_layouts():
    x, (t, h, w) = torch.randn(2, 24, 3, 2, 5), (1, 2, 2)
    expected = torch.empty(2, 6, 3, 4, 10)
    for i in range(h):
        for j in range(w):
            first = (i * w + j) * 6
            expected[:, :, :, i::2, j::2] = x[:, first : first + 6]
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        spread = depth_to_space(x.contiguous(memory_format=layout), (t, h, w))
        assert torch.equal(spread, expected)
    assert spread.is_contiguous(memory_format=torch.channels_last_3d)


def test_res_block_adds_to_its_input():
    block = ResBlock(4, 4, num_groups=2)
    torch.nn.init.zeros_(block.residual[-1].weight)
    x = torch.randn(1, 4, 2, 3, 3)
    assert torch.equal(block(x), x)


def test_causal_conv_equals_a_padded_convolution():
    conv, x = CausalConv3d(2, 3, stride=(2, 2, 2)), torch.randn(1, 2, 5, 4, 6)
    expected = F.conv3d(F.pad(x, (1, 1, 1, 1, 2, 0)), conv.weight, conv.bias, stride=2)
    torch.testing.assert_close(conv(x), expected)


def in_chunks(layer: torch.nn.Module, chunks: tuple[torch.Tensor, ...]) -> torch.Tensor:
    history = History()
    found = []
    for chunk in chunks:
        found.append(layer(chunk, history))
        history.first = False
    return torch.cat(found, dim=2)


def test_a_chunk_sees_the_last_slices_of_the_one_before():
    conv = CausalConv3d(1, 1, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, :, 1, 1] = torch.tensor([100.0, 10.0, 1.0])
    slices = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 4, 1, 1)
    assert in_chunks(conv, slices.split((1, 3), dim=2)).flatten().tolist() == [1, 12, 123, 234]
    assert in_chunks(conv, slices.split(1, dim=2)).flatten().tolist() == [1, 12, 123, 234]


@pytest.mark.parametrize(
    ("layer", "sizes"),
    [
        (lambda: Downsample(4, temporal=True), (3, 2, 4)),
        (lambda: Downsample(4, temporal=False), (1, 3, 5)),
        (lambda: Upsample(4, temporal=True), (1, 1, 7)),
        (lambda: Upsample(4, temporal=False), (4, 5)),
        (lambda: ResBlock(4, 8, num_groups=2), (2, 1, 6)),
        (lambda: CausalSequential(ResBlock(4, 4, num_groups=2), CausalConv3d(4, 2)), (1, 1, 7)),
    ],
    ids=["down_t", "down", "up_t", "up", "res_block", "sequential"],
)
def test_chunks_give_what_the_sequence_gives(layer, sizes: tuple[int, ...]):
    torch.manual_seed(0)
    layer, x = layer(), torch.randn(2, 4, sum(sizes), 4, 6)
    torch.testing.assert_close(in_chunks(layer, x.split(sizes, dim=2)), layer(x))


def test_a_condition_in_chunks_is_repeated_as_the_sequence_is():
    condition = torch.arange(4.0).view(1, 1, 4, 1, 1)
    up = Upsample(2, temporal=True)
    first = up.repeat(condition[:, :, :2], History())
    later = up.repeat(condition[:, :, 2:], History(first=False))
    assert first[0, 0, :, 0, 0].tolist() == [0, 1, 1]
    assert later[0, 0, :, 0, 0].tolist() == [2, 2, 3, 3]


def test_a_history_holds_copies_of_the_slices_it_needs_and_nothing_else():
    history, x = History(), torch.randn(1, 4, 9, 4, 6)
    conv, down = CausalConv3d(4, 4), Downsample(4, temporal=True)
    down(conv(x, history), history)
    assert torch.equal(history.inputs[conv], x[:, :, -2:])
    assert history.inputs[down].shape[2] == 1
    for kept in history.inputs.values():
        assert kept.untyped_storage().nbytes() == kept.numel() * 4
