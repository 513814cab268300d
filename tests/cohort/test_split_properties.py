"""What holds for every set of patients: nobody is in two splits, and nobody moves later."""

from hypothesis import given, reject
from hypothesis import strategies as st

from ct3dlib.cohort.catalog import Row, arrange
from ct3dlib.cohort.split import Assignments, drawn_with
from ct3dlib.config import SPLITS, CatalogSpec
from ct3dlib.errors import DatasetError
from tests.strategies import steady

Scan = tuple[int, str | None, int, bool]


def row_of(number: int, scan: Scan) -> Row:
    """Return the row of a scan: its patient, split, slices, and whether it can be read."""
    patient, split, slices, sound = scan
    return Row(
        volume=f"v{number}",
        dataset="folder",
        patient=f"p{patient}",
        study=f"v{number}",
        split=split,
        kind="nifti",
        sources=(f"v{number}.nii",),
        size=1,
        mtime_ns=1,
        shape=(slices, 5, 5),
        problem=None if sound else "FILE_TRUNCATED",
        problem_message=None if sound else "cut; fetch it again",
    )


@st.composite
def scans_of_patients(draw: st.DrawFn) -> list[Scan]:
    """Draw the scans of 2 to 12 patients, each with a split that the data set states or none."""
    origins = draw(st.sampled_from([[None], ["train"], ["train", "valid"], [None, "train"]]))
    patients = draw(st.lists(st.sampled_from(origins), min_size=2, max_size=12))
    looks = st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=3)
    return [(n, split, *look) for n, split in enumerate(patients) for look in draw(looks)]


@steady(150)
@given(scans_of_patients(), st.integers(0, 99), st.floats(0, 0.5), st.floats(0, 0.45))
def test_no_patient_straddles_two_splits_now_or_later(scans, seed, tune, valid):
    rows = [row_of(number, scan) for number, scan in enumerate(scans)]
    shards = {"train": 3, "tune": 2, "valid": 2}
    spec = CatalogSpec(dataset="folder", tune=tune, valid=valid, shards=shards, seed=seed)
    try:
        first = arrange(rows[:-1], spec, given={}, previous=Assignments())
        before = dict(zip(first["patient"], first["split"], strict=True))
        previous = Assignments(before, drawn_with(spec))
        frame = arrange(rows, spec, given={}, previous=previous)
    except DatasetError:
        reject()  # too few patients for the splits that must have one
    assert len(frame) == len(rows)
    assert frame.groupby("patient")["split"].nunique().max() == 1
    assert set(frame["split"]) <= set(SPLITS)
    after = dict(zip(frame["patient"], frame["split"], strict=True))
    assert {name: after[name] for name in before} == before
