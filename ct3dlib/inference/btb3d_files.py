"""Files of BTB3D: codes of -1 and +1 or latents, one volume each.

Letters: C latent channels (bits of a token), d h w token grid.

`{volume}.nii_embedded.npz` holds one float32 array `arr`, 1 C d h w. Channel 0 is the most
significant bit of an index. The grid runs as BTB3D sees volumes, D W H of ours: it is turned here
from the order that a model sees, and nowhere else.
"""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct3dlib.cohort.durable import publish, room_for
from ct3dlib.config import Axes
from ct3dlib.errors import StoreError
from ct3dlib.scan.axes import from_model, to_model

SUFFIX = ".nii_embedded.npz"
AXES: Axes = "dwh"

_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError)


def write_btb3d(path: Path, values: NDArray[np.float32], *, axes: Axes) -> None:
    """Write codes or latents of one volume; the file appears whole or not at all.

    Args:
        path: Ends with `.nii_embedded.npz`.
        values: C d h w, the grid as a model sees it.
        axes: The order in which it does.

    Raises:
        StoreError: The disk is full.
    """
    turned = to_model(from_model(values, axes), AXES)
    array = np.ascontiguousarray(turned[None], dtype=np.float32)
    partial = path.with_name(f"{path.name}.partial")
    with room_for(partial, array.nbytes):
        with partial.open("wb") as file:
            np.savez(file, arr=array)
        publish(partial, path)


def read_btb3d(path: Path, *, bits: int = 18, axes: Axes = AXES) -> NDArray[np.int64]:
    """Return the token indices of a file, d h w.

    Args:
        path: Ends with `.nii_embedded.npz`.
        bits: Channels that it must have.
        axes: The order in which the model that the tokens are for sees volumes.

    Raises:
        StoreError: The file is damaged, has no `arr`, or that has another shape or other values
            than codes have.
    """
    array = _array(path)
    if array.ndim != 5 or array.shape[:2] != (1, bits) or not array.size:
        raise StoreError(
            f"{path}: arr has shape {array.shape}, wanted (1, {bits}, d, h, w): the codes of one "
            f"volume, {bits} bits each"
        )
    odd = array[np.abs(array) != 1]
    if odd.size:
        raise StoreError(
            f"{path}: arr holds {odd[0]}, wanted -1 and +1 alone; give files of codes, as those in "
            f"BTB3D's folder quantized, not of latents"
        )
    indices = np.zeros(array.shape[2:], np.int64)
    for channel in array[0]:
        indices = (indices << 1) | (channel > 0)
    return np.ascontiguousarray(to_model(from_model(indices, AXES), axes))


def _array(path: Path) -> NDArray[Any]:
    """Return the array of a file; pickled objects in it are refused."""
    if not path.is_file():
        raise StoreError(f"{path}: no such file; give one that BTB3D or `ct3d export` wrote")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            names = archive.files
            array = archive["arr"] if "arr" in names else None
    except (*_DAMAGED, AttributeError, TypeError) as error:
        raise StoreError(f"{path}: not an archive of numbers ({error}); fetch it again") from error
    if array is None:
        raise StoreError(f"{path}: has no array arr, it has {', '.join(names) or 'none'}")
    if array.dtype.kind not in "fiu":
        raise StoreError(f"{path}: arr holds values of type {array.dtype}, wanted float32")
    return array
