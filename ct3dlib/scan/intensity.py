"""Hounsfield units: which state a file's values are in, and the window that models see."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ct3dlib.errors import VolumeError
from ct3dlib.scan.reading import JSON, Reading
from ct3dlib.scan.volume import Volume

HU_MIN, HU_MAX = -1024, 3071

_AIR = (-1100.0, -750.0)  # air around the body, or lung where the field of view is tight
_SOFT = (-150.0, 100.0)  # fat to muscle
_GAS_BELOW = -400.0
_MIN_GAS, _MIN_SOFT = 0.005, 0.04  # shares of voxels: body scans lie far above both
_BIN = 20.0
_SAMPLE = 1_000_000


@dataclass(frozen=True, eq=False)
class HUResult:
    """A volume in HU and why it is believed to be.

    Args:
        volume: int16 or float32 HU, clipped to [-1024, 3071].
        state: "hu" where the file held HU, "rescaled" where slope and intercept were applied.
        evidence: What each hypothesis looked like.
    """

    volume: Volume
    state: Literal["hu", "rescaled"]
    evidence: Mapping[str, JSON]


@dataclass(frozen=True)
class _Look:
    """What values would mean as HU: commonest gas (HU, null: none) and share of soft tissue."""

    air_mode: float | None
    soft_share: float

    @property
    def plausible(self) -> bool:
        """Whether a body scan looks like this."""
        mode = self.air_mode
        return mode is not None and _AIR[0] <= mode <= _AIR[1] and self.soft_share >= _MIN_SOFT


def to_hu(
    reading: Reading,
    *,
    slope: float | None,
    intercept: float | None,
    state: Literal["auto", "hu", "stored"],
) -> HUResult:
    """Bring a reading to HU, rescaling at most once.

    Where the file does not say what it holds, "auto" accepts exactly one of two hypotheses, the
    values as they are and the rescaled values: the one whose commonest gas lies near -1000 HU
    and which has soft tissue. Rescaling what is HU already moves the air away, so it shows.

    Args:
        reading: What a reader gave.
        slope: Rescale slope from a table beside the file.
        intercept: Rescale intercept from that table, HU.
        state: "hu": take the values as they are; "stored": rescale them; "auto": find out.

    Raises:
        VolumeError: `HU_UNKNOWN` where neither or both hypotheses hold, `HU_DOUBLE_RESCALE` where
            "stored" would rescale values that are HU already, `NO_CONTRAST` where all are alike.
    """
    _check_contrast(reading)
    if reading.hu or state == "hu":
        return _as_is(reading, {"decided_by": "file" if reading.hu else "recipe"})
    if slope is None or intercept is None:
        if state == "stored":
            raise VolumeError(
                "HU_UNKNOWN",
                f"{reading.source}: hu_state is stored, but its metadata give no slope and "
                f"intercept; add them or use hu_state: auto",
            )
        return _unscaled(reading, "give no slope and intercept")
    if slope == 1 and intercept == 0:
        stated = {"decided_by": "slope 1, intercept 0"}
        return _as_is(reading, stated) if state == "stored" else _unscaled(reading, "state 1 and 0")
    return _choose(reading, slope=slope, intercept=intercept, state=state)


def _check_contrast(reading: Reading) -> None:
    """Refuse a volume of one value: a scan that failed, or slices that were never filled."""
    array = reading.volume.array
    first = array.flat[0]
    # Nearly every volume differs in a line: the whole of it is looked at only where it must be.
    if (array[0, 0] == first).all() and (array == first).all():
        raise VolumeError(
            "NO_CONTRAST",
            f"{reading.source}: all its voxels are {first:g}; drop it, or fetch it again",
        )


def _unscaled(reading: Reading, metadata: str) -> HUResult:
    """Take the values as they are if they look like HU; there is nothing to rescale them with.

    Args:
        reading: What a reader gave.
        metadata: What its metadata do, for people.
    """
    look = _look(_sample(reading.volume.array))
    if not look.plausible:
        raise VolumeError(
            "HU_UNKNOWN",
            f"{reading.source}: its values do not look like HU ({_words(look)}) and its metadata "
            f"{metadata}; correct slope and intercept, or say hu_state: hu",
        )
    return _as_is(reading, {"decided_by": "values", "as_is": asdict(look)})


def _choose(
    reading: Reading, *, slope: float, intercept: float, state: Literal["auto", "stored"]
) -> HUResult:
    """Decide between the values as they are and rescaled."""
    sample = _sample(reading.volume.array)
    as_is, rescaled = _look(sample), _look(sample * slope + intercept)
    if as_is.plausible and rescaled.plausible:
        # Stored values padded with -1024 hold a false air; without the padding it is gone.
        inner = sample[sample > sample.min()]
        as_is, rescaled = _look(inner), _look(inner * slope + intercept)
    evidence = {"decided_by": "values", "as_is": asdict(as_is), "rescaled": asdict(rescaled)}
    rescale = f"slope {slope:g}, intercept {intercept:g}"
    if state == "stored":
        if as_is.plausible and not rescaled.plausible:
            raise VolumeError(
                "HU_DOUBLE_RESCALE",
                f"{reading.source}: hu_state is stored, but the values are HU already "
                f"({_words(as_is)}); {rescale} would spoil them; use hu_state: auto",
            )
        return _rescaled(reading, slope, intercept, evidence={**evidence, "decided_by": "recipe"})
    if as_is.plausible == rescaled.plausible:
        which = "both" if as_is.plausible else "neither"
        raise VolumeError(
            "HU_UNKNOWN",
            f"{reading.source}: as HU {which} would do, the values as they are ({_words(as_is)}) "
            f"and rescaled by {rescale} ({_words(rescaled)}); say hu_state: hu or stored",
        )
    if as_is.plausible:
        return _as_is(reading, evidence)
    return _rescaled(reading, slope, intercept, evidence=evidence)


def _sample(values: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return about a million values, spread evenly over a volume."""
    step = max(1, round((values.size / _SAMPLE) ** (1 / 3)))
    return values[::step, ::step, ::step].astype(np.float32).ravel()


