"""Anatomy and findings of rendered synthetic patients."""

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from ct3dlib.cohort.labels import LABELS
from ct3dlib.datasets.phantom_anatomy import LOBES, lobe_points
from ct3dlib.datasets.phantom_findings import PREVALENCE, Patient, draw_patient, make_patient
from ct3dlib.datasets.phantom_render import render
from ct3dlib.datasets.phantom_scanner import (
    SCANNERS,
    Reconstruction,
    acquire,
    draw_scan,
    pad,
)
from ct3dlib.datasets.phantom_space import Grid
from ct3dlib.datasets.phantom_text import write_report
from ct3dlib.datasets.phantom_vessels import grow

GRID = Grid((66, 88, 88), (5.0, 4.5, 4.5), (-195.0, -188.0, -190.0))
LUNGS = range(1, 6)
SEED = 4


def patient_with(*labels: str, seed: int = SEED) -> Patient:
    return make_patient(np.random.default_rng(seed), list(labels))


@cache
def rendered(*labels: str) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    return render(patient_with(*labels), GRID)[:2]


def mean_hu(region: int, *labels: str) -> float:
    hu, regions = rendered(*labels)
    return float(hu[regions == region].mean())


@pytest.mark.parametrize(
    ("region", "low", "high"),
    [
        *((lobe, -890, -740) for lobe in LUNGS),
        (6, -1000, -750),  # trachea and bronchi
        (8, 20, 55),  # heart
        (10, 25, 60),  # aorta
        (12, -110, -60),  # mediastinal fat
        (14, 80, 120),  # thyroid
        (15, 38, 70),  # liver
        (16, 35, 60),  # spleen
        (19, 60, 350),  # spine
        (20, 150, 500),  # ribs
    ],
)
def test_region_has_its_hu(region: int, low: float, high: float) -> None:
    assert low < mean_hu(region) < high


def test_every_region_is_there_once_labelled() -> None:
    _, regions = rendered()
    assert set(np.unique(regions)) == set(range(21))


def test_anatomy_lies_on_its_side() -> None:
    _, regions = rendered()
    centre = {region: np.argwhere(regions == region).mean(axis=0) for region in range(1, 21)}
    middle = centre[19][2]
    assert centre[15][2] < middle < centre[16][2]  # liver right, spleen left; W grows leftwards
    for left in (1, 2):
        assert centre[left][2] > middle
    for right in (3, 4, 5):
        assert centre[right][2] < middle
    assert centre[1][0] > centre[2][0]  # upper lobe above lower lobe
    assert centre[3][0] > centre[5][0]
    assert centre[8][1] < centre[19][1]  # heart in front of the spine
    assert centre[14][0] > centre[10][0] > centre[18][0]  # thyroid, aorta, kidney


def test_lung_volume_is_that_of_an_adult() -> None:
    _, regions = rendered()
    litres = np.isin(regions, LUNGS).sum() * 5 * 4.5**2 / 1e6
    assert 2.2 < litres < 7


def test_lumen_of_trachea_is_one_open_tube() -> None:
    hu, regions = rendered()
    air = (regions == 6) & (hu < -700)
    slices = np.flatnonzero(air.any(axis=(1, 2)))
    assert np.array_equal(slices, np.arange(slices[0], slices[-1] + 1))


@cache
def footprint(label: str) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32]]:
    """HU and regions with a label, and how HU changed against the same patient without it."""
    with_label, without = patient_with(label), patient_with()
    assert with_label.findings
    assert with_label.anatomy.pose.scale == without.anatomy.pose.scale
    assert with_label.anatomy.heart == without.anatomy.heart
    hu, regions = rendered(label)
    return hu, regions, hu - rendered()[0]


LUNG_LABELS = [
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
]


@pytest.mark.parametrize("label", LUNG_LABELS)
def test_lung_finding_changes_the_lung(label: str) -> None:
    _, regions, change = footprint(label)
    inside = np.isin(regions, (*LUNGS, 6))
    assert (np.abs(change[inside]) > 40).sum() * 5 * 4.5**2 > 1500  # mm3
    far = ~inside & (regions != 13)
    assert np.abs(change[far]).sum() < 0.35 * np.abs(change).sum()
    if label in {"Emphysema", "Consolidation", "Lung opacity", "Lung nodule", "Atelectasis"}:
        assert (change[inside].sum() > 0) == (label != "Emphysema")


