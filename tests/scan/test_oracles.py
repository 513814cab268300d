"""Geometry and HU equal those of ITK and of dcm2niix, compared voxel by voxel in the world.

dcm2niix flips rows and turns slices round as NIfTI likes them, so its array differs and its world
must not. Of a tilted gantry it writes a grid that is not sheared: there every slice by itself, as
ITK reads it, is the judge.
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from ct3dlib.scan.dicom import read_dicom
from ct3dlib.scan.nifti import read_nifti
from ct3dlib.scan.volume import Volume
from tests.corpus.dicom_files import STORED, one_slice
from tests.corpus.nifti_cases import nifti

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
NEAR = 1e-3  # mm

REAL = [
    "lidc_idri/LIDC-IDRI-0001_dicom",
    "dcmqi/ct-3slice",
    "rt-utils/mock_data",
    "panimg/dicom_slope",
    "panimg/dicom_intercept",
    "lungmask",
    "pydicom/eCT_Supplemental.dcm",
]
# Scrambled SOP classes, and several frames in one file.
BEYOND_ITK = ["panimg/dicom_slope", "panimg/dicom_intercept", "pydicom/eCT_Supplemental.dcm"]
TILTED = ["dcm_qa_ct/Philips_tilt", "dicom2nifti/gantrytilting_001"]


def files_of(place: Path) -> list[Path]:
    """Return the DICOM files of a folder, or the one file."""
    paths = [place] if place.is_file() else sorted(place.iterdir())
    return [path for path in paths if path.read_bytes()[128:132] == b"DICM"]


def by_dcm2niix(files: Sequence[Path], folder: Path) -> nibabel.Nifti1Image:
    """Return the one volume that dcm2niix makes of files, or skip where it is not installed."""
    command = shutil.which("dcm2niix")
    if command is None:
        pytest.skip("dcm2niix is not installed (Debian: apt-get install dcm2niix)")
    source, target = folder / "source", folder / "target"
    source.mkdir()
    target.mkdir()
    for path in files:
        (source / path.name).symlink_to(path)
    options = ["-b", "n", "-z", "n", "-f", "volume", "-o", str(target)]
    subprocess.run([command, *options, str(source)], check=True, capture_output=True)
    (made,) = target.glob("*.nii")
    return nibabel.load(made)


def assert_same_in_the_world(
    ours: Volume, affine: NDArray[np.float64], theirs: NDArray[np.generic]
) -> None:
    """Compare ours, or 16 slices of it, with what lies there in an array with an RAS affine."""
    exact = np.linalg.inv(affine) @ LPS_TO_RAS @ ours.affine
    step = np.rint(exact)
    ends = np.array([[0, 0, 0, 1], [*(n - 1 for n in ours.shape), 1]]).T
    assert np.abs(affine @ (exact - step) @ ends).max() < NEAR
    assert sorted(theirs.shape) == sorted(ours.shape)
    rows = np.indices(ours.shape[1:]).reshape(2, -1)
    for d in range(0, len(ours.array), 1 + len(ours.array) // 16):
        plane = ours.array[d]
        voxels = np.vstack([np.full(rows.shape[1], d), rows, np.ones(rows.shape[1])])
        there = theirs[tuple((step @ voxels)[:3].astype(int))].reshape(plane.shape)
        np.testing.assert_allclose(plane, np.maximum(there, -1024), atol=1e-3, err_msg=f"slice {d}")


@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_real_series_equals_dcm2niix(real_data, tmp_path, name):
    files = files_of(real_data / name)
    image = by_dcm2niix(files, tmp_path)
    assert_same_in_the_world(read_dicom(files).volume, image.affine, np.asanyarray(image.dataobj))


@pytest.mark.real
@pytest.mark.parametrize("name", [*(name for name in REAL if name not in BEYOND_ITK), *TILTED])
def test_every_real_slice_lies_where_itk_puts_it(real_data, name):
    files = files_of(real_data / name)
    volume = read_dicom(files).volume
    assert_slices_equal_itk(volume, files[:: max(1, len(files) // 12)])


def assert_slices_equal_itk(volume: Volume, files: Sequence[Path]) -> None:
    """Compare the corners and values of single slices with ITK's."""
    to_voxel = np.linalg.inv(volume.affine)
    for path in files:
        image = SimpleITK.ReadImage(str(path), imageIO="GDCMImageIO")
        rows, columns = image.GetSize()[1::-1]
        corners = [(w, h, 0) for w in (0, columns - 1) for h in (0, rows - 1)]
        places = np.array([(*image.TransformIndexToPhysicalPoint(c), 1) for c in corners]).T
        voxels = to_voxel @ places
        d = int(np.rint(voxels[0, 0]))
        np.testing.assert_allclose(volume.affine @ np.rint(voxels), places, atol=NEAR)
        want = [[d, h, w] for w, h, _ in corners]
        np.testing.assert_array_equal(np.rint(voxels[:3]).T, want)
        theirs = np.maximum(SimpleITK.GetArrayFromImage(image)[0], -1024)
        np.testing.assert_allclose(volume.array[d], theirs, atol=1e-3)


