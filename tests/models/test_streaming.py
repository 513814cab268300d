import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ct3dlib.config import CausalTokenizerSpec, LFQSpec
from ct3dlib.models.tokenizer import CausalTokenizer

VARIANTS = {
    "8x8x8": ((1, 2, 2), (True, True)),
    "16x16x8": ((1, 2, 2, 2), (False, True, True)),
    "late": ((1, 2, 2), (True, False)),
    "depth_by_haar_alone": ((1, 2), (False,)),
    "one_level": ((2,), ()),
}
GIB = 2**30


def tiny(variant: str = "8x8x8") -> CausalTokenizer:
    torch.manual_seed(0)
    multipliers, temporal = VARIANTS[variant]
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
    return tiny()


def codes_of(latents: int, *, batch: int = 1, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 6, latents, 2, 3, generator=generator).sign()


def streamed(model: CausalTokenizer, codes: torch.Tensor, latents_per_chunk: int) -> torch.Tensor:
    return torch.cat(list(model.decode_stream(codes, latents_per_chunk=latents_per_chunk)), dim=2)


class Memory(TorchDispatchMode):
    """Bytes of the tensors that are alive, of the largest one, and their peak; also on meta."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: set[int] = set()
        self.now = self.peak = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            weakref.finalize(storage, self._free, key, size)
        self.largest = max(self.largest, size)
        self.peak = max(self.peak, self.now)

    def _free(self, key: int, size: int) -> None:
        self.alive.remove(key)
        self.now -= size


@pytest.mark.parametrize("latents_per_chunk", [1, 2, 3])
@pytest.mark.parametrize("latents", [2, 5, 7])
@pytest.mark.parametrize("variant", VARIANTS)
def test_streamed_slices_are_those_of_the_whole(variant: str, latents: int, latents_per_chunk: int):
    model, codes = tiny(variant), codes_of(latents, batch=2)
    with torch.no_grad():
        whole = model.decode(codes)
    found = streamed(model, codes, latents_per_chunk)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)


def test_the_first_chunk_is_short_by_the_slices_before_slice_0(model: CausalTokenizer):
    chunks = model.decode_stream(codes_of(7), latents_per_chunk=3)
    assert [tuple(chunk.shape) for chunk in chunks] == [
        (1, 1, 17, 16, 24),
        (1, 1, 24, 16, 24),
        (1, 1, 8, 16, 24),
    ]


@pytest.mark.parametrize("latents", [1, 3])
def test_a_chunk_that_holds_all_is_decoding_in_one_piece(model: CausalTokenizer, latents: int):
    codes = codes_of(latents)
    with torch.no_grad():
        whole = model.decode(codes)
    assert torch.equal(streamed(model, codes, 8), whole)


def test_streams_of_one_model_in_turns_do_not_meet(model: CausalTokenizer):
    first, second = codes_of(5), codes_of(5, batch=3, seed=2)
    expected = streamed(model, first, 2), streamed(model, second, 2)
    streams = [model.decode_stream(codes, latents_per_chunk=2) for codes in (first, second)]
    pairs = list(zip(*streams, strict=True))
    for found, wanted in zip(zip(*pairs, strict=True), expected, strict=True):
        assert torch.equal(torch.cat(found, dim=2), wanted)


def test_streams_of_one_model_in_threads_do_not_meet(model: CausalTokenizer):
    inputs = [codes_of(6, seed=seed) for seed in range(8)]
    expected = [streamed(model, codes, 2) for codes in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda codes: streamed(model, codes, 2), inputs))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_stream_that_is_left_leaves_nothing_behind(model: CausalTokenizer):
    codes, before = codes_of(5), set(model.state_dict())
    expected, whole = streamed(model, codes, 2), model.decode(codes)
    attributes = [set(vars(module)) for module in model.modules()]
    list(islice(model.decode_stream(codes_of(5, seed=2), latents_per_chunk=2), 2))
    assert torch.equal(streamed(model, codes, 2), expected)
    assert torch.equal(model.decode(codes), whole)
    assert set(model.state_dict()) == before
    assert [set(vars(module)) for module in model.modules()] == attributes


def test_a_stream_that_fails_leaves_nothing_behind(model: CausalTokenizer):
    codes = codes_of(5)
    expected = streamed(model, codes, 2)
    calls = []

    def fail_in_the_second_chunk(*_: object) -> None:
        calls.append(None)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    handle = model.decoder.levels[1].blocks.register_forward_hook(fail_in_the_second_chunk)
    with pytest.raises(RuntimeError, match="out of memory"):
        streamed(model, codes, 2)
    handle.remove()
    assert torch.equal(streamed(model, codes, 2), expected)


def test_a_chunk_is_decoded_when_it_is_asked_for_and_without_gradient(model: CausalTokenizer):
    calls = []
    model.decoder.register_forward_hook(lambda *_: calls.append(None))
    chunks = model.decode_stream(codes_of(5), latents_per_chunk=2)
    assert not calls
    assert not next(chunks).requires_grad
    assert len(calls) == 1
    assert torch.is_grad_enabled()


def test_a_chunk_needs_a_latent(model: CausalTokenizer):
    with pytest.raises(ValueError, match="latents_per_chunk must be positive, not 0"):
        model.decode_stream(codes_of(2), latents_per_chunk=0)


def test_memory_of_the_published_widths_does_not_grow_with_the_slices():
    with torch.device("meta"):  # one block a level instead of four: one works at a time
        model = CausalTokenizer(CausalTokenizerSpec(num_res_blocks=1)).eval()
        codes = torch.empty(1, 18, 76, 64, 64)
    memory = {}
    for latents in (8, 76):
        slices = 0
        with Memory() as memory[latents]:
            for chunk in model.decode_stream(codes[:, :, :latents], latents_per_chunk=4):
                assert chunk.shape[3:] == (512, 512)
                slices += chunk.shape[2]
                del chunk
        assert slices == 8 * (latents - 1) + 1
    assert memory[76].largest == memory[8].largest
    assert memory[76].peak == pytest.approx(memory[8].peak, rel=0.01)
    # Scale and shift of the last level: 2 x 192 channels of 16 slices of the bands' grid, float32.
    assert memory[76].largest == 2 * 192 * 16 * 256 * 256 * 4
    assert memory[76].peak < 6 * GIB
    with Memory() as whole, torch.no_grad():
        model.decode(codes)
    assert whole.largest == 2 * 192 * 301 * 256 * 256 * 4
    assert whole.peak > 80 * GIB