def test_effusion_is_dependent_fluid() -> None:
    patient = patient_with("Pleural effusion")
    hu, regions, change = footprint("Pleural effusion")
    fluid = (regions == 13) & (change > 500)
    assert fluid.sum() * 5 * 4.5**2 / 1000 > 30  # ml
    assert -5 < np.median(hu[fluid]) < 25
    rows = np.argwhere(fluid)[:, 1]
    lung = np.argwhere(np.isin(regions, LUNGS))[:, 1]
    assert rows.mean() > lung.mean() + 8
    side = patient.of("Pleural effusion")[0].side
    columns = np.argwhere(fluid)[:, 2]
    if side != "both":
        assert (columns.mean() > 43.5) == (side == "left")


@pytest.mark.parametrize(
    "label",
    ["Arterial wall calcification", "Coronary artery wall calcification", "Medical material"],
)
def test_dense_finding_is_denser_than_bone_marrow(label: str) -> None:
    hu, _, change = footprint(label)
    assert ((change > 150) & (hu > 180)).sum() >= 4


def test_arterial_calcification_lies_in_the_aorta() -> None:
    _, regions, change = footprint("Arterial wall calcification")
    assert (regions[change > 150] == 10).mean() > 0.6


def test_hernia_and_nodes_have_their_regions() -> None:
    _, hernia, change = footprint("Hiatal hernia")
    assert (hernia == 7).sum() > 2 * (rendered()[1] == 7).sum()
    _, nodes, change = footprint("Lymphadenopathy")
    assert (change[nodes == 12] > 80).sum() * 5 * 4.5**2 > 700


def test_enlarged_heart_and_pericardial_fluid() -> None:
    large, normal = patient_with("Cardiomegaly"), patient_with()
    assert large.anatomy.heart >= 1.2 > 1.0 >= normal.anatomy.heart
    size = [(rendered(*labels)[1] == 8).sum() for labels in ((), ("Cardiomegaly",))]
    assert size[1] > 1.4 * size[0]
    hu, regions = rendered("Pericardial effusion")
    assert (regions == 9).sum() > 2 * (rendered()[1] == 9).sum()
    assert 0 < np.median(hu[regions == 9]) < 30


def test_nodule_has_its_diameter_and_place() -> None:
    patient = patient_with("Lung nodule", seed=1)
    nodule = max(patient.of("Lung nodule"), key=lambda finding: finding.size)
    x, y, z = patient.anatomy.pose.to_world(np.array([nodule.centre]))[0].tolist()
    grid = Grid((40, 60, 60), (1.0, 1.0, 1.0), (x - 30, y - 30, z - 20))
    change = render(patient, grid)[0] - render(Patient(patient.anatomy, ()), grid)[0]
    volume = (change > 300).sum()
    diameter = (6 * volume / np.pi) ** (1 / 3)
    assert 0.75 * nodule.size < diameter < 1.35 * nodule.size
    d, h, w = np.argwhere(change > 300).mean(axis=0)
    np.testing.assert_allclose((x - 30 + w, y - 30 + h, z - 20 + d), (x, y, z), atol=4)


def test_nodules_keep_the_id_of_their_lobe() -> None:
    patient = patient_with("Lung nodule", seed=2)
    _, regions, _ = render(patient, GRID)
    for nodule in patient.of("Lung nodule"):
        x, y, z = patient.anatomy.pose.to_world(np.array([nodule.centre]))[0]
        d, h, w = np.rint((z + 190) / 5), np.rint((y + 188) / 4.5), np.rint((x + 195) / 4.5)
        assert regions[int(d), int(h), int(w)] == nodule.region


def test_labels_are_drawn_at_their_prevalence() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([[rng.random() < PREVALENCE[label] for label in LABELS] for _ in range(4000)])
    np.testing.assert_allclose(drawn.mean(axis=0), list(PREVALENCE.values()), atol=0.03)
    assert len(PREVALENCE) == 18
    assert min(PREVALENCE.values()) >= 0.15
    assert max(PREVALENCE.values()) <= 0.4