def _look(values: NDArray[np.float32]) -> _Look:
    """Describe values as if they were HU; a constant padding below air is left out."""
    if values.size and values.min() < _AIR[0]:
        values = values[values > values.min()]
    if not values.size:
        return _Look(None, 0.0)
    soft = float(((values >= _SOFT[0]) & (values <= _SOFT[1])).mean())
    gas = np.clip(values[values < _GAS_BELOW], -30 * HU_MAX, None)
    if gas.size < _MIN_GAS * values.size:
        return _Look(None, round(soft, 4))
    low = float(np.floor(gas.min() / _BIN) * _BIN)
    counts = np.bincount(((gas - low) / _BIN).astype(np.int64))
    return _Look(low + _BIN * (int(counts.argmax()) + 0.5), round(soft, 4))


def _words(look: _Look) -> str:
    """Return a look as the words of a message."""
    air = "no gas" if look.air_mode is None else f"gas at {look.air_mode:.0f}"
    return f"{air}, {look.soft_share:.0%} soft tissue"


def _as_is(reading: Reading, evidence: Mapping[str, JSON]) -> HUResult:
    """Clip values that are HU."""
    return HUResult(_clipped(reading.volume, 1.0, 0.0), "hu", evidence)


def _rescaled(
    reading: Reading, slope: float, intercept: float, *, evidence: Mapping[str, JSON]
) -> HUResult:
    """Rescale and clip stored values."""
    return HUResult(_clipped(reading.volume, slope, intercept), "rescaled", evidence)


def _clipped(volume: Volume, slope: float, intercept: float) -> Volume:
    """Return `slope * values + intercept` in [-1024, 3071]; int16 where nothing is lost by it.

    Plane by plane, so that no second copy of a scan is made in a wider type; no copy at all where
    the values are that already.
    """
    array = volume.array
    if array.dtype == np.int16 and (slope, intercept) == (1, 0):
        if array.min() >= HU_MIN and array.max() <= HU_MAX:
            return Volume(array, volume.affine, "hu")
        return Volume(np.clip(array, HU_MIN, HU_MAX), volume.affine, "hu")
    whole = array.dtype.kind in "iu" and (slope % 1, intercept % 1) == (0, 0)
    hu = np.empty(array.shape, dtype=np.int16 if whole else np.float32)
    wide = np.int32 if whole else np.float32
    for kept, plane in zip(hu, array, strict=True):
        scaled = plane.astype(wide) * wide(slope) + wide(intercept)
        kept[...] = np.clip(scaled, HU_MIN, HU_MAX)
    return Volume(hu, volume.affine, "hu")


def apply_window(
    array: NDArray[np.generic], window: tuple[float, float], *, onto: tuple[float, float]
) -> NDArray[np.float32]:
    """Map a window of HU linearly onto a range; what lies outside is clipped.

    Args:
        array: HU, any shape.
        window: Low and high, HU.
        onto: What low and high become.
    """
    (low, high), (bottom, top) = window, onto
    values = array.astype(np.float32)
    np.clip(values, low, high, out=values)
    # In place: loaders come through here with every crop.
    values -= np.float32(low)
    values /= high - low
    values *= top - bottom
    values += bottom
    return values


def remove_window(
    array: NDArray[np.generic], window: tuple[float, float], *, onto: tuple[float, float]
) -> NDArray[np.float32]:
    """Return the HU of values that `apply_window` mapped; values out of the range are clipped."""
    return apply_window(array, onto, onto=window)
