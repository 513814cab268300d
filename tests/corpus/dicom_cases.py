"""DICOM series, one for each way to be bad that headers, pixels and positions have."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, RLELossless

from tests.corpus.case import Case, odd
from tests.corpus.dicom_files import (
    STEP,
    STORED,
    alike,
    all_edited,
    each_its_own,
    enhanced,
    one_slice,
    series,
)

AT = "ImagePositionPatient"
TURN = "ImageOrientationPatient"
TILTED = [1, 0, 0, 0, float(np.cos(0.26)), float(-np.sin(0.26))]
UPWARD = [1, 0, 0, 0, -1, 0]


def cut(path: Path, keep: float) -> None:
    """Keep a share of a file."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def header_cut(folder: Path) -> None:
    """Cut one slice within its header; the others make a series that lacks a slice."""
    cut(series(folder, lambda _: {}, numbers=range(12))[4], 0.3)


def pixels_cut(folder: Path) -> None:
    """Cut one slice within its pixels."""
    cut(series(folder, lambda _: {})[4], 0.8)


def not_dicom(content: bytes):
    """Return a writer of a file that only its name calls DICOM."""
    return lambda folder: (folder / "00.dcm").write_bytes(content)


def without_image(modality: str, sop_class: str):
    """Return a writer of a DICOM object that holds no picture."""
    absent = ("Rows", "Columns", "PixelData", "BitsAllocated", "PixelSpacing")

    def write(folder: Path) -> None:
        tags = {**dict.fromkeys(absent), "Modality": modality, "SOPClassUID": sop_class}
        one_slice(folder / "00.dcm", 0, **tags)

    return write


def retired(dataset: Dataset) -> None:
    """Claim a compression that the pixels do not have and nothing here decodes."""
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.53"
    dataset.PixelData = encapsulate([b"no jpeg"])
    dataset["PixelData"].is_undefined_length = True


def video(dataset: Dataset) -> None:
    """Claim to be a film."""
    retired(dataset)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"


def broken_j2k(dataset: Dataset) -> None:
    """Compress and then spoil the stream."""
    retired(dataset)
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless


def bits(**values: int):
    """Return a change of the pixel description that leaves the pixels alone."""

    def change(dataset: Dataset) -> None:
        for name, value in values.items():
            setattr(dataset, name, value)

    return change


def time_points(folder: Path) -> None:
    """Write every slice twice, with other pixels."""
    series(folder, lambda _: {})
    for number in range(10):
        one_slice(folder / f"late{number}.dcm", number, STORED[number] + np.uint16(3))


def one_repeated(folder: Path) -> None:
    """Write one slice again, with other pixels."""
    series(folder, lambda _: {})
    one_slice(folder / "again.dcm", 5, STORED[2])


def phases(folder: Path) -> None:
    """Write every slice twice, with other pixels, each time as another acquisition."""
    series(folder, lambda _: {"AcquisitionNumber": 1})
    for number in range(10):
        late = STORED[number] + np.uint16(3)
        one_slice(folder / f"late{number}.dcm", number, late, AcquisitionNumber=2)


def links(folder: Path) -> None:
    """Write a series of which the last slices are links to a disk that is away."""
    for path in series(folder, lambda _: {})[8:]:
        path.unlink()
        path.symlink_to(folder / "away" / path.name)


def without(*missing: int):
    """Return a writer of a series that lacks some slices."""

    def write(folder: Path) -> None:
        series(folder, lambda _: {}, numbers=range(12))
        for number in missing:
            (folder / f"{number:02}.dcm").unlink()

    return write


def colour(folder: Path) -> None:
    """Write a screenshot of a report."""
    one_slice(
        folder / "00.dcm", 0, np.zeros((20, 24 * 3), np.uint8), Columns=24,
        SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0,
        BitsAllocated=8, BitsStored=8, HighBit=7,
    )  # fmt: skip


def with_scout(folder: Path) -> None:
    """Write a series and a scout view under the same series id."""
    series(folder, lambda _: {})
    one_slice(folder / "scout.dcm", 3, STORED[0, :9], ImageType=["ORIGINAL", "X", "LOCALIZER"])


def without_suffix(folder: Path) -> None:
    """Write a series whose names say nothing."""
    for path in series(folder, lambda _: {}):
        path.rename(path.with_suffix(""))


def rle(dataset: Dataset) -> None:
    """Compress without loss."""
    dataset.compress(RLELossless)


