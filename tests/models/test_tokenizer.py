import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ct3dlib.config import CausalTokenizerSpec, LFQSpec
from ct3dlib.models import build_model
from ct3dlib.models.tokenizer import CausalTokenizer, join_windows

PUBLISHED = {
    "8x8x8": ((1, 2, 4), (True, True)),
    "16x16x8": ((1, 2, 2, 4), (False, True, True)),
}
MILLIONS = {"8x8x8": (72.55, 115.07, 187.6), "16x16x8": (81.51, 127.03, 208.5)}
TERA_OPERATIONS = {"8x8x8": (93.2, 94.6), "16x16x8": (91.9, 98.2)}


def tiny(multipliers: tuple[int, ...], temporal: tuple[bool, ...]) -> CausalTokenizer:
    torch.manual_seed(0)
    spec = CausalTokenizerSpec(
        filters=4,
        num_res_blocks=1,
        channel_multipliers=multipliers,
        temporal_downsample=temporal,
        norm_groups=2,
        quantizer=LFQSpec(bits=6),
    )
    return CausalTokenizer(spec).eval()


@pytest.fixture
def model() -> CausalTokenizer:
    return tiny((1, 2, 2), (True, True))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_geometries_have_the_published_number_of_parameters(name: str):
    multipliers, temporal = PUBLISHED[name]
    spec = CausalTokenizerSpec(channel_multipliers=multipliers, temporal_downsample=temporal)
    with torch.device("meta"):
        model = build_model(spec)
    parts = (model.encoder, model.decoder, model)
    counts = [sum(p.numel() for p in part.parameters()) / 1e6 for part in parts]
    assert counts == pytest.approx(MILLIONS[name], rel=1e-3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_chest_takes_the_operations_of_the_original(name: str):
    multipliers, temporal = PUBLISHED[name]
    spec = CausalTokenizerSpec(channel_multipliers=multipliers, temporal_downsample=temporal)
    with torch.device("meta"):
        model = build_model(spec)
    counts = []
    with torch.no_grad(), FlopCounterMode(display=False) as encoding:
        latents = model.encode_windowed(torch.empty(1, 1, 241, 512, 512, device="meta"))
    counts.append(encoding.get_total_flops() / 1e12)
    with torch.no_grad(), FlopCounterMode(display=False) as decoding:
        model.decode(torch.empty_like(latents))
    counts.append(decoding.get_total_flops() / 1e12)
    assert counts == pytest.approx(TERA_OPERATIONS[name], abs=0.05)


@pytest.mark.parametrize(("name", "grid"), [("8x8x8", (31, 64, 64)), ("16x16x8", (31, 32, 32))])
def test_a_chest_of_241_slices_has_the_published_grid(name: str, grid: tuple[int, int, int]):
    multipliers, temporal = PUBLISHED[name]
    model = tiny(multipliers, temporal).to("meta")
    latents = model.encode(torch.empty(1, 1, 241, 512, 512, device="meta"))
    assert latents.shape == (1, 6, *grid)
    assert model.windows(torch.empty(1, 1, 241, 512, 512, device="meta")).shape[1:3] == (30, 1)
    assert model.decode(torch.empty_like(latents)).shape == (1, 1, 241, 512, 512)


@pytest.mark.parametrize(
    ("multipliers", "temporal"),
    [((1, 2), (True,)), ((1, 2, 2), (False, True)), ((2,), ()), ((1, 1), (False,))],
)
def test_decoding_gives_back_the_shape(multipliers: tuple[int, ...], temporal: tuple[bool, ...]):
    model = tiny(multipliers, temporal)
    down = model.spec.downsampling
    volumes = torch.randn(2, 1, 1 + 3 * down[0], 2 * down[1], 3 * down[2])
    result = model(volumes)
    assert result.volumes.shape == volumes.shape
    assert result.quantized.indices.shape == (2, 4, 2, 3)
    assert torch.equal(model.decode_indices(result.quantized.indices), result.volumes)


@pytest.mark.parametrize("shape", [(8, 16, 16), (10, 16, 16), (9, 12, 16), (9, 16, 20)])
def test_shapes_that_do_not_fill_tokens_are_refused(
    model: CausalTokenizer, shape: tuple[int, int, int]
):
    with pytest.raises(
        ValueError, match=rf"volumes have \({shape[0]}, .*needs \(1 \+ n x 8, n x 8, n x 8\): crop"
    ):
        model(torch.zeros(1, 1, *shape))


def test_a_single_slice_is_one_window_with_the_first_latent_of_any_volume(model: CausalTokenizer):
    volume = torch.rand(1, 1, 17, 16, 8) * 2 - 1
    alone = model.encode_windowed(volume[:, :, :1])
    assert alone.shape == (1, 6, 1, 2, 1)
    torch.testing.assert_close(alone, model.encode_windowed(volume)[:, :, :1])
    assert model(volume[:, :, :1]).volumes.shape == (1, 1, 1, 16, 8)


def test_windows_hold_the_slices_that_define_their_tokens(model: CausalTokenizer):
    slices = torch.arange(25.0).view(1, 1, 25, 1, 1).expand(1, 1, 25, 8, 8)
    windows = model.windows(slices)[0, :, 0, :, 0, 0].tolist()
    assert windows[0] == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert windows[1] == list(range(7, 17))
    assert windows[2] == list(range(15, 25))


def test_joining_keeps_both_latents_of_the_first_window_and_the_second_of_others():
    latents = torch.arange(6.0).view(1, 3, 1, 2, 1, 1)
    assert join_windows(latents).flatten().tolist() == [0, 1, 3, 5]


def test_windowed_latents_are_those_of_each_window_alone(model: CausalTokenizer):
    volumes = torch.randn(2, 1, 25, 16, 16)
    latents = model.encode_windowed(volumes)
    doubled = torch.cat((volumes[:, :, :1], volumes), dim=2)
    with torch.no_grad():
        for window in range(3):
            alone = model.encode_window(doubled[:, :, 8 * window : 8 * window + 10])
            torch.testing.assert_close(latents[:, :, window + 1], alone[:, :, 1])


def test_windows_alone_and_together_have_identical_indices(model: CausalTokenizer):
    volumes = torch.randn(1, 1, 41, 16, 24)
    together = model(volumes).quantized.indices
    windows = model.windows(volumes)
    with torch.no_grad():
        alone = torch.stack([model.encode_window(w) for w in windows.unbind(1)], dim=1)
    assert torch.equal(model.tokens(join_windows(alone)).indices, together)


def test_windows_are_not_the_whole_causal_sequence(model: CausalTokenizer):
    volumes = torch.randn(1, 1, 25, 16, 16)
    windowed, whole = model.encode_windowed(volumes), model.encode(volumes)
    torch.testing.assert_close(windowed[:, :, :2], whole[:, :, :2])
    assert (windowed[:, :, 2:] - whole[:, :, 2:]).abs().min(dim=2).values.max() > 1e-3


@pytest.mark.parametrize("changed", [0, 6, 7, 8, 9, 14, 15, 16, 17, 24])
def test_a_slice_changes_only_latents_of_windows_that_hold_it(model: CausalTokenizer, changed: int):
    volumes = torch.randn(1, 1, 25, 8, 8)
    other = volumes.clone()
    other[:, :, changed] += 1
    differs = model.encode_windowed(volumes) != model.encode_windowed(other)
    found = set(differs.any(dim=1).flatten().nonzero().flatten().tolist())
    # Latent 0 sees slice 0 alone, latent k > 0 the slices of window k - 1: 8(k-1) - 1 to 8k.
    wanted = {k for k in range(1, 4) if 8 * (k - 1) - 1 <= changed <= 8 * k}
    assert found == wanted | ({0} if changed == 0 else set())


@pytest.mark.parametrize("changed", [1, 2, 3])
def test_a_code_changes_no_slice_before_its_own(model: CausalTokenizer, changed: int):
    codes = torch.randn(1, 6, 4, 2, 2).sign()
    other = codes.clone()
    other[:, :, changed] *= -1
    first = int((model.decode(codes) != model.decode(other)).any(dim=(0, 1, 3, 4)).nonzero()[0])
    assert first == 8 * (changed - 1) + 1


@pytest.mark.parametrize(
    ("shape", "pad"),
    [
        ((9, 16, 16), (0, 0, 0)),
        ((10, 9, 15), (7, 7, 1)),
        ((17, 16, 17), (0, 0, 7)),
        ((1, 8, 8), (0, 0, 0)),
        ((2, 8, 8), (7, 0, 0)),
        ((8, 8, 8), (1, 0, 0)),
    ],
)
def test_padding_fills_windows_and_whole_latents(
    model: CausalTokenizer, shape: tuple[int, int, int], pad: tuple[int, int, int]
):
    assert model.padding(shape) == pad
    filled = [n + more for n, more in zip(shape, pad, strict=True)]
    model.windows(torch.empty(1, 1, *filled, device="meta"))


def test_padding_needs_three_axes(model: CausalTokenizer):
    with pytest.raises(ValueError, match=r"3 axes \(D, H, W\), not 2"):
        model.padding((4, 4))


def test_the_last_layer_makes_the_bands(model: CausalTokenizer):
    assert model.last_layer() is model.decoder.output[-1].weight
    assert model.last_layer().shape[0] == 8


def test_blocks_hold_most_of_the_weights(model: CausalTokenizer):
    # One in each of three levels and one between encoder and codes; the same in the decoder.
    assert len(model.blocks()) == 8
    inside = sum(p.numel() for block in model.blocks() for p in block.parameters())
    assert inside > sum(p.numel() for p in model.parameters()) / 3


def test_every_parameter_has_a_gradient(model: CausalTokenizer):
    model(torch.randn(1, 1, 17, 16, 16)).volumes.square().mean().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


def test_nan_voxels_are_refused(model: CausalTokenizer):
    volumes = torch.zeros(1, 1, 9, 8, 8)
    volumes[0, 0, 4, 3, 2] = float("nan")
    with pytest.raises(FloatingPointError, match="latents are not finite"):
        model(volumes)
