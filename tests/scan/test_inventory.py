"""Every line of the inventory of real files, from catalog to store: what it says comes out.

Each path of a line is a raw root of its own, whose series are stored or rejected with their reason.
A line that nobody wrote an expectation for fails.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ct3dlib.cohort.catalog import to_frame
from ct3dlib.cohort.shard import store_shard
from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import RecipeSpec
from ct3dlib.datasets import read_dataset

pytestmark = pytest.mark.real


@dataclass(frozen=True)
class Line:
    """What must come of the files of a line.

    Args:
        paths: Glob patterns of its files or folders.
        outcomes: Reason, or shape as text where stored -> number of volumes.
        spacing: Of what is stored, mm.
        facts: Facts of what is stored, as far as they matter.
        low: Smallest HU of what is stored.
    """

    paths: tuple[str, ...]
    outcomes: Mapping[str, int]
    spacing: tuple[float, float, float] | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    low: int = -1024


# First cell of the inventory's line -> what must come of it. Whatever has at least two slices is
# taken, so that geometry is put to the test in short series too.
LINES = {
    "lidc_idri/LIDC-IDRI-0001_dicom/": Line(
        ("lidc_idri/LIDC-IDRI-0001_dicom",),
        {"133 x 512 x 512": 1},
        (2.5, 0.703125, 0.703125),
        {"tilt": 0.0, "interpolated": [], "duplicates": 0},
    ),
    "lidc_idri/LIDC-IDRI-0001_2p5mm.nii.gz, -0002_": Line(
        ("lidc_idri/*_2p5mm.nii.gz",),
        {"133 x 144 x 144": 1, "130 x 140 x 140": 1},
        (2.5, 2.5, 2.5),
        {"decided_by": "values"},
    ),
    "totalsegmentator/example_ct.nii.gz": Line(
        ("totalsegmentator/example_ct.nii.gz",),
        {"112 x 101 x 122": 1},
        (3.0, 3.0, 3.0),
        {"decided_by": "values", "stored_dtype": "int32"},
    ),
    # Upright, 512 rows of 0.482 mm at 18.5 degrees take 78 mm more of z and 0.948 of y.
    "dcm_qa_ct/Philips_tilt/": Line(
        ("dcm_qa_ct/Philips_tilt",),
        {"39 x 486 x 512": 1},
        (2.3708, 0.482422, 0.482422),
        {"tilt": 18.5},
    ),
    "dcm_qa_ct/GE_tilt_nonuniform/": Line(
        ("dcm_qa_ct/GE_tilt_nonuniform",), {"UNEVEN_SPACING": 1}
    ),
    "dicom2nifti/gantrytilting_001": Line(
        ("dicom2nifti/gantrytilting_001",),
        {"15 x 497 x 512": 1},
        (4.8515, 0.417969, 0.417969),
        {"tilt": 14.0},
    ),
    "dicom2nifti/notavolume_001": Line(
        ("dicom2nifti/notavolume_001",), {"DUPLICATE_POSITIONS": 1}
    ),
    "dicom2nifti/sliceincrement_001": Line(
        ("dicom2nifti/sliceincrement_001",), {"UNEVEN_SPACING": 1}
    ),
    "panimg/dicom_4d": Line(("panimg/dicom_4d",), {"NO_CONTRAST": 19}),
    "panimg/dicom_slope, dicom_intercept": Line(
        ("panimg/dicom_slope", "panimg/dicom_intercept"),
        {"NO_CONTRAST": 1, "2 x 2 x 3": 1},
        (0.5, 0.43, 0.43),
        low=0,
    ),
    "pydicom/CT_small.dcm": Line(("pydicom/CT_small.dcm",), {"SINGLE_SLICE": 1}),
    "pydicom/eCT_Supplemental.dcm": Line(
        ("pydicom/eCT_Supplemental.dcm",), {"2 x 512 x 512": 1}, (10.0, 0.388672, 0.388672)
    ),
    "pydicom/explicit_VR-UN.dcm": Line(("pydicom/explicit_VR-UN.dcm",), {"SINGLE_SLICE": 1}),
    "pydicom/bad_sequence.dcm, J2K_pixelrep_mismatch.dcm": Line(
        ("pydicom/bad_sequence.dcm", "pydicom/J2K_pixelrep_mismatch.dcm"), {"SINGLE_SLICE": 2}
    ),
    "cornerstone3D/CTImage.dcm_*.dcm, CT0012…": Line(
        ("cornerstone3D/*.dcm",), {"DUPLICATE_POSITIONS": 1, "UNSUPPORTED_SYNTAX": 1}
    ),
    "dcmqi/ct-3slice": Line(
        ("dcmqi/ct-3slice",), {"3 x 512 x 512": 1}, (1.0, 0.810547, 0.810547), {"tilt": 0.0}
    ),
    "rt-utils/mock_data": Line(
        ("rt-utils/mock_data",), {"2 x 512 x 512": 1}, (5.0, 0.488281, 0.488281)
    ),
    "lungmask/0.dcm, 1.dcm": Line(("lungmask/*.dcm",), {"2 x 512 x 512": 1}, (1.0, 0.625, 0.625)),
}  # fmt: skip


def test_every_line_of_the_inventory_is_expected(real_data: Path) -> None:
    text = (real_data / "INVENTORY.md").read_text()
    cells = re.findall(r"^\| ([^|]+?) \|", text, re.MULTILINE)
    assert set(cells) - {"path"} - {cell for cell in cells if set(cell) <= {"-"}} == set(LINES)


@pytest.mark.parametrize("name", LINES)
def test_a_line_of_the_inventory_comes_out(real_data: Path, tmp_path: Path, name: str) -> None:
    line = LINES[name]
    found: Counter[str] = Counter()
    for number, pattern in enumerate(line.paths):
        place = tmp_path / str(number)
        (place / "raw").mkdir(parents=True)
        for path in sorted(real_data.glob(pattern)):
            (place / "raw" / path.name).symlink_to(path)
        rows = to_frame(list(read_dataset("folder", place / "raw")))
        recipe, status = RecipeSpec(min_slices=2), place / "0000.parquet"
        table = store_shard(rows, place / "raw", recipe=recipe, code="1", status=status)
        for row in table.to_dict("records"):
            found[row["reason"] or " x ".join(map(str, row["shape"]))] += 1
            if row["status"] == "stored":
                assert tuple(row["spacing"]) == pytest.approx(line.spacing, abs=1e-3)
                facts = json.loads(row["facts"])
                assert {key: facts[key] for key in line.facts} == line.facts
        for volume in stored_volumes([status]):
            assert volume.read().min() == line.low
    assert found == line.outcomes
