"""Regions of real scans: volumes and places that an adult's organs have."""

import numpy as np
import pytest

from ct3dlib.config import RegionsSpec
from ct3dlib.regions import Regions, sidecar
from ct3dlib.regions.label_map import LUNGS, REGIONS
from ct3dlib.scan.dicom import list_series, read_dicom
from ct3dlib.scan.geometry import canonical
from ct3dlib.scan.nifti import read_nifti
from ct3dlib.scan.volume import Volume
from tests.regions.segmenting import segment

pytestmark = pytest.mark.real

SPEC = RegionsSpec(recipe="native")
ADULT_ML = {
    "trachea_bronchi": (15, 110),
    "heart": (300, 900),
    "aorta": (60, 300),
    "liver_biliary": (700, 2200),
    "spine": (400, 1000),
    "ribs_chest_wall": (400, 1300),
}


def rows_of(volume: Volume) -> tuple[Regions, dict[str, dict]]:
    regions = segment(volume, SPEC)
    return regions, {row["name"]: row for row in sidecar(regions, volume.spacing)}


@pytest.mark.parametrize("patient", ["0001", "0002"])
def test_chest_has_an_adults_organs(real_data, patient):
    volume = canonical(read_nifti(real_data / f"lidc_idri/LIDC-IDRI-{patient}_2p5mm.nii.gz").volume)
    regions, rows = rows_of(volume)
    for name, (low, high) in ADULT_ML.items():
        assert low < rows[name]["ml"] < high, name
    lungs = np.isin(regions.mask, LUNGS)
    assert 3000 < lungs.sum() * np.prod(volume.spacing) / 1000 < 7000
    assert -950 < np.median(volume.array[lungs]) < -780
    column = {
        name: np.nonzero(regions.mask == i)[2].mean()
        for i, name in enumerate(REGIONS)
        if (regions.mask == i).any()
    }
    assert column["lung_lower_lobe_right"] < column["heart"] < column["lung_lower_lobe_left"]
    assert column["liver_biliary"] < column["spine"] < column["aorta"] + 8
    assert rows["heart"]["key_slice"] > rows["liver_biliary"]["key_slice"]


def test_native_series_agrees_with_its_resampled_copy(real_data):
    folder = real_data / "lidc_idri/LIDC-IDRI-0001_dicom"
    native = canonical(read_dicom(list_series(folder)[0].files).volume)
    copy = canonical(read_nifti(real_data / "lidc_idri/LIDC-IDRI-0001_2p5mm.nii.gz").volume)
    (_, ours), (_, theirs) = rows_of(native), rows_of(copy)
    for name in ("lung_lower_lobe_right", "lung_upper_lobe_left", "liver_biliary", "spine"):
        assert ours[name]["ml"] == pytest.approx(theirs[name]["ml"], rel=0.15), name


def test_abdomen_has_a_liver_and_no_chest(real_data):
    volume = canonical(read_nifti(real_data / "totalsegmentator/example_ct.nii.gz").volume)
    _, rows = rows_of(volume)
    assert {rows[name]["status"] for name in REGIONS[1:15]} == {"absent"}
    assert 900 < rows["liver_biliary"]["ml"] < 2200
    assert rows["stomach_bowel"]["ml"] > 300
    assert rows["spine"]["status"] == "ok"
