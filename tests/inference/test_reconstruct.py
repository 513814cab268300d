from dataclasses import replace

import numpy as np
import pytest
import torch

from ct3dlib.config import (
    CausalTokenizerSpec,
    LFQSpec,
    MaisiTokenizerSpec,
    RecipeSpec,
    SlidingWindowSpec,
)
from ct3dlib.errors import CheckpointError
from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.inference.reconstruct import (
    decode_indices,
    decode_latents,
    encode_to_latents,
    encode_volume,
    reconstruct,
)
from ct3dlib.models.maisi import MaisiTokenizer
from ct3dlib.models.tokenizer import CausalTokenizer
from tests.inference.doubles import Blocks, fsq_model, kl_spec

WINDOW = (-1000.0, 1000.0)
SMALL = SlidingWindowSpec(roi_size=(8, 8, 12), overlap=0.25, sw_batch_size=2)


def causal_model(*, levels: int = 2) -> CausalTokenizer:
    torch.manual_seed(0)
    spec = CausalTokenizerSpec(
        filters=4,
        num_res_blocks=1,
        channel_multipliers=(1, 2, 2)[:levels],
        temporal_downsample=(True, True)[: levels - 1],
        norm_groups=2,
        quantizer=LFQSpec(bits=6),
    )
    return CausalTokenizer(spec).eval()


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(causal_model(), RecipeSpec(), None, "f" * 64)


@pytest.fixture
def sliding() -> Tokenizer:
    return Tokenizer(fsq_model(), RecipeSpec(), SMALL, "f" * 64)


@pytest.fixture
def lossless() -> Tokenizer:
    return Tokenizer(Blocks(kl_spec((2, 2, 2))).eval(), RecipeSpec(), SMALL, "f" * 64)


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(-1024, 3072, (11, 14, 16)).astype(np.int16)


@pytest.mark.parametrize(
    ("shape", "pad"),
    [
        ((9, 16, 16), (0, 0, 0)),
        ((10, 16, 16), (7, 0, 0)),
        ((17, 9, 15), (0, 7, 1)),
        ((16, 16, 17), (1, 0, 7)),
        ((1, 8, 8), (0, 0, 0)),
        ((2, 8, 8), (7, 0, 0)),
        ((8, 8, 8), (1, 0, 0)),
    ],
)
def test_padding_of_a_causal_model_fills_whole_tokens(
    shape: tuple[int, int, int], pad: tuple[int, int, int]
):
    model = causal_model(levels=3)
    assert model.downsampling == (8, 8, 8)
    assert model.padding(shape) == pad


@pytest.mark.parametrize("model", [causal_model(), fsq_model()], ids=["causal", "fsq"])
def test_padding_needs_three_axes(model):
    with pytest.raises(ValueError, match=r"3 axes \(D, H, W\), not 2"):
        model.padding((4, 4))


def test_a_volume_is_padded_at_its_far_end_with_the_low_window(
    tokenizer: Tokenizer, volume: np.ndarray
):
    filled = np.full((13, 16, 16), -1024, np.int16)
    filled[:11, :14] = volume
    encoded = encode_volume(tokenizer, volume, window=WINDOW, windows_per_batch=2)
    whole = encode_volume(tokenizer, filled, window=WINDOW, windows_per_batch=2)
    assert encoded.pad == (2, 2, 0)
    assert whole.pad == (0, 0, 0)
    assert torch.equal(encoded.indices, whole.indices)


def test_reconstruction_is_the_model_applied_in_its_range(tokenizer: Tokenizer, volume: np.ndarray):
    volume = volume[:9, :12]
    found = reconstruct(tokenizer, volume, window=WINDOW, windows_per_batch=1)
    values = torch.from_numpy(volume.astype(np.float32)).clamp(-1000, 1000) / 1000
    with torch.no_grad():
        expected = tokenizer.model(values[None, None]).volumes[0, 0].clamp(-1, 1) * 1000
    np.testing.assert_allclose(found.hu, expected.numpy(), atol=0.01)


def test_a_long_volume_is_decoded_chunk_by_chunk_to_the_same_values(tokenizer: Tokenizer):
    indices = torch.randint(0, 64, (11, 2, 3), generator=torch.Generator().manual_seed(0))
    found = decode_indices(tokenizer, indices, shape=(41, 8, 12), window=WINDOW)
    with torch.no_grad():
        expected = tokenizer.model.decode_indices(indices[None])[0, 0].clamp(-1, 1) * 1000
    np.testing.assert_allclose(found, expected.numpy(), atol=0.01)


def test_reconstruction_has_the_shape_and_window_of_the_original(
    tokenizer: Tokenizer, volume: np.ndarray
):
    with torch.no_grad():
        tokenizer.model.last_layer().mul_(100)
    recipe = RecipeSpec(range=(0.0, 1.0))
    found = reconstruct(
        replace(tokenizer, recipe=recipe), volume, window=(-500.0, 700.0), windows_per_batch=2
    )
    assert found.hu.shape == volume.shape
    assert found.hu.dtype == np.float32
    assert found.hu.min() == -500
    assert found.hu.max() == 700
    assert found.indices.shape == (4, 4, 4)