FILES = [
    Case("dcm-empty", "FILE_TRUNCATED", "empty", not_dicom(b"")),
    Case("dcm-text", "FILE_UNREADABLE", "no DICOM", not_dicom(b"not found\n" * 90)),
    Case("dcm-mark-only", "FILE_UNREADABLE", "DICOM", not_dicom(bytes(128) + b"DICM")),
    Case("dcm-header-cut", "FILE_TRUNCATED", "within its header", header_cut, stored=1),
    Case("dcm-pixels-cut", "FILE_TRUNCATED", "cut short", pixels_cut),
    Case("dcm-no-pixels", "FILE_TRUNCATED", "missing or cut short", alike(PixelData=None)),
    Case(
        "dcm-rtstruct",
        "NOT_CT",
        "RTSTRUCT",
        without_image("RTSTRUCT", "1.2.840.10008.5.1.4.1.1.481.3"),
    ),
    Case("dcm-report", "NOT_CT", "SR", without_image("SR", "1.2.840.10008.5.1.4.1.1.88.33")),
    Case("dcm-retired-syntax", "UNSUPPORTED_SYNTAX", "transcode", all_edited(retired)),
    Case("dcm-video", "UNSUPPORTED_SYNTAX", "transcode", all_edited(video)),
    Case("dcm-broken-j2k", "FILE_UNREADABLE", "decoded", all_edited(broken_j2k)),
    Case(
        "dcm-rows-zero", "FILE_UNREADABLE", "shape", lambda at: one_slice(at / "00.dcm", 0, Rows=0)
    ),
    Case(
        "dcm-too-large",
        "TOO_LARGE",
        "at most",
        lambda at: one_slice(at / "00.dcm", 0, Rows=65_000, Columns=65_000),
    ),
]

KINDS = [
    Case("dcm-mr", "NOT_CT", "modality MR", alike(Modality="MR")),
    Case("dcm-pet", "NOT_CT", "modality PT", alike(Modality="PT", RescaleType="BQML")),
    Case("dcm-colour", "NOT_CT", "colour", colour),
    Case(
        "dcm-mr-frames",
        "NOT_CT",
        "modality MR",
        lambda at: one_slice(at / "00.dcm", 0, STORED, NumberOfFrames=12, Modality="MR"),
    ),
    Case(
        "dcm-localizer", "LOCALIZER", "scout", alike(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    ),
    Case(
        "dcm-screen-save",
        "LOCALIZER",
        "scout",
        alike(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]),
    ),
    Case("dcm-one-slice", "SINGLE_SLICE", "single slice", lambda at: one_slice(at / "00.dcm", 0)),
    Case(
        "dcm-few-slices",
        "TOO_FEW_SLICES",
        "4 slices",
        lambda at: series(at, lambda _: {}, numbers=range(4)),
    ),
    Case("dcm-dual-energy", "NOT_HU", "rescales to Z_EFF", alike(RescaleType="Z_EFF")),
    Case("dcm-iodine", "NOT_HU", "rescales to MGML", alike(RescaleType="MGML")),
]

GEOMETRY = [
    Case("dcm-no-position", "NO_GEOMETRY", "no position", alike(ImagePositionPatient=None)),
    Case("dcm-no-orientation", "NO_GEOMETRY", "no position", alike(ImageOrientationPatient=None)),
    Case("dcm-no-spacing", "NO_GEOMETRY", "pixel spacing", alike(PixelSpacing=None)),
    Case("dcm-one-spacing", "NO_GEOMETRY", "pixel spacing", alike(PixelSpacing=2.5)),
    Case("dcm-zero-spacing", "BAD_GEOMETRY", "no grid", alike(PixelSpacing=[0, 2.5])),
    Case("dcm-negative-spacing", "BAD_GEOMETRY", "no grid", alike(PixelSpacing=[2.5, -2.5])),
    Case("dcm-vast-spacing", "BAD_GEOMETRY", "0.01 to 100 mm", alike(PixelSpacing=[2500, 2500])),
    Case("dcm-zero-cosines", "BAD_GEOMETRY", "no grid", alike(ImageOrientationPatient=[0] * 6)),
    Case(
        "dcm-askew",
        "BAD_GEOMETRY",
        "no grid",
        alike(ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0]),
    ),
    Case(
        "dcm-one-place",
        "DUPLICATE_POSITIONS",
        "at one position",
        alike(ImagePositionPatient=[0, 0, 0]),
    ),
    Case(
        "dcm-micrometres",
        "BAD_GEOMETRY",
        "10 slices within",
        each_its_own(lambda n: {AT: [0, 0, 0.0025 * n]}),
    ),
    Case("dcm-away", "BAD_GEOMETRY", "at most", each_its_own(lambda n: {AT: [0, 0, 1e6 * n]})),
    Case("dcm-phases", "FOUR_D", "another acquisition", phases, stored=1),
    Case("dcm-links", "FILE_MISSING", "leads nowhere", links, stored=1),
    Case("dcm-one-repeated", "DUPLICATE_POSITIONS", "different slices", one_repeated),
    Case("dcm-4d", "FOUR_D", "2 different slices", time_points),
    Case(
        "dcm-uneven",
        "UNEVEN_SPACING",
        "apart",
        each_its_own(lambda n: {AT: [0, 0, 2.5 * n + 0.1 * n**2]}),
    ),
    Case(
        "dcm-sliding",
        "UNEVEN_SPACING",
        "apart",
        each_its_own(lambda n: {AT: [9.0 * (n == 5), 0, 2.5 * n]}),
    ),
    Case("dcm-gap", "UNEVEN_SPACING", "missing", without(4, 5)),
    Case("dcm-three-missing", "UNEVEN_SPACING", "missing", without(2, 5, 8)),
    Case(
        "dcm-fan",
        "MIXED_SERIES",
        "orientation",
        lambda at: enhanced(
            at, orientation=lambda n: [1, 0, 0, 0, float(np.cos(n / 9)), float(np.sin(n / 9))]
        ),
    ),
    Case("dcm-frames-lost", "NO_GEOMETRY", "positions of 7", lambda at: enhanced(at, places=7)),
    Case(
        "dcm-frames-other-unit",
        "NOT_HU",
        "rescales to ED",
        lambda at: enhanced(at, rescale_type="ED"),
    ),
]

