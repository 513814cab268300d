import numpy as np
import pytest
import torch

from ct3dlib.config import CausalTokenizerSpec, LFQSpec
from ct3dlib.inference.reconstruct import (
    decode_indices,
    encode_volume,
    padding,
    reconstruct,
)
from ct3dlib.models.tokenizer import CausalTokenizer

WINDOW, RANGE = (-1000.0, 1000.0), (-1.0, 1.0)


@pytest.fixture
def model() -> CausalTokenizer:
    torch.manual_seed(0)
    spec = CausalTokenizerSpec(
        filters=4,
        num_res_blocks=1,
        channel_multipliers=(1, 2),
        temporal_downsample=(True,),
        norm_groups=2,
        quantizer=LFQSpec(bits=6),
    )
    return CausalTokenizer(spec).eval()


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
        ((1, 8, 8), (8, 0, 0)),
        ((8, 8, 8), (1, 0, 0)),
    ],
)
def test_padding_fills_whole_tokens(shape: tuple[int, int, int], pad: tuple[int, int, int]):
    assert padding(shape, (8, 8, 8)) == pad


def test_padding_needs_three_axes():
    with pytest.raises(ValueError, match=r"3 axes \(D, H, W\), not 2"):
        padding((4, 4), (8, 8, 8))


def test_a_volume_is_padded_at_its_far_end_with_the_low_window(
    model: CausalTokenizer, volume: np.ndarray
):
    filled = np.full((13, 16, 16), -1024, np.int16)
    filled[:11, :14] = volume
    encoded = encode_volume(model, volume, window=WINDOW, value_range=RANGE, windows_per_batch=2)
    whole = encode_volume(model, filled, window=WINDOW, value_range=RANGE, windows_per_batch=2)
    assert encoded.pad == (2, 2, 0)
    assert whole.pad == (0, 0, 0)
    assert torch.equal(encoded.indices, whole.indices)


def test_reconstruction_is_the_model_applied_in_its_range(
    model: CausalTokenizer, volume: np.ndarray
):
    volume = volume[:9, :12]
    found = reconstruct(model, volume, window=WINDOW, value_range=RANGE, windows_per_batch=1)
    values = torch.from_numpy(volume.astype(np.float32)).clamp(-1000, 1000) / 1000
    with torch.no_grad():
        expected = model(values[None, None]).volumes[0, 0].clamp(-1, 1) * 1000
    np.testing.assert_allclose(found.hu, expected.numpy(), atol=0.01)


def test_reconstruction_has_the_shape_and_window_of_the_original(
    model: CausalTokenizer, volume: np.ndarray
):
    with torch.no_grad():
        model.decoder.output[-1].weight.mul_(100)
    found = reconstruct(
        model, volume, window=(-500.0, 700.0), value_range=(0.0, 1.0), windows_per_batch=2
    )
    assert found.hu.shape == volume.shape
    assert found.hu.dtype == np.float32
    assert found.hu.min() == -500
    assert found.hu.max() == 700
    assert found.indices.shape == (4, 4, 4)


def test_indices_alone_decode_to_the_reconstruction(model: CausalTokenizer, volume: np.ndarray):
    found = reconstruct(model, volume, window=WINDOW, value_range=RANGE, windows_per_batch=2)
    decoded = decode_indices(
        model, found.indices, shape=volume.shape, window=WINDOW, value_range=RANGE
    )
    np.testing.assert_array_equal(decoded, found.hu)


def test_indices_do_not_decode_to_more_than_they_stand_for(model: CausalTokenizer):
    indices = torch.zeros(2, 1, 1, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=r"\(2, 1, 1\) tokens decode to \(5, 4, 4\), not \(6, 4, 4\)"
    ):
        decode_indices(model, indices, shape=(6, 4, 4), window=WINDOW, value_range=RANGE)


def test_a_volume_with_nan_is_refused(model: CausalTokenizer):
    volume = np.zeros((9, 8, 8), np.float32)
    volume[3, 2, 1] = np.nan
    with pytest.raises(FloatingPointError, match="latents are not finite"):
        encode_volume(model, volume, window=WINDOW, value_range=RANGE, windows_per_batch=2)