@pytest.mark.parametrize("kind", ["tokenizer", "sliding"])
def test_indices_or_latents_alone_decode_to_the_reconstruction(kind, volume, request):
    tokenizer = request.getfixturevalue(kind)
    found = reconstruct(tokenizer, volume, window=WINDOW, windows_per_batch=2)
    decoded = decode_indices(tokenizer, found.indices, shape=volume.shape, window=WINDOW)
    np.testing.assert_array_equal(decoded, found.hu)
    encoded = encode_volume(tokenizer, volume, window=WINDOW, windows_per_batch=2)
    assert torch.equal(encoded.indices, found.indices)
    latents = encode_to_latents(tokenizer, volume, window=WINDOW, windows_per_batch=2)
    decoded = decode_latents(tokenizer, latents, shape=volume.shape, window=WINDOW)
    np.testing.assert_array_equal(decoded, found.hu)


def test_volumes_of_any_shape_come_back_as_they_were(lossless: Tokenizer):
    rng = np.random.default_rng(0)
    for shape in [(15, 33, 33), *rng.integers(1, 30, (20, 3)).tolist()]:
        hu = rng.integers(-1000, 1001, shape).astype(np.int16)
        for tokenizer in (lossless, replace(lossless, sliding=None)):
            out = reconstruct(tokenizer, hu, window=WINDOW, windows_per_batch=1)
            assert out.indices is None
            np.testing.assert_allclose(out.hu, hu, atol=0.01)


def test_a_model_in_parts_takes_volumes_smaller_and_larger_than_its_window():
    spec = MaisiTokenizerSpec(
        num_channels=(2, 2),
        num_res_blocks=(1, 1),
        attention_levels=(False, False),
        norm_groups=1,
        num_splits=2,
    )
    torch.manual_seed(0)
    windows = SlidingWindowSpec(roi_size=(16, 16, 20))
    tokenizer = Tokenizer(MaisiTokenizer(spec).eval(), RecipeSpec(), windows, "f" * 64)
    for shape in ((5, 17, 33), (21, 10, 20)):
        hu = np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)
        found = reconstruct(tokenizer, hu, window=WINDOW, windows_per_batch=1)
        assert found.hu.shape == shape
        assert np.isfinite(found.hu).all()


def test_a_model_that_sees_volumes_whole_has_no_windows(sliding: Tokenizer, volume: np.ndarray):
    whole = replace(sliding, sliding=None)
    reconstruct(whole, volume, window=WINDOW, windows_per_batch=1)
    assert whole.model.seen == [(1, 1, 12, 14, 16), (1, 3, 6, 7, 8)]


def test_axes_are_turned_once_on_the_way_in_and_once_on_the_way_out(lossless: Tokenizer):
    hu = np.full((4, 6, 10), -900, np.int16)
    hu[3, 1, 8] = 900
    turned = replace(lossless, recipe=RecipeSpec(axes="dwh"), sliding=None)
    latents = encode_to_latents(turned, hu, window=WINDOW, windows_per_batch=1)
    assert turned.model.seen == [(1, 1, 4, 10, 6)]
    # Voxel (3, 8, 1) of what the model sees: latent (1, 4, 0), the block's voxel (1, 0, 1).
    assert latents.argmax() == np.ravel_multi_index((5, 1, 4, 0), (8, 2, 5, 3))
    found = decode_latents(turned, latents, shape=hu.shape, window=WINDOW)
    np.testing.assert_allclose(found, hu, atol=0.01)


def test_axes_of_tokens_are_those_that_the_model_sees(sliding: Tokenizer, volume: np.ndarray):
    turned = replace(sliding, recipe=RecipeSpec(axes="dwh"))
    found = encode_volume(turned, volume, window=WINDOW, windows_per_batch=1)
    assert found.pad == (1, 0, 0)
    assert found.indices.shape == (6, 8, 7)
    by_hand = encode_volume(sliding, volume.swapaxes(1, 2), window=WINDOW, windows_per_batch=1)
    assert torch.equal(found.indices, by_hand.indices)
    decoded = decode_indices(turned, found.indices, shape=volume.shape, window=WINDOW)
    unturned = decode_indices(sliding, found.indices, shape=(11, 16, 14), window=WINDOW)
    np.testing.assert_array_equal(decoded, unturned.swapaxes(1, 2))


def test_indices_do_not_decode_to_more_than_they_stand_for(tokenizer: Tokenizer):
    indices = torch.zeros(2, 1, 1, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=r"\(2, 1, 1\) tokens decode to \(5, 4, 4\) voxels, not \(6, 4, 4\)"
    ):
        decode_indices(tokenizer, indices, shape=(6, 4, 4), window=WINDOW)


@pytest.mark.parametrize("kind", ["tokenizer", "sliding", "lossless"])
def test_a_volume_with_nan_is_refused(kind, request):
    volume = np.zeros((9, 8, 8), np.float32)
    volume[3, 2, 1] = np.nan
    with pytest.raises(FloatingPointError, match="latents are not finite"):
        reconstruct(request.getfixturevalue(kind), volume, window=WINDOW, windows_per_batch=2)


def test_a_model_without_a_quantizer_makes_no_tokens(lossless: Tokenizer, volume: np.ndarray):
    wanted = "the tokenizer f{12}: a model of the name vae has latents and no tokens; store its"
    with pytest.raises(CheckpointError, match=wanted):
        encode_volume(lossless, volume, window=WINDOW, windows_per_batch=1)
    with pytest.raises(CheckpointError, match=wanted):
        decode_indices(
            lossless, torch.zeros(1, 1, 1, dtype=torch.int64), shape=(1, 1, 1), window=WINDOW
        )