def test_patients_differ_and_repeat() -> None:
    first, again, other = (draw_patient(np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert first.findings == again.findings
    np.testing.assert_array_equal(render(first, GRID)[0], render(again, GRID)[0])
    assert (first.anatomy.fat, first.anatomy.pose.scale) != (
        other.anatomy.fat,
        other.anatomy.pose.scale,
    )


def test_reconstructions_share_their_anatomy() -> None:
    patient = patient_with()
    fine = Grid((95, 110, 110), (3.5, 3.6, 3.6), (-195.0, -188.0, -190.0))
    truths = {grid: render(patient, grid)[1] for grid in (GRID, fine)}
    for region in (3, 8, 14, 16):
        centres = [
            grid.affine @ np.append(np.argwhere(regions == region).mean(axis=0), 1)
            for grid, regions in truths.items()
        ]
        np.testing.assert_allclose(centres[0], centres[1], atol=1.5)


def test_grid_outside_the_chest_is_refused() -> None:
    with pytest.raises(ValueError, match="does not meet the chest"):
        render(patient_with(), Grid((9, 9, 9), (4.0, 4.0, 4.0), (900.0, 900.0, 900.0)))


def test_kernels_and_noise() -> None:
    flat = np.full((12, 64, 64), 40, np.float32)
    soft = acquire(
        flat.copy(), Reconstruction(GRID, sharp=False, noise=10.0, as_float=False, seed=1)
    )
    sharp = acquire(
        flat.copy(), Reconstruction(GRID, sharp=True, noise=35.0, as_float=False, seed=1)
    )
    assert soft.std() == pytest.approx(16, abs=2.5)  # 10 x (0.6 + 1 where all is dense)
    assert sharp.std() > 2 * soft.std()
    assert soft.mean() == pytest.approx(40, abs=1)

    def neighbours(array: NDArray[np.int16]) -> float:
        return float(np.corrcoef(array[:, :, 1:].ravel(), array[:, :, :-1].ravel())[0, 1])

    assert neighbours(soft) > 0.4 > neighbours(sharp)


def test_padding_is_stored_as_zero() -> None:
    scan = draw_scan(np.random.default_rng(0), patient_with())
    hu = np.full((2, 40, 40), -1000, np.int16)
    for scanner in SCANNERS:
        padded = pad(hu, type(scan)(**{**vars(scan), "scanner": scanner}))
        assert padded[0, 0, 0] == (scanner.intercept if scanner.pads else -1000)
        assert padded[1, 20, 20] == -1000


def test_report_says_what_is_there_and_what_is_not() -> None:
    words = {
        "Medical material": ("pacemaker", "port chamber", "sternotomy"),
        "Arterial wall calcification": ("calcified plaques",),
        "Cardiomegaly": ("enlarged", "increased"),
        "Pericardial effusion": ("pericardial effusion reaching", "pericardial fluid"),
        "Coronary artery wall calcification": ("coronary artery",),
        "Hiatal hernia": ("hiatal hernia",),
        "Lymphadenopathy": ("lymph nodes are seen",),
        "Emphysema": ("emphysema in both lungs",),
        "Atelectasis": ("atelectasis",),
        "Lung nodule": ("mm is seen in the",),
        "Lung opacity": ("ground-glass",),
        "Pulmonary fibrotic sequela": ("sequela",),
        "Pleural effusion": ("pleural effusion of", "pleural effusion measuring"),
        "Mosaic attenuation pattern": ("mosaic attenuation",),
        "Peribronchial thickening": ("peribronchial thickening",),
        "Consolidation": ("air bronchograms",),
        "Bronchiectasis": ("bronchiectasis is seen in",),
        "Interlobular septal thickening": ("interlobular sept",),
    }
    assert list(words) == list(LABELS)
    for label, options in words.items():
        for seed in range(4):
            rng = np.random.default_rng(seed)
            text = write_report(patient_with(label, seed=seed), rng).findings.lower()
            assert any(option in text for option in options), (label, text)
    healthy = write_report(patient_with(), np.random.default_rng(0))
    for label, options in words.items():
        assert label == "Cardiomegaly" or not any(
            option in healthy.findings.lower() for option in options
        )
    assert healthy.answer == "No abnormality is detected in the chest."
    assert healthy.impressions == "Findings within normal limits."


def test_report_names_lobe_side_and_size() -> None:
    patient = patient_with("Lung nodule", "Pleural effusion", seed=3)
    report = write_report(patient, np.random.default_rng(0))
    nodule = patient.of("Lung nodule")[0]
    assert f"{nodule.size:.0f} mm" in report.findings
    side = {"left": "left-sided", "right": "right-sided", "both": "bilateral"}
    assert side[patient.of("Pleural effusion")[0].side] in report.findings.lower()
    assert "Pulmonary nodule" in report.impressions
    assert f"{nodule.size:.0f} mm" in report.answer


def test_tree_reaches_every_leaf_and_thins_out() -> None:
    leaves = np.random.default_rng(0).normal(size=(31, 3)) * 20
    branches = grow(np.array([90.0, 0.0, 0.0]), leaves, radius=6.0)
    ends = np.array([branch.stop for branch in branches])
    for leaf in leaves:
        assert np.linalg.norm(ends - leaf, axis=1).min() < 1e-9
    assert len(branches) == 2 * 31 - 1  # a binary tree
    assert all(branch.radii[1] < branch.radii[0] <= 6 for branch in branches)


def test_lobe_points_lie_deep_in_every_lobe() -> None:
    points = lobe_points(patient_with().anatomy, np.random.default_rng(0), depth=5.0)
    assert set(points) == set(LOBES)
    assert all(len(found) > 60 for found in points.values())
    assert (points[1][:, 0] > 0).all()
    assert (points[5][:, 0] < 0).all()
