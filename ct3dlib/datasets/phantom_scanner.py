"""The scanner of the synthetic cohort: protocols, grids, kernels, noise and CT-RATE's metadata."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from ct3dlib.config import PhantomSpec
from ct3dlib.datasets.phantom_findings import Patient
from ct3dlib.datasets.phantom_space import Array, Grid

HU_LOW, HU_HIGH = -1024, 3071
Cells = dict[str, str | int | float]
METADATA_COLUMNS = (
    *("VolumeName", "Manufacturer", "SeriesDescription", "ManufacturerModelName", "PatientSex"),
    *("PatientAge", "ReconstructionDiameter", "DistanceSourceToDetector"),
    *("DistanceSourceToPatient", "GantryDetectorTilt", "TableHeight", "RotationDirection"),
    *("ExposureTime", "XRayTubeCurrent", "Exposure", "FilterType", "GeneratorPower"),
    *("FocalSpots", "ConvolutionKernel", "PatientPosition", "RevolutionTime"),
    *("SingleCollimationWidth", "TotalCollimationWidth", "TableSpeed", "TableFeedPerRotation"),
    *("SpiralPitchFactor", "DataCollectionCenterPatient", "ReconstructionTargetCenterPatient"),
    *("ExposureModulationType", "CTDIvol", "ImagePositionPatient", "ImageOrientationPatient"),
    *("SliceLocation", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns"),
    *("XYSpacing", "RescaleIntercept", "RescaleSlope", "RescaleType", "NumberofSlices"),
    *("ZSpacing", "StudyDate"),
)


@dataclass(frozen=True)
class Scanner:
    """A make of scanner: its names, its kernels soft and sharp, what its files look like."""

    manufacturer: str
    model: str
    soft: str
    sharp: str
    intercept: int
    pads: bool
    weight: float


SCANNERS = (
    Scanner("Philips", "Ingenuity Core 128", "B", "YC", -1024, True, 0.55),
    Scanner(
        "Siemens Healthineers", "SOMATOM go.Top", "['Br40f', '3']", "['Bl57f', '3']", -8192,
        True, 0.27,
    ),
    Scanner("PNMS", "MX 16", "B", "D", -1024, False, 0.08),
    Scanner("SIEMENS", "SOMATOM Definition AS", "I31f", "B70f", -1024, False, 0.10),
)  # fmt: skip


@dataclass(frozen=True)
class Scan:
    """One scan: what all its reconstructions share.

    Args:
        scanner: That made it.
        low: z of the lowest slice, mm above the carina.
        high: z of the highest.
        field_of_view: Diameter that holds the patient, mm.
        offset: From the patient's frame to the scanner's, LPS mm.
        study_date: As yyyymmdd.
        tube_current: mA.
    """

    scanner: Scanner
    low: float
    high: float
    field_of_view: float
    offset: tuple[float, float, float]
    study_date: int
    tube_current: int


@dataclass(frozen=True)
class Reconstruction:
    """One reconstruction of a scan: grid in the patient's frame, kernel, storage."""

    grid: Grid
    sharp: bool
    noise: float
    as_float: bool
    seed: int


def draw_scan(rng: np.random.Generator, patient: Patient) -> Scan:
    """Draw the scan of a patient."""
    weights = [scanner.weight for scanner in SCANNERS]
    scanner = SCANNERS[int(rng.choice(len(SCANNERS), p=weights))]
    width, _, height = patient.anatomy.pose.scale
    across = 2 * (160 + patient.anatomy.fat) * width + rng.uniform(6, 40)
    offset = (0.0, float(rng.uniform(-25, 5)), float(np.round(rng.uniform(-1400, 400), 1)))
    year, month, day = rng.integers((2015, 1, 1), (2024, 13, 29)).tolist()
    return Scan(
        scanner,
        low=float(rng.uniform(-200, -178)) * height,
        high=float(rng.uniform(118, 138)) * height,
        field_of_view=float(np.clip(across, 330, 500)),
        offset=offset,
        study_date=year * 10000 + month * 100 + day,
        tube_current=int(rng.integers(90, 320)),
    )


def draw_reconstruction(
    rng: np.random.Generator, scan: Scan, *, spec: PhantomSpec, number: int
) -> Reconstruction:
    """Draw a reconstruction: matrix, slices, field of view and kernel.

    Args:
        rng: Source of the draws.
        scan: What is reconstructed.
        spec: Ranges of matrix and slice spacing.
        number: 0 for the first, which is mostly soft; odd ones are mostly sharp.
    """
    rows = int(rng.integers(spec.matrix[0], spec.matrix[1] + 1))
    spacing = round(float(rng.uniform(*spec.slice_spacing)) * 4) / 4
    spacing = float(np.clip(spacing, *spec.slice_spacing))
    diameter = scan.field_of_view * (1.0 if number == 0 else float(rng.uniform(0.88, 1.0)))
    pixel = round(diameter / rows, 6)
    slices = max(2, int((scan.high - scan.low) / spacing) + 1)
    corner = -pixel * (rows - 1) / 2
    sharp = bool(rng.random() < (0.8 if number % 2 else 0.2))
    return Reconstruction(
        Grid((slices, rows, rows), (spacing, pixel, pixel), (corner, corner + 8.0, scan.low)),
        sharp=sharp,
        noise=float(rng.uniform(26, 42) if sharp else rng.uniform(8, 16)),
        as_float=bool(rng.random() < 0.5),
        seed=int(rng.integers(2**31)),
    )