def rotated(axis: int, degrees: float, cosines: Sequence[float]) -> list[float]:
    """Return row and column cosines turned about x, y or z."""
    one, two = (axis + 1) % 3, (axis + 2) % 3
    angle = np.deg2rad(degrees)
    turn = np.eye(3)
    turn[[one, two], [one, two]] = np.cos(angle)
    turn[one, two], turn[two, one] = -np.sin(angle), np.sin(angle)
    return np.round(np.reshape(cosines, (2, 3)) @ turn.T, 9).ravel().tolist()


AXIAL = [1, 0, 0, 0, 1, 0]
# Name -> row and column cosines, and the way from slice to slice, mm; null: along the normal.
PLANES = {
    "axial": (AXIAL, None),
    "axial-downward": (AXIAL, (0, 0, -3.0)),
    "prone": ([-1, 0, 0, 0, -1, 0], None),
    "feet-first": ([-1, 0, 0, 0, 1, 0], None),
    "coronal": ([1, 0, 0, 0, 0, -1], None),
    "sagittal": ([0, 1, 0, 0, 0, -1], None),
    "oblique": (rotated(0, 17, rotated(2, 9, AXIAL)), None),
    "oblique-coronal": (rotated(2, -21, [1, 0, 0, 0, 0, -1]), None),
    "tilted": (rotated(0, 14, AXIAL), (0, 0, 3.0)),
    "tilted-back": (rotated(0, -20, AXIAL), (0, 0, 3.0)),
}


def write_series(folder: Path, plane: str) -> list[Path]:
    """Write noise of 10 slices, 0.8 x 0.7 mm, each slice with its own slope and intercept."""
    cosines, step = PLANES[plane]
    way = np.cross(cosines[:3], cosines[3:]) * 3.0 if step is None else np.array(step)
    rng = np.random.default_rng(0)
    folder.mkdir()
    return [
        one_slice(
            folder / f"{number}.dcm",
            number,
            rng.integers(0, 2500, STORED.shape[1:]).astype(np.uint16),
            ImageOrientationPatient=cosines,
            ImagePositionPatient=np.round((-31, 17, 250) + number * way, 6).tolist(),
            PixelSpacing=[0.8, 0.7],
            RescaleSlope=1 + 0.5 * (number % 2),
            RescaleIntercept=-1000 - number,
        )
        for number in range(10)
    ]


@pytest.mark.parametrize("plane", [name for name in PLANES if "tilted" not in name])
def test_series_in_any_plane_equals_dcm2niix(tmp_path, plane):
    files = write_series(tmp_path / "series", plane)
    image = by_dcm2niix(files, tmp_path)
    assert_same_in_the_world(read_dicom(files).volume, image.affine, np.asanyarray(image.dataobj))


@pytest.mark.parametrize("plane", PLANES)
def test_series_in_any_plane_equals_itk(tmp_path, plane):
    files = write_series(tmp_path / "series", plane)
    reading = read_dicom(files[::-1])
    assert_slices_equal_itk(reading.volume, files)
    assert (reading.facts["tilt"] > 1) == ("tilted" in plane)


def in_unit(code: int, number: float) -> bytes:
    """Return a NIfTI file that counts in another unit, of which a millimetre is `number`."""
    i, j, k = (np.eye(4)[axis] * 2.5 * number for axis in range(3))
    steps = np.array([1 / number, 2.5, 2.5, 2.5, 0, 0, 0, 0]) * number
    return nifti(xyzt_units=code, srow_x=-i, srow_y=-j, srow_z=k, pixdim=steps)


@pytest.mark.parametrize(
    "content",
    [
        nifti(),
        nifti(srow_x=[0, 0, 4, 1], srow_y=[-2.5, 0, 0, 2], srow_z=[0, 2.5, 0, 3]),
        nifti(scl_slope=2, scl_inter=-5),
        in_unit(1, 0.001),
        in_unit(3, 1000.0),
    ],
    ids=["plain", "sagittal", "scaled", "metres", "micrometres"],
)
def test_nifti_equals_itk(tmp_path, content):
    path = tmp_path / "a.nii"
    path.write_bytes(content)
    volume = read_nifti(path).volume
    image = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(volume.array, SimpleITK.GetArrayFromImage(image))
    assert volume.spacing == pytest.approx(tuple(reversed(image.GetSpacing())), rel=1e-5)
    for w, h, d in ((0, 0, 0), (23, 19, 11)):
        place = image.TransformIndexToPhysicalPoint((w, h, d))
        np.testing.assert_allclose((volume.affine @ (d, h, w, 1))[:3], place, atol=NEAR)
