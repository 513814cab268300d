"""What a volume's domain decides: how its values are stored, and which of them are refused."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ct3dlib.config import Domain
from ct3dlib.errors import VolumeError
from ct3dlib.scan.intensity import HU_MAX, HU_MIN
from ct3dlib.scan.resample import Rounding
from ct3dlib.scan.volume import Volume


class Storage(NamedTuple):
    """How a volume's values are kept.

    Args:
        rounding: Whole numbers to round them to; null: float32 as they are.
        fill: Value of what is padded.
    """

    rounding: Rounding | None
    fill: int | float


def storage(volume: Volume) -> Storage:
    """Return how a volume's values are stored.

    HU: int16 in [-1024, 3071], padded with -1024. 8-bit values: uint8, padded with 0. MR: int16
    where the values are whole and fit, else float32; padded with their minimum, at most 0.
    """
    match volume.domain:
        case "hu":
            return Storage(Rounding(np.int16, HU_MIN, HU_MAX), HU_MIN)
        case "window8" | "uint8":
            return Storage(Rounding(np.uint8, 0, 255), 0)
        case "mr":
            limits = np.iinfo(np.int16)
            low, high = volume.array.min(), volume.array.max()
            whole = volume.array.dtype.kind in "iu" and low >= limits.min and high <= limits.max
            rounding = Rounding(np.int16, limits.min, limits.max) if whole else None
            return Storage(rounding, min(float(low), 0.0))


def check_domain(volume: Volume, wanted: Domain) -> None:
    """Refuse values that mean something else than a recipe takes them for.

    Raises:
        VolumeError: `WRONG_DOMAIN`, or `NOT_8_BIT` where 8-bit values leave [0, 255].
    """
    if volume.domain != wanted:
        raise VolumeError(
            "WRONG_DOMAIN",
            f"the volume's domain is {volume.domain!r}, the recipe's {wanted!r}; use a recipe of "
            f"that domain or drop it from the catalog",
        )
    if wanted in ("window8", "uint8"):
        low, high = volume.array.min(), volume.array.max()
        if low < 0 or high > 255:
            raise VolumeError(
                "NOT_8_BIT",
                f"values from {low} to {high}, wanted 0 to 255 in the domain {wanted!r}; convert "
                f"the file or correct the catalog's domain",
            )


def percentile_window(
    array: NDArray[np.generic], percentiles: tuple[float, float] | None
) -> tuple[float, float] | None:
    """Return the percentiles of the values above 0, or null where none are wanted.

    Raises:
        VolumeError: `NO_CONTRAST` where they are no window.
    """
    if percentiles is None:
        return None
    above = array[np.greater(array, 0)].astype(np.float64)
    low, high = np.percentile(above, percentiles).tolist() if above.size else (0.0, 0.0)
    if not low < high:
        raise VolumeError(
            "NO_CONTRAST",
            f"percentiles {percentiles} of the {above.size} values above 0 are {low:g} and "
            f"{high:g}, no window; drop it from the catalog",
        )
    return low, high
