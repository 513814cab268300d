"""Hashes by which stored arrays and their attributes are told from damaged or edited ones."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def array_sha256(array: NDArray[np.generic]) -> str:
    """Return the hash of an array's dtype, shape and values."""
    digest = hashlib.sha256(f"{array.dtype.str}{list(array.shape)}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def attributes_sha256(attributes: Mapping[str, Any]) -> str:
    """Return the hash of a group's attributes, but for this hash itself.

    Tuples and lists are the same here, as they are in the file.
    """
    ct3d = {k: v for k, v in attributes["ct3d"].items() if k != "attributes_sha256"}
    text = json.dumps({**attributes, "ct3d": ct3d}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
