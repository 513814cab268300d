import math

import pytest
import torch
from monai.data.utils import compute_importance_map
from monai.inferers import sliding_window_inference

from ct3dlib.config import SlidingWindowSpec
from ct3dlib.inference.sliding import (
    Axis,
    decode_sliding,
    encode_sliding,
    lay_windows,
    window_weights,
    windows_of,
)
from tests.inference.doubles import Blocks, fsq_model, kl_spec

MODES = ("gaussian", "constant", "hann")


@pytest.mark.parametrize(
    ("size", "window", "overlap", "starts"),
    [
        (10, 4, 0.5, (0, 2, 4, 6)),
        (9, 4, 0.5, (0, 2, 4, 5)),
        (9, 4, 0.0, (0, 4, 5)),
        (8, 4, 0.0, (0, 4)),
        (4, 4, 0.5, (0,)),
        (12, 10, 0.9, (0, 1, 2)),
        (12, 10, 0.7, (0, 2)),
        (3, 2, 0.99, (0, 1)),
    ],
)
def test_windows_cover_an_axis_and_the_last_ends_with_it(size, window, overlap, starts):
    (axis,) = lay_windows([size], [window], overlap=overlap)
    assert axis == Axis(size, window, starts)


def test_an_axis_shorter_than_a_window_is_one_window():
    assert lay_windows([3], [8], overlap=0.5) == [Axis(3, 3, (0,))]


def test_borders_are_the_starts_and_ends_of_windows_inside():
    assert Axis(9, 4, (0, 2, 4, 5)).borders(2) == [4, 8, 10, 12, 16]
    assert Axis(8, 4, (0, 4)).borders(1) == [4]
    assert Axis(4, 4, (0,)).borders(8) == []