def acquire(hu: Array, reconstruction: Reconstruction) -> NDArray[np.int16]:
    """Return what the scanner makes of exact HU: slice profile, kernel, noise and range.

    Args:
        hu: Noiseless, D H W; changed in place.
        reconstruction: Kernel, noise and seed.
    """
    rng = np.random.default_rng(reconstruction.seed)
    hu[1:-1] += np.float32(0.12) * (hu[:-2] + hu[2:] - 2 * hu[1:-1])
    if reconstruction.sharp:
        hu += np.float32(0.45) * (hu - _in_plane(hu, 0.9))
    else:
        hu = _in_plane(hu, 0.45)
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    noise = noise - _in_plane(noise, 0.9) if reconstruction.sharp else _in_plane(noise, 0.7)
    # Shoulders and belly take more photons away: noisier slices with streaks across.
    dense = (hu > -300).mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    level = np.float32(reconstruction.noise / noise.std()) * (np.float32(0.6) + dense)
    streaks = rng.standard_normal((*hu.shape[:2], 1), dtype=np.float32)
    hu += level * (noise + np.float32(0.12) * noise.std() * gaussian_filter1d(streaks, 0.8, axis=1))
    return np.clip(np.rint(hu), HU_LOW, HU_HIGH).astype(np.int16)


def _in_plane(array: Array, sigma: float) -> Array:
    return gaussian_filter(array, (0, sigma, sigma), truncate=2.5)


def pad(hu: NDArray[np.int16], scan: Scan) -> NDArray[np.int16]:
    """Return HU with everything outside the circle of reconstruction at stored value 0.

    Scanners that do not pad keep the corners.
    """
    if not scan.scanner.pads:
        return hu
    rows, columns = hu.shape[1:]
    y, x = np.ogrid[:rows, :columns]
    radius = np.hypot((y + 0.5) / rows - 0.5, (x + 0.5) / columns - 0.5)
    return np.where(radius > 0.5, np.int16(scan.scanner.intercept), hu)


def metadata_row(
    volume: str, patient: Patient, *, scan: Scan, reconstruction: Reconstruction
) -> Cells:
    """Return a volume's row of CT-RATE's metadata table, all 44 columns in order.

    Args:
        volume: File name, as `train_1_a_1.nii.gz`.
        patient: Whose sex and age.
        scan: Scanner and protocol.
        reconstruction: Grid and kernel.
    """
    known: Cells = {
        "VolumeName": volume,
        "PatientSex": patient.anatomy.sex,
        "PatientAge": f"{patient.anatomy.age:03d}Y",
        **_protocol(scan),
        **_geometry(scan, reconstruction),
    }
    return {column: known.get(column, "") for column in METADATA_COLUMNS}


def _protocol(scan: Scan) -> Cells:
    """Return what the scanner was and did; makes differ in what they leave blank."""
    scanner = scan.scanner
    siemens = "siemens" in scanner.manufacturer.lower()
    makers: Cells = {
        "DistanceSourceToDetector": 1085.6 if siemens else 1040.0,
        "DistanceSourceToPatient": 595.0 if siemens else 570.0,
        "FilterType": "FLAT" if siemens else "B",
        "FocalSpots": "[0.8, 0.8]" if siemens else "",
        "SingleCollimationWidth": 0.6 if siemens else 0.625,
        "TotalCollimationWidth": 38.4 if siemens else 40.0,
        "SpiralPitchFactor": 1.2 if siemens else 1.1,
        "ExposureModulationType": "XYZ_EC" if siemens else "NONE",
        "RescaleType": "HU" if siemens else "",
    }
    return {
        "Manufacturer": scanner.manufacturer,
        "ManufacturerModelName": scanner.model,
        "GantryDetectorTilt": 0,
        "TableHeight": round(130 - scan.offset[1], 1),
        "RotationDirection": "CW",
        "ExposureTime": 500,
        "XRayTubeCurrent": scan.tube_current,
        "Exposure": round(scan.tube_current * 0.35),
        "PatientPosition": "HFS",
        "RevolutionTime": 0.5,
        "CTDIvol": round(scan.tube_current * 0.028, 3),
        "RescaleIntercept": scanner.intercept,
        "RescaleSlope": 1,
        "StudyDate": scan.study_date,
        **makers,
    }


def _geometry(scan: Scan, reconstruction: Reconstruction) -> Cells:
    """Return what differs between the reconstructions of a scan."""
    scanner, sharp = scan.scanner, reconstruction.sharp
    grid = in_scanner(reconstruction.grid, scan)
    slices, rows, columns = grid.shape
    dz, dy, dx = grid.spacing
    x, y, z = grid.origin
    return {
        "SeriesDescription": f"Thorax {dz} {'Lung' if sharp else 'Mediastinum'}",
        "ReconstructionDiameter": round(dx * columns, 3),
        "ConvolutionKernel": scanner.sharp if sharp else scanner.soft,
        "ImagePositionPatient": f"[{x}, {y}, {z}]",
        "ImageOrientationPatient": "[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]",
        "SliceLocation": z,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": rows,
        "Columns": columns,
        "XYSpacing": f"[{dy}, {dx}]",
        "NumberofSlices": slices,
        "ZSpacing": dz,
    }


def in_scanner(grid: Grid, scan: Scan) -> Grid:
    """Return a grid of the patient's frame in the scanner's."""
    x, y, z = (round(a + b, 4) for a, b in zip(grid.origin, scan.offset, strict=True))
    return replace(grid, origin=(x, y, z))
