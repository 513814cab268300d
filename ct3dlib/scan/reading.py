"""What a file gave: a volume as read, and facts about it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct3dlib.errors import VolumeError
from ct3dlib.scan.volume import Volume

JSON = None | bool | int | float | str | Sequence[Any] | Mapping[str, Any]

MAX_VOXELS = 4_000_000_000
MAX_DEFLATE = 1032  # deflate never packs more bytes than this into one


@dataclass(frozen=True, eq=False)
class Reading:
    """A volume as its file holds it: any orientation, values before the HU state is settled.

    Args:
        volume: int16, float32 or, as 8-bit pictures are, uint8; D H W being the file's slowest to
            fastest axis, in LPS mm.
        slope: Rescale slope that the file states and that is applied; null: none or several.
        intercept: Rescale intercept that the file states and that is applied; as `slope`.
        hu: Whether the values are HU; null: the file does not say.
        sha256: Hash of the file's bytes; of the sorted hashes where there are several files.
        facts: What else is known, without anything that names a patient.
        source: What messages call it, a path.
    """

    volume: Volume
    slope: float | None
    intercept: float | None
    hu: bool | None
    sha256: str
    facts: Mapping[str, JSON] = field(default_factory=dict)
    source: str = "volume"


def check_size(name: object, shape: Sequence[int]) -> None:
    """Refuse a shape that no scanner writes, before memory is asked for.

    Raises:
        VolumeError: `TOO_LARGE`, `FILE_UNREADABLE` where a length is not positive.
    """
    if min(shape) < 1:
        raise VolumeError(
            "FILE_UNREADABLE", f"{name}: the header states shape {tuple(shape)}; write it anew"
        )
    voxels = 1
    for length in shape:
        voxels *= int(length)
    if voxels > MAX_VOXELS:
        raise VolumeError(
            "TOO_LARGE",
            f"{name}: the header states {voxels} voxels {tuple(shape)}, at most {MAX_VOXELS} are "
            f"read; crop the scan or mend its header",
        )


def check_finite(array: NDArray[np.generic], name: object) -> None:
    """Refuse voxels that are not finite.

    Raises:
        VolumeError: `NAN_VOXELS`.
    """
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        raise VolumeError(
            "NAN_VOXELS",
            f"{name}: {array.size - int(finite.sum())} voxels are not finite; mend or drop it",
        )


def narrow(raw: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return values as int16 where they are integers that fit, else as float32."""
    if raw.dtype.kind in "iu":
        small = np.can_cast(raw.dtype, np.int16)
        if small or (raw.min() >= -32768 and raw.max() <= 32767):
            return raw.astype(np.int16, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        return raw.astype(np.float32, copy=False)


def cut_short(path: Path, what: str) -> VolumeError:
    """Return the error of a file that ends too early."""
    return VolumeError("FILE_TRUNCATED", f"{path}: the file is cut short, {what}; fetch it again")


def file_sha256(path: Path) -> str:
    """Return the hash of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_sha256(paths: Sequence[Path]) -> str:
    """Return the hash of the sorted hashes of files: their order and names do not count."""
    return hashlib.sha256("".join(sorted(map(file_sha256, paths))).encode()).hexdigest()