def test_weights_are_those_worked_out_by_hand():
    half = math.cos(math.pi / 8) ** 2
    assert window_weights(4, "hann").tolist() == pytest.approx([1 - half, half, half, 1 - half])
    # Eight voxels: a standard deviation is one voxel, the ends lie 3.5 from the middle.
    assert window_weights(8, "gaussian")[0] == pytest.approx(math.exp(-(3.5**2) / 2))
    assert window_weights(3, "constant").tolist() == [1, 1, 1]
    assert [window_weights(1, mode).item() for mode in MODES] == [1, 1, 1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", [2, 5, 64, 257])
def test_weights_are_positive_to_the_ends_and_symmetric(length, mode):
    weights = window_weights(length, mode)
    assert (weights > 0).all()
    torch.testing.assert_close(weights, weights.flip(0))


@pytest.mark.parametrize("mode", MODES)
def test_weights_add_up_to_one_everywhere_and_are_one_where_a_window_is_alone(mode):
    axis = Axis(11, 4, (0, 3, 6, 7))
    total, covered = torch.zeros(22), torch.zeros(22)
    for start, share in zip(axis.starts, axis.shares(2, mode), strict=True):
        total[2 * start : 2 * start + 8] += share
        covered[2 * start : 2 * start + 8] += 1
    torch.testing.assert_close(total, torch.ones(22))
    assert (total[covered == 1] == 1).all()


STEPS = {
    "voxels": ((1, 1, 1),),
    "2x2x2": ((2, 2, 2),),
    "2D 1x2x4": ((1, 2, 2), (1, 1, 2)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("steps", STEPS)
def test_a_lossless_model_is_lossless_in_windows_at_the_borders_too(steps, overlap, mode):
    model = Blocks(kl_spec(*STEPS[steps])).eval()
    spec = SlidingWindowSpec(roi_size=(4, 8, 12), overlap=overlap, sw_batch_size=3, mode=mode)
    generator = torch.Generator().manual_seed(0)
    for odd in ((15, 33, 33), (3, 5, 31), (4, 9, 13), (17, 8, 12)):
        shape = [n + pad for n, pad in zip(odd, model.padding(odd), strict=True)]
        volume = torch.rand(1, *shape, generator=generator) * 2 - 1
        latents = encode_sliding(model, volume, spec=spec)
        assert (latents - model.encode(volume.unsqueeze(0))).abs().max() < 1e-5
        decoded = decode_sliding(model, latents, spec=spec)
        assert (decoded[0] - volume).abs().max() < 1e-5


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("roi", [(8, 12, 16), (64, 64, 64)], ids=str)
def test_a_volume_in_one_window_has_the_ids_of_the_model_itself(roi, batch):
    model = fsq_model()
    volume = torch.randn(1, 8, 12, 16, generator=torch.Generator().manual_seed(0))
    spec = SlidingWindowSpec(roi_size=roi, sw_batch_size=batch)
    with torch.inference_mode():
        direct = model(volume.unsqueeze(0))
    latents = encode_sliding(model, volume, spec=spec)
    found = model.tokens(latents)
    assert torch.equal(latents, direct.latents)
    assert torch.equal(found.indices, direct.quantized.indices)
    assert torch.equal(decode_sliding(model, found.codes, spec=spec), direct.volumes)


def smooth_volume(*shape: int) -> torch.Tensor:
    noise = torch.randn(1, 1, *(n // 4 for n in shape), generator=torch.Generator().manual_seed(2))
    return torch.nn.functional.interpolate(noise, shape, mode="trilinear")[0]


@pytest.mark.parametrize("mode", MODES)
def test_latents_are_blended_and_then_quantized_once(mode):
    model, volume = fsq_model(), smooth_volume(24, 32, 40)
    spec = SlidingWindowSpec(roi_size=(16, 16, 16), sw_batch_size=2, mode=mode)
    latents = encode_sliding(model, volume, spec=spec)
    quantized = model.tokens(latents)
    # On the lattice: reading the ids back gives the codes that are decoded.
    assert torch.equal(model.tokens.indices_to_codes(quantized.indices), quantized.codes)
    total, weights = torch.zeros_like(latents), torch.zeros_like(latents)
    of_axis = window_weights(8, mode).float()
    weight = of_axis[:, None, None] * of_axis[:, None] * of_axis
    with torch.no_grad():
        for d in (0, 4):
            for h in (0, 4, 8):
                for w in (0, 4, 8, 12):
                    part = volume[:, 2 * d : 2 * d + 16, 2 * h : 2 * h + 16, 2 * w : 2 * w + 16]
                    total[..., d : d + 8, h : h + 8, w : w + 8] += model.encode(part[None]) * weight
                    weights[..., d : d + 8, h : h + 8, w : w + 8] += weight
        direct = model(volume.unsqueeze(0)).quantized.indices
    torch.testing.assert_close(latents, total / weights, atol=1e-5, rtol=1e-5)
    assert (quantized.indices == direct).float().mean() >= (0.8 if mode == "constant" else 0.95)


def test_windows_without_weights_are_averaged_as_monai_does():
    """Of a model that says in each window how far from its start a voxel is."""
    volume = torch.rand(1, 12, 16, 20, generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0, 1, 8)

    def encode(windows: torch.Tensor) -> torch.Tensor:
        return windows + ramp[:, None, None] + 2 * ramp[:, None] + 3 * ramp

    model = Blocks(kl_spec((1, 1, 1))).eval()
    model.encode = encode
    spec = SlidingWindowSpec(roi_size=(8, 8, 8), overlap=0.5, sw_batch_size=4, mode="constant")
    wanted = sliding_window_inference(volume[None], (8, 8, 8), 4, encode, overlap=0.5)
    torch.testing.assert_close(encode_sliding(model, volume, spec=spec), wanted)


def test_gaussian_weights_are_those_of_monai():
    """But for those below 0.001, which MONAI lifts: ours need no floor to stay positive."""
    wanted = compute_importance_map((8, 12, 5), mode="gaussian", sigma_scale=0.125)
    d, h, w = (window_weights(n, "gaussian").float() for n in (8, 12, 5))
    torch.testing.assert_close((d[:, None, None] * h[:, None] * w).clamp_min(1e-3), wanted)


def test_the_decoder_never_sees_more_than_a_window():
    model = fsq_model()
    spec = SlidingWindowSpec(roi_size=(8, 12, 16), sw_batch_size=2)
    decode_sliding(model, torch.zeros(1, 3, 10, 11, 12), spec=spec)
    assert set(model.seen) == {(2, 3, 4, 6, 8)}


@pytest.mark.parametrize("mode", MODES)
def test_constant_latents_decode_without_seams(mode):
    model = fsq_model()
    codes = torch.tensor([0.5, -1.0, 1.0]).view(1, 3, 1, 1, 1).expand(1, 3, 9, 10, 11)
    spec = SlidingWindowSpec(roi_size=(8, 8, 8), overlap=0.3, mode=mode)
    with torch.no_grad():
        direct = model.decode(codes)
    assert (decode_sliding(model, codes, spec=spec) - direct).abs().max() < 1e-6


@pytest.mark.parametrize(("mode", "gate_db"), [("gaussian", 45), ("hann", 45), ("constant", 30)])
def test_windows_decode_nearly_what_the_whole_does(mode, gate_db):
    """A model whose decoder looks at neighbours, which its windows do not have at their ends."""
    model = fsq_model()
    model.decoder = torch.nn.Sequential(torch.nn.Conv3d(3, 3, 3, padding=1), model.decoder)
    codes = model.tokens(4 * smooth_volume(24, 32, 40).expand(1, 3, -1, -1, -1)).codes
    spec = SlidingWindowSpec(roi_size=(32, 32, 32), overlap=0.5, sw_batch_size=4, mode=mode)
    with torch.no_grad():
        direct = model.decode(codes)
    error = (decode_sliding(model, codes, spec=spec) - direct).square().mean()
    width = direct.max() - direct.min()
    assert 20 * width.log10() - 10 * error.log10() >= gate_db
    # An overlap that reaches past what a window cannot know leaves no error in its middle.
    alone = model.decode(codes[..., :16, :16, :16])[..., 2:-2, 2:-2, 2:-2]
    torch.testing.assert_close(alone, direct[..., 2:30, 2:30, 2:30])


def test_every_batch_has_the_same_size_and_none_changes_the_result():
    model, volume = fsq_model(), smooth_volume(16, 24, 20)
    found = {}
    for batch in (1, 4, 5):
        model.seen.clear()
        spec = SlidingWindowSpec(roi_size=(8, 8, 8), sw_batch_size=batch)
        found[batch] = encode_sliding(model, volume, spec=spec)
        assert len(set(model.seen)) == 1
        assert model.seen[0] == (batch, 1, 8, 8, 8)
        assert len(model.seen) == -(-3 * 5 * 4 // batch)
    torch.testing.assert_close(found[1], found[4], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], found[5], atol=1e-5, rtol=0)


def test_windows_and_volumes_are_whole_latents():
    model = fsq_model()
    with pytest.raises(
        ValueError,
        match=r"roi_size of \(8, 7, 8\) voxels is not whole .* multiple of \(2, 2, 2\)",
    ):
        windows_of(model, (8, 8, 8), spec=SlidingWindowSpec(roi_size=(8, 7, 8)))
    # MONAI's windows would silently leave out the last voxels.
    with pytest.raises(ValueError, match=r"a volume of \(8, 8, 9\) voxels is not whole latents"):
        encode_sliding(model, torch.zeros(1, 8, 8, 9), spec=SlidingWindowSpec(roi_size=(8, 8, 8)))
