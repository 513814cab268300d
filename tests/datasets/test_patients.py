import logging
from collections import defaultdict
from pathlib import Path

import pytest

from ct3dlib.cohort.pseudonyms import UNKEYED
from ct3dlib.datasets.files import Header
from ct3dlib.datasets.listing import Found
from ct3dlib.datasets.patients import recognise

CASES = [f"case_{number:03d}" for number in range(4)]
MANY = [f"p{number}" for number in range(8)]


def _found(place: str, patient: str = "") -> Found:
    kind = "nifti" if place.endswith(".nii.gz") else "dicom"
    return Found(kind, (Path(place),), place, Header(None, None), patient=patient)


def _groups(places: list[str]) -> dict[str, int]:
    """Return how many series each patient has."""
    groups: dict[str, int] = defaultdict(int)
    for patient in recognise([_found(place) for place in places]):
        groups[patient] += 1
    return dict(groups)


TREES: dict[str, tuple[list[str], dict[str, int]]] = {
    "flat": (["a.nii.gz", "b.nii.gz"], {"a": 1, "b": 1}),
    "one folder": (["all/a.nii.gz", "all/b.nii.gz"], {"a": 1, "b": 1}),
    "dates of patients": (
        [f"P0{p}/2020-0{m}-1{p}.nii.gz" for p in range(4) for m in (1, 2, 3)],
        {"P00": 3, "P01": 3, "P02": 3, "P03": 3},
    ),
    "the same dates of few patients": (
        [f"P{p}/2020-0{m}.nii.gz" for p in (1, 2) for m in (1, 2, 3)],
        {"P1": 3, "P2": 3},
    ),
    "patient in folder and name": (
        ["P02/P02_scan1.nii.gz", "P02/P02_scan2.nii.gz", "P03/P03_scan1.nii.gz"],
        {"P02": 2, "P03": 1},
    ),
    "visits": (
        [f"P{p}/v{v}/ct.nii.gz" for p in (0, 1) for v in (1, 2)],
        {"P0": 2, "P1": 2},
    ),
    "a folder around patients": (
        [f"all/P{p}/v{v}/ct.nii.gz" for p in (0, 1) for v in (1, 2)],
        {"P0": 2, "P1": 2},
    ),
    "folder of a patient": (["s1/ct.nii.gz", "s2/ct.nii.gz"], {"s1": 1, "s2": 1}),
    "patients beside loose files": (
        ["P1/a.nii.gz", "P1/b.nii.gz", "c.nii.gz"],
        {"P1": 2, "c": 1},
    ),
    "images and labels": (
        [f"{kind}/{case}.nii.gz" for kind in ("images", "labels") for case in CASES],
        dict.fromkeys(CASES, 2),
    ),
    "images and labels of a patient": (
        [f"P{p}/{kind}/ct.nii.gz" for p in (0, 1) for kind in ("image", "label")],
        {"P0": 2, "P1": 2},
    ),
    "nnU-Net": (
        [
            *(f"imagesTr/{case}_000{n}.nii.gz" for case in CASES for n in (0, 1)),
            *(f"labelsTr/{case}.nii.gz" for case in CASES),
        ],
        dict.fromkeys(CASES, 3),
    ),
    "imagesTr without numbers of modalities": (
        ["imagesTr/LIDC_0001.nii.gz", "imagesTs/LIDC_0002.nii.gz"],
        {"LIDC_0001": 1, "LIDC_0002": 1},
    ),
    "folders of other words": (
        [f"{phase}/{name}.nii.gz" for phase in ("arterial", "venous") for name in MANY],
        dict.fromkeys(MANY, 2),
    ),
    "most files in both folders": (
        [*(f"arterial/{n}.nii.gz" for n in MANY), *(f"venous/{n}.nii.gz" for n in MANY[:5])],
        {name: 2 if name in MANY[:5] else 1 for name in MANY},
    ),
    "sites": (
        ["siteA/P0/ct.nii.gz", "siteA/P1/ct.nii.gz", "siteB/P2/a.nii.gz", "siteB/P2/b.nii.gz"],
        {"P0": 1, "P1": 1, "P2": 2},
    ),
    "parts": (["train/x.nii.gz", "test/y.nii.gz"], {"x": 1, "y": 1}),
    "BIDS": (
        ["sub-01/ses-1/ct.nii.gz", "sub-01/ses-2/ct.nii.gz", "sub-02/ses-1/ct.nii.gz"],
        {"sub-01": 2, "sub-02": 1},
    ),
    "CT-RATE": (
        ["x/train_1_a_1.nii.gz", "y/train_1_b_1.nii.gz", "validation_3_a_1.nii.gz"],
        {"train_1": 2, "valid_3": 1},
    ),
    "DICOM without PatientID": (["P1/s1", "P1/s2", "P2/s1"], {"P1": 2, "P2": 1}),
    "DICOM at the root": (["."], {"volume": 1}),
    "one volume": (["P1/v1/ct.nii.gz"], {"ct": 1}),
    "nothing": ([], {}),
}


@pytest.mark.parametrize("tree", list(TREES))
def test_patients_of_a_tree(tree: str) -> None:
    places, wanted = TREES[tree]
    assert _groups(places) == wanted
    assert _groups(places[::-1]) == wanted


def test_a_patient_id_counts_more_than_folders() -> None:
    found = [_found("a/s1", "LIDC-7"), _found("b/s2", "LIDC-7"), _found("c/LIDC-7_ct.nii.gz")]
    assert recognise([*found, _found("c/x.nii.gz")]) == [UNKEYED.of("patient", "LIDC-7")] * 3 + [
        "c"
    ]


def test_the_only_folder_of_unnamed_files_is_a_patient_beside_others() -> None:
    found = [_found("dicom/s1", "LIDC-7"), _found("P1/a.nii.gz"), _found("P1/b.nii.gz")]
    assert recognise(found) == [UNKEYED.of("patient", "LIDC-7"), "P1", "P1"]


def test_more_visits_move_nobody() -> None:
    places = [f"P{p}/scan{v}.nii.gz" for p in range(3) for v in (1, 2)]
    before = recognise([_found(place) for place in places])
    more = [*places, "P0/scan3.nii.gz", "P3/scan1.nii.gz"]
    assert recognise([_found(place) for place in more])[: len(places)] == before


def test_log_says_how_patients_were_recognised(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    recognise([_found("P1/a.nii.gz"), _found("P1/b.nii.gz"), _found("c.nii.gz"), _found("d", "X")])
    assert (
        "3 patients from 4 series, recognised by PatientID (1), file name (1), folder (2)"
        in caplog.text
    )
