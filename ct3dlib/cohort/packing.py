"""Token indices as one stream of bits: in C order, each most significant bit first."""

import math

import numpy as np
from numpy.typing import NDArray

from ct3dlib.errors import StoreError

MAX_BITS = 62


def pack_indices(indices: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """Return the bit stream of the indices, 1-D, the last byte filled with zeros.

    Args:
        indices: Any shape, values in [0, 2**bits).
        bits: Bits of one index, 1 to 62.

    Raises:
        ValueError: `bits` is out of range.
        StoreError: An index does not fit.
    """
    _check_bits(bits)
    flat = indices.ravel()
    if flat.size and (flat.min() < 0 or flat.max() >= 1 << bits):
        raise StoreError(
            f"indices span {flat.min()} to {flat.max()}, {bits} bits hold 0 to {(1 << bits) - 1}"
        )
    spread = np.empty((flat.size, bits), np.uint8)
    for column, shift in enumerate(reversed(range(bits))):
        spread[:, column] = (flat >> shift) & 1
    return np.packbits(spread)


def unpack_indices(
    payload: NDArray[np.uint8], bits: int, shape: tuple[int, ...]
) -> NDArray[np.int64]:
    """Return the indices of a bit stream.

    Args:
        payload: What `pack_indices` gave.
        bits: Bits of one index, 1 to 62.
        shape: Shape of the indices.

    Raises:
        ValueError: `bits` is out of range.
        StoreError: The stream is not as long as the shape says, or its filling is not zero.
    """
    _check_bits(bits)
    count = math.prod(shape)
    wanted = -(-count * bits // 8)
    if payload.shape != (wanted,):
        raise StoreError(
            f"a packed array has shape {payload.shape}, {shape} indices of {bits} bits need "
            f"({wanted},); encode the volume again"
        )
    stream = np.unpackbits(payload)
    if stream[count * bits :].any():
        raise StoreError("a packed array ends in bits that are not 0; encode the volume again")
    spread = stream[: count * bits].reshape(count, bits)
    indices = np.zeros(count, np.int64)
    for column in range(bits):
        indices = (indices << 1) | spread[:, column]
    return indices.reshape(shape)


def _check_bits(bits: int) -> None:
    """Raise unless an index of so many bits fits an int64."""
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits must lie in 1 to {MAX_BITS}, not {bits}")
