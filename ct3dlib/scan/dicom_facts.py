"""The DICOM tags that leave a file: how it was acquired and reconstructed, never whose it is."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from ct3dlib.scan.reading import JSON

_OLDEST = 89  # years; above that an age points at few people (HIPAA, 45 CFR 164.514(b)(2))
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")
_AGE = re.compile(r"(\d{3})([DWMY])")


def _code(value: object) -> str | None:
    """Return a code string (CS) of one or several parts; whatever else stands there is left out."""
    parts = [str(part).strip() for part in value] if isinstance(value, MultiValue) else [str(value)]
    known = all(_CODE.fullmatch(part) for part in parts if part)
    return "\\".join(parts) if known and any(parts) else None


def _number(value: object) -> float | None:
    """Return the first number of a tag."""
    number = float(str(value[0] if isinstance(value, MultiValue) else value))
    return number if math.isfinite(number) else None


def _word(value: object) -> str | None:
    """Return what the scanner calls a part of itself."""
    parts = value if isinstance(value, MultiValue) else [value]
    return "\\".join(str(part).strip() for part in parts) or None


def _age(value: object) -> str | None:
    """Return an age as DICOM writes it; over 89 years it is 090Y."""
    if (found := _AGE.fullmatch(str(value).strip())) is None:
        return None
    return "090Y" if found[2] == "Y" and int(found[1]) > _OLDEST else found[0]


def _one_of(*known: str) -> Callable[[object], str | None]:
    """Return a reader of tags with few values; any other one is left out."""
    return lambda value: found if (found := str(value).strip().upper()) in known else None


def _given(value: object) -> str:
    """Say that there was something, not what it was: people write what they like."""
    del value
    return "yes"


# Modalities (DICOM PS3.3, C.7.3.1.1.1) and units (C.11.1.1.2) that a message may name.
_MODALITIES = (
    *("CR", "CT", "DX", "ECG", "IO", "KO", "MG", "MR", "NM", "OT", "PR", "PT", "PX", "REG", "RF"),
    *("RG", "RTDOSE", "RTIMAGE", "RTPLAN", "RTSTRUCT", "SC", "SEG", "SM", "SR", "US", "XA", "XC"),
)
UNITS = ("ED", "EDW", "HU", "HU_MOD", "MGML", "OD", "PCT", "US", "Z_EFF")


def named_modality(modality: str) -> str:
    """Return what messages call a modality that is not CT; one out of the standard is not named."""
    found = f"modality {modality}" if modality in _MODALITIES else "an unknown modality"
    return f"{found}, wanted CT"


# Not among them: descriptions and protocol names (free text, which may hold names), dates, UIDs,
# accession numbers, institutions, people, serial numbers, private tags.
_READ: dict[str, Callable[[object], JSON]] = {
    **dict.fromkeys(("ConvolutionKernel", "Manufacturer", "ManufacturerModelName"), _word),
    **dict.fromkeys(
        (
            *("BodyPartExamined", "ExposureModulationType", "FilterType", "ImageType"),
            *("LossyImageCompression", "PatientPosition", "RotationDirection"),
        ),
        _code,
    ),
    **dict.fromkeys(
        (
            *("CTDIvol", "DataCollectionDiameter", "Exposure", "ExposureTime"),
            *("GantryDetectorTilt", "KVP", "LossyImageCompressionRatio", "ReconstructionDiameter"),
            *("RevolutionTime", "SingleCollimationWidth", "SliceThickness"),
            *("SpacingBetweenSlices", "SpiralPitchFactor", "TotalCollimationWidth"),
            "XRayTubeCurrent",
        ),
        _number,
    ),
    "ContrastBolusAgent": _given,
    "PatientAge": _age,
    "PatientSex": _one_of("M", "F", "O"),
    "PhotometricInterpretation": _one_of("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB"),
    "RescaleType": _one_of(*UNITS),
}
ALLOWED = tuple(sorted(_READ))


def facts_of(dataset: Dataset | Mapping[str, Any]) -> dict[str, JSON]:
    """Return the allowed tags of a header by their keywords (DICOM PS3.6); blank ones are left out.

    A table's row, keyword to text, is such a header too. A tag whose value is not what it should be
    is left out as well: no scan fails for it.
    """
    facts: dict[str, JSON] = {}
    for name in ALLOWED:
        try:
            value = dataset.get(name)
            found = None if value in (None, "") else _READ[name](value)
        except (ArithmeticError, AttributeError, TypeError, ValueError):
            continue
        if found is not None:
            facts[name] = found
    return facts
