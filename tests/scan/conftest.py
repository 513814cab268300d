from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid


@pytest.fixture
def oblique_affine() -> NDArray[np.float64]:
    """Spacing (2.5, 0.8, 0.7) mm, D to superior, turned by 10 degrees about x and 7 about z."""
    a, b = np.deg2rad([10, 7])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([0.7, 0.8, 2.5])[:, ::-1]
    affine[:3, 3] = -30, 12, 400
    return affine


@pytest.fixture
def phantom() -> NDArray[np.int16]:
    """A chest of 24 x 40 x 48 voxels, HU: air, fat, muscle, two unlike lungs, spine, noise."""
    d, h, w = np.meshgrid(*(np.linspace(-1, 1, n) for n in (24, 40, 48)), indexing="ij")
    hu = np.full(d.shape, -1000.0)
    hu[(h / 0.85) ** 2 + (w / 0.9) ** 2 < 1] = -100
    hu[(h / 0.75) ** 2 + (w / 0.8) ** 2 < 1] = 45
    hu[(h / 0.5) ** 2 + ((w + 0.4) / 0.25) ** 2 + (d / 0.9) ** 2 < 1] = -860
    hu[(h / 0.4) ** 2 + ((w - 0.4) / 0.2) ** 2 + (d / 0.8) ** 2 < 1] = -840
    hu[((h - 0.55) / 0.12) ** 2 + (w / 0.1) ** 2 < 1] = 700
    hu += np.random.default_rng(0).normal(0, 12, hu.shape)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)


@pytest.fixture
def write_slice(tmp_path: Path) -> Callable[..., Path]:
    """Write one CT slice: `write_slice(name, stored, z, Tag=value, ...)`; None removes a tag."""
    series_uid, frame_uid = generate_uid(entropy_srcs=["series"]), generate_uid()

    def write(name: str, stored: NDArray[Any], z: float, **tags: Any) -> Path:
        dataset = Dataset()
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        dataset.SOPInstanceUID = generate_uid()
        dataset.SeriesInstanceUID = series_uid
        dataset.FrameOfReferenceUID = frame_uid
        dataset.PatientID = "patient-7"
        dataset.PatientName = "Doe^Jane"
        dataset.Modality = "CT"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.Rows, dataset.Columns = stored.shape[-2:]
        dataset.SamplesPerPixel = 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelRepresentation = int(stored.dtype.kind == "i")
        dataset.PixelSpacing = [0.8, 0.7]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [-10, -20, z]
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = np.ascontiguousarray(stored).tobytes()
        dataset["PixelData"].VR = "OW"
        for tag, value in tags.items():
            if value is None:
                delattr(dataset, tag)
            else:
                setattr(dataset, tag, value)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = tmp_path / "dicom" / name
        path.parent.mkdir(exist_ok=True)
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)
        return path

    return write
