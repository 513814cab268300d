"""Lesion masks of the synthetic cohort: which voxels are a planted nodule, and where they are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from ct3dlib.cohort.labels import LABELS
from ct3dlib.config import PhantomSpec
from ct3dlib.datasets.ct_rate import read_ct_rate
from ct3dlib.datasets.phantom import write_cohort
from ct3dlib.datasets.phantom_findings import Finding, Patient, make_patient
from ct3dlib.datasets.phantom_render import render
from ct3dlib.datasets.phantom_space import Field, Grid, Pose

SPEC = PhantomSpec(
    train_patients=2,
    valid_patients=1,
    reconstructions=(2, 2),
    matrix=(40, 44),
    slice_spacing=(6.0, 8.0),
    dicom_every=3,
    faults=("nan",),
    seed=34,
)


def rigid_patient(*nodules: Finding) -> Patient:
    """Return a patient whose template millimetres are world millimetres, with these nodules."""
    still = Field(np.zeros((24, 24, 24), np.float32), -400.0, 40.0)
    anatomy = make_patient(np.random.default_rng(0), []).anatomy
    pose = Pose((1.0, 1.0, 1.0), (still, still, still), 0.0)
    return Patient(replace(anatomy, pose=pose), nodules)


def nodule(*centre: float, size: float, kind: str = "solid", seed: int = 0) -> Finding:
    x, y, z = centre
    return Finding("Lung nodule", kind, 5, "right", (x, y, z), float(size), 1.0, seed)


def grid_around(*centre: float, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Grid:
    """Return 41 x 41 x 41 voxels whose middle one, (20, 20, 20), has its centre there."""
    x, y, z = centre
    dz, dy, dx = spacing
    return Grid((41, 41, 41), spacing, (x - 20 * dx, y - 20 * dy, z - 20 * dz))


def lesions_of(patient: Patient, grid: Grid) -> NDArray[np.uint8]:
    return render(patient, grid)[2]


def test_a_nodule_is_its_ellipsoid_at_its_centre() -> None:
    found = nodule(-60, 10, -40, size=16, seed=7)
    mask = lesions_of(rigid_patient(found), grid_around(-60, 10, -40))
    rng = np.random.default_rng(7)  # the flattening along x and z, as it is painted
    a, b, c = 8 * rng.uniform(0.9, 1.0), 8.0, 8 * rng.uniform(0.85, 1.0)
    z, y, x = np.ogrid[-20:21, -20:21, -20:21]
    np.testing.assert_array_equal(mask, (x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2 <= 1)
    assert mask.dtype == np.uint8
    assert mask[20, 12, 20] == mask[20, 28, 20] == 1  # 8 mm to the front and to the back
    assert mask[20, 11, 20] == mask[20, 29, 20] == 0


def test_a_nodule_is_where_it_is_covered_by_half() -> None:
    found = nodule(-60, 10, -40, size=18)
    grid = grid_around(-60, 10, -40, spacing=(1.5, 1.0, 1.25))
    with_it, without = (render(rigid_patient(*f), grid) for f in ((found,), ()))
    air = without[0] < -500  # elsewhere a nodule of 38 HU changes little
    cover = (with_it[0] - without[0])[air] / (38 - without[0])[air]
    np.testing.assert_array_equal(with_it[2][air] == 1, cover >= 0.5 - 1e-5)
    assert air[with_it[2] == 1].mean() > 0.5
    assert not without[2].any()


def test_each_nodule_has_its_own_id_in_the_order_of_the_findings() -> None:
    nodules = (
        nodule(-60, 10, -40, size=10),
        nodule(-48, 10, -40, size=8, kind="calcified"),
        nodule(-60, 26, -40, size=9, kind="spiculated"),
    )
    mask = lesions_of(rigid_patient(*nodules), grid_around(-60, 10, -40))
    assert np.unique(mask).tolist() == [0, 1, 2, 3]
    for number, (d, h, w) in enumerate(((20, 20, 20), (20, 20, 32), (20, 36, 20)), start=1):
        assert mask[d, h, w] == number
        middle = np.argwhere(mask == number).mean(axis=0)
        np.testing.assert_allclose(middle, (d, h, w), atol=0.01)
        # A sphere of its diameter, flattened to at most 0.9 and 0.85 of it.
        ball = np.pi / 6 * nodules[number - 1].size ** 3
        assert 0.7 * ball < (mask == number).sum() < 1.06 * ball


def test_of_two_that_overlap_the_later_one_has_the_voxel_and_neither_is_lost() -> None:
    first, second = nodule(-60, 10, -40, size=10), nodule(-60, 16, -40, size=10)
    mask = lesions_of(rigid_patient(first, second), grid_around(-60, 10, -40))
    assert (mask[20, 23, 20], mask[20, 20, 20], mask[20, 26, 20]) == (2, 1, 2)
    small, large = nodule(-61, 10, -40, size=4), nodule(-60, 10, -40, size=20)
    mask = lesions_of(rigid_patient(small, large), grid_around(-60, 10, -40))
    assert np.argwhere(mask == 1).tolist() == [[20, 20, 19]]


def test_a_nodule_smaller_than_a_voxel_marks_the_one_nearest_its_centre() -> None:
    grid = grid_around(-60, 10, -40, spacing=(9.0, 8.0, 7.0))
    tiny = nodule(-60 + 3.4, 10 - 3.9, -40 + 9 + 4.4, size=2)  # in voxel (21, 20, 20), at its edge
    assert np.argwhere(lesions_of(rigid_patient(tiny), grid)).tolist() == [[21, 20, 20]]


def test_a_nodule_outside_the_field_of_view_keeps_its_number_to_itself() -> None:
    grid = grid_around(-60, 10, -40)
    outside, inside = nodule(-60, 10, -40 - 20.6, size=0.1), nodule(-60, 10, -40, size=6)
    assert np.unique(lesions_of(rigid_patient(outside, inside), grid)).tolist() == [0, 2]
    within = nodule(-60, 10, -40 - 20.4, size=0.1)
    mask = lesions_of(rigid_patient(within), grid)
    assert np.argwhere(mask).tolist() == [[0, 20, 20]]


def test_every_nodule_of_a_drawn_patient_is_marked_in_its_lobe() -> None:
    patient = make_patient(np.random.default_rng(2), ["Lung nodule"])
    grid = Grid((66, 88, 88), (5.0, 4.5, 4.5), (-195.0, -188.0, -190.0))
    _, regions, mask = render(patient, grid)
    found = patient.of("Lung nodule")
    assert np.unique(mask).tolist() == list(range(len(found) + 1))
    for number, one in enumerate(found, start=1):
        world = patient.anatomy.pose.to_world(np.array([one.centre]))[0]
        middle = (grid.affine @ np.append(np.argwhere(mask == number).mean(axis=0), 1))[:3]
        np.testing.assert_allclose(middle, world, atol=2.5)
        assert (regions[mask == number] == one.region).mean() > 0.9


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_cohort(folder, SPEC)
    return folder


def read(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    image = nib.nifti1.Nifti1Image.from_filename(path)
    assert image.affine is not None
    return np.asanyarray(image.dataobj), image.affine


def test_every_undamaged_series_has_a_mask_on_the_grid_of_its_regions(raw: Path) -> None:
    base = raw / "dataset"
    masks = sorted(p.relative_to(base / "lesions").as_posix() for p in base.glob("lesions/*/*"))
    truths = sorted(p.relative_to(base / "regions").as_posix() for p in base.glob("regions/*/*"))
    assert masks == truths
    assert len(masks) == 6  # valid_2, which is damaged, has none
    for name in masks:
        (mask, affine), (regions, wanted) = (read(base / f / name) for f in ("lesions", "regions"))
        assert mask.dtype == np.uint8
        assert mask.shape == regions.shape
        np.testing.assert_array_equal(affine, wanted)


def test_ids_are_those_of_the_labels_and_agree_between_reconstructions(raw: Path) -> None:
    rows = {row.volume: row for row in read_ct_rate(raw)}
    has_nodule = {}
    for volume, row in rows.items():
        if row.lesion_mask is None:
            continue
        ids = set(np.unique(read(raw / row.lesion_mask)[0]).tolist())
        assert row.labels is not None
        assert (ids != {0}) == bool(row.labels[LABELS.index("Lung nodule")])
        assert ids == set(range(len(ids)))
        assert has_nodule.setdefault(row.study, ids) == ids, volume
    assert {len(ids) > 1 for ids in has_nodule.values()} == {True, False}


def test_the_reader_names_the_mask_of_every_series_that_has_one(raw: Path) -> None:
    rows = {row.volume: row.lesion_mask for row in read_ct_rate(raw)}
    assert rows["train_1_a_2"] == "dataset/lesions/train/train_1_a_2.nii.gz"
    assert rows["valid_2_a_1"] is None
    assert sum(mask is None for mask in rows.values()) == 1


def test_a_lost_mask_is_made_again_and_one_of_a_patient_that_is_gone_is_removed(
    tmp_path: Path,
) -> None:
    small = SPEC.model_copy(update={"reconstructions": (1, 1), "matrix": (40, 40), "faults": ()})
    write_cohort(tmp_path, small)
    base = tmp_path / "dataset"
    path = base / "lesions/train/train_1_a_1.nii.gz"
    before = path.read_bytes()
    path.unlink()
    write_cohort(tmp_path, small)
    assert path.read_bytes() == before
    write_cohort(tmp_path, small.model_copy(update={"train_patients": 1}))
    assert [p.name for p in sorted(base.glob("lesions/*/*"))] == [
        *("train_1_a_1.nii.gz", "valid_1_a_1.nii.gz"),
    ]
