import pytest
import torch

from ct3dlib.config import CausalTokenizerSpec, LFQSpec, SlidingWindowSpec
from ct3dlib.inference.windows import (
    describe_windows,
    encode_windows,
    pass_mode,
    window_borders,
)
from ct3dlib.models.tokenizer import CausalTokenizer
from tests.inference.doubles import fsq_model


@pytest.fixture(params=[(True, True), (False, True), (True, False)], ids=str)
def model(request: pytest.FixtureRequest) -> CausalTokenizer:
    torch.manual_seed(0)
    spec = CausalTokenizerSpec(
        filters=4,
        num_res_blocks=1,
        channel_multipliers=(1, 2, 2),
        temporal_downsample=request.param,
        norm_groups=2,
        quantizer=LFQSpec(bits=12),
    )
    return CausalTokenizer(spec).eval()


def indices_of(
    model: CausalTokenizer, volume: torch.Tensor, windows_per_batch: int
) -> torch.Tensor:
    latents = encode_windows(model, volume, windows_per_batch=windows_per_batch)
    return model.tokens(latents).indices[0]


def volume_for(model: CausalTokenizer, windows: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(1, 1 + windows * model.spec.downsampling[0], 16, 24)


def test_single_windows_and_batches_have_identical_indices(model: CausalTokenizer):
    volume = volume_for(model, 5)
    alone = indices_of(model, volume, 1)
    assert alone.shape == (6, 2, 3)
    for windows_per_batch in (2, 3, 5, 8):
        batched = indices_of(model, volume, windows_per_batch)
        assert torch.equal(alone, batched)


def test_indices_are_those_of_the_model_in_training(model: CausalTokenizer):
    volume = volume_for(model, 3)
    indices = indices_of(model, volume, 2)
    assert torch.equal(indices, model(volume.unsqueeze(0)).quantized.indices[0])


def test_a_longer_volume_keeps_the_indices_of_its_beginning(model: CausalTokenizer):
    volume = volume_for(model, 5)
    shorter = volume[:, : 1 + 3 * model.spec.downsampling[0]]
    longer = indices_of(model, volume, 2)
    assert torch.equal(indices_of(model, shorter, 2), longer[:4])


def test_a_slice_changes_only_tokens_of_windows_that_hold_it(model: CausalTokenizer):
    stride, volume = model.spec.downsampling[0], volume_for(model, 4)
    before = indices_of(model, volume, 3)
    changed = volume.clone()
    changed[:, 2 * stride] *= -5  # the last slice of window 1, the second of window 2
    after = indices_of(model, changed, 3)
    tokens = (before != after).any(dim=(1, 2)).nonzero().flatten().tolist()
    assert tokens
    assert set(tokens) <= {2, 3}


def test_every_batch_has_the_same_size(model: CausalTokenizer, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    encode_window = model.encode_window

    def spy(windows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(windows))
        return encode_window(windows)

    monkeypatch.setattr(model, "encode_window", spy)
    encode_windows(model, volume_for(model, 5), windows_per_batch=3)
    assert sizes == [3, 3]


def test_a_batch_needs_a_window(model: CausalTokenizer):
    with pytest.raises(ValueError, match="windows_per_batch must be positive, not 0"):
        encode_windows(model, volume_for(model, 1), windows_per_batch=0)


def test_windows_are_told_in_the_format_of_the_tokens():
    causal, other = _tiny(), fsq_model()
    spec = SlidingWindowSpec(roi_size=(8, 8, 8), overlap=0.25, sw_batch_size=2, mode="hann")
    assert describe_windows(causal, windows_per_batch=3, sliding=None) == {
        "kind": "causal",
        "slices": 4,
        "stride": 2,
        "windows_per_batch": 3,
    }
    assert describe_windows(other, windows_per_batch=3, sliding=None) == {"kind": "whole"}
    assert describe_windows(other, windows_per_batch=3, sliding=spec) == {
        "kind": "sliding",
        "roi_size": [8, 8, 8],
        "overlap": 0.25,
        "sw_batch_size": 2,
        "mode": "hann",
    }


def test_borders_and_mode_are_those_of_the_windows():
    causal, other = _tiny(), fsq_model()
    spec = SlidingWindowSpec(roi_size=(8, 8, 8), overlap=0.5)
    assert [list(b) for b in window_borders(causal, (7, 8, 8), sliding=None)] == [[1, 3, 5], [], []]
    assert pass_mode(causal, (7, 8, 8), sliding=None) == "causal"
    wanted = ([2, 8], [], [4, 8, 12])
    assert window_borders(other, (10, 6, 16), sliding=spec) == wanted
    assert pass_mode(other, (10, 6, 16), sliding=spec) == "patch"
    assert pass_mode(other, (8, 6, 4), sliding=spec) == "full"
    assert pass_mode(other, (10, 6, 16), sliding=None) == "full"


def _tiny() -> CausalTokenizer:
    """Return a model of two slices a token."""
    spec = CausalTokenizerSpec(
        filters=2, num_res_blocks=1, channel_multipliers=(1,), temporal_downsample=(), norm_groups=1
    )
    return CausalTokenizer(spec).eval()