VALUES = [
    Case("dcm-hu-range", "HU_OUT_OF_RANGE", "wanted HU within", alike(RescaleSlope=40)),
    Case(
        "dcm-wrong-sign",
        "HU_OUT_OF_RANGE",
        "wanted HU within",
        all_edited(
            lambda d: setattr(
                d, "PixelData", (STORED[0].astype(np.int32) - 33_000).astype(np.int16).tobytes()
            )
        ),
    ),
    Case("dcm-slope-zero", "BAD_RESCALE", "slope 0", alike(RescaleSlope=0)),
    Case(
        "dcm-slope-missing-once",
        "BAD_RESCALE",
        "1 of 10 slices state no slope",
        each_its_own(lambda n: dict.fromkeys(["RescaleSlope", "RescaleIntercept"] * (n == 4))),
    ),
    Case("dcm-slope-negative", "BAD_RESCALE", "slope -1", alike(RescaleSlope=-1)),
    Case(
        "dcm-slope-one-slice",
        "BAD_RESCALE",
        "slope 0",
        each_its_own(lambda n: {"RescaleSlope": int(n != 4)}),
    ),
    Case(
        "dcm-constant",
        "NO_CONTRAST",
        "all its voxels are -1024",
        all_edited(lambda d: setattr(d, "PixelData", bytes(len(d.PixelData)))),
    ),
    Case(
        "dcm-no-rescale",
        "HU_UNKNOWN",
        "do not look like HU",
        alike(RescaleSlope=None, RescaleIntercept=None),
    ),
    Case(
        "dcm-bits-8",
        "FILE_UNREADABLE",
        "960 pixels",
        all_edited(bits(BitsAllocated=8, BitsStored=8, HighBit=7)),
    ),
    Case(
        "dcm-bits-32",
        "FILE_TRUNCATED",
        "less than expected",
        all_edited(bits(BitsAllocated=32, BitsStored=32, HighBit=31)),
    ),
    Case(
        "dcm-bits-13",
        "FILE_UNREADABLE",
        "decoded",
        all_edited(bits(BitsAllocated=13, BitsStored=13, HighBit=12)),
    ),
    Case("dcm-bits-zero", "FILE_UNREADABLE", "decoded", all_edited(bits(BitsAllocated=0))),
    Case("dcm-bits-missing", "FILE_UNREADABLE", "decoded", alike(BitsAllocated=None)),
]

ODD = [
    odd("dcm-tilted", alike(ImageOrientationPatient=TILTED)),
    odd("dcm-one-missing", without(5)),
    odd("dcm-copy", lambda at: (series(at, lambda _: {}), one_slice(at / "copy.dcm", 3))),
    odd("dcm-upside-down", each_its_own(lambda n: {TURN: UPWARD, AT: [0, 0, -STEP * n]})),
    Case("dcm-scout-inside", "LOCALIZER", "scout view", with_scout, stored=1),
    odd("dcm-unit-lower", alike(RescaleType="hu")),
    odd("dcm-shots", each_its_own(lambda n: {"AcquisitionNumber": n + 1})),
    odd("dcm-rle", all_edited(rle)),
    odd("dcm-enhanced", enhanced),
    odd("dcm-slope-per-slice", each_its_own(lambda n: {"RescaleSlope": 1 + 0.001 * n})),
    odd("dcm-monochrome1", alike(PhotometricInterpretation="MONOCHROME1")),
    odd("dcm-no-suffix", without_suffix),
]

DICOM_CASES = [*FILES, *KINDS, *GEOMETRY, *VALUES, *ODD]
