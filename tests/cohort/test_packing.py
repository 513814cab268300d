import numpy as np
import pytest

from ct3dlib.cohort.packing import pack_indices, unpack_indices
from ct3dlib.errors import StoreError


def test_indices_are_one_stream_of_bits_most_significant_first():
    packed = pack_indices(np.array([[0b101, 0b011], [0b110, 0b001]]), 3)
    assert [f"{byte:08b}" for byte in packed] == ["10101111", "00010000"]


def test_18_bits_take_18_bits():
    top = 2**18 - 1
    packed = pack_indices(np.array([top, 0, 1, top]), 18)
    assert packed.dtype == np.uint8
    assert packed.size == 9
    bits = "".join(f"{byte:08b}" for byte in packed)
    assert bits == "1" * 18 + "0" * 18 + "0" * 17 + "1" + "1" * 18


@pytest.mark.parametrize("bits", [1, 3, 8, 17, 18, 30, 62])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1,), (0, 4, 4), ()])
def test_unpacking_restores_the_indices(bits: int, shape: tuple[int, ...]):
    indices = np.random.default_rng(0).integers(0, 2**bits, shape, dtype=np.int64)
    packed = pack_indices(np.asarray(indices), bits)
    assert packed.size == -(-indices.size * bits // 8) if shape else -(-bits // 8)
    restored = unpack_indices(packed, bits, shape)
    assert restored.dtype == np.int64
    np.testing.assert_array_equal(restored, indices)


def test_published_volume_has_the_published_size():
    assert pack_indices(np.zeros((31, 64, 64), np.int64), 18).size == 285_696


@pytest.mark.parametrize("index", [-1, 2**18])
def test_indices_that_do_not_fit_are_refused(index: int):
    with pytest.raises(StoreError, match=f"{index}.*18 bits hold 0 to 262143"):
        pack_indices(np.array([5, index]), 18)


def test_streams_of_another_length_are_refused():
    packed = pack_indices(np.arange(10), 5)
    with pytest.raises(
        StoreError, match=r"has shape \(7,\), \(10,\) indices of 6 bits need \(8,\)"
    ):
        unpack_indices(packed, 6, (10,))
    with pytest.raises(
        StoreError, match=r"has shape \(7,\), \(14,\) indices of 5 bits need \(9,\)"
    ):
        unpack_indices(packed, 5, (14,))


def test_filling_that_is_not_zero_is_refused():
    packed = pack_indices(np.arange(3), 5)
    packed[-1] |= 1
    with pytest.raises(StoreError, match="ends in bits that are not 0; encode the volume again"):
        unpack_indices(packed, 5, (3,))


@pytest.mark.parametrize("bits", [0, 63])
def test_bits_that_no_int64_holds_are_refused(bits: int):
    with pytest.raises(ValueError, match=f"bits must lie in 1 to 62, not {bits}"):
        pack_indices(np.zeros(3, np.int64), bits)
