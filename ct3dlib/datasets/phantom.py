"""Make the synthetic chest-CT cohort: a raw tree as that of CT-RATE, and the truth beside it.

Every patient is a function of (seed, split, number): adding patients, or working on several at
a time, changes none.
"""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct3dlib.cohort.labels import LABELS
from ct3dlib.config import PhantomSpec
from ct3dlib.datasets.phantom_files import (
    Series,
    damage,
    remove,
    write_csv,
    write_dicom_series,
    write_json,
    write_stored,
    write_truth,
)
from ct3dlib.datasets.phantom_findings import draw_patient
from ct3dlib.datasets.phantom_plan import PARTS, Job, Part, plan
from ct3dlib.datasets.phantom_render import render
from ct3dlib.datasets.phantom_scanner import (
    METADATA_COLUMNS,
    Cells,
    Reconstruction,
    acquire,
    draw_reconstruction,
    draw_scan,
    in_scanner,
    metadata_row,
    pad,
)
from ct3dlib.datasets.phantom_space import Grid
from ct3dlib.datasets.phantom_text import write_report
from ct3dlib.errors import DatasetError
from ct3dlib.fingerprint import fingerprint
from ct3dlib.progress import progress

logger = logging.getLogger(__name__)

REPORT_COLUMNS = (
    *("VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN"),
)
_METADATA_NAMES = {"train": "train_metadata", "valid": "validation_metadata"}
_REPORT_NAMES = {"train": "train_reports", "valid": "validation_reports"}
_RECORDS = ".phantom"
_TRUTHS = ("regions", "lesions")  # folders of what is known of every series
Row = dict[str, Any]  # one series: its rows of every table, and its files


def write_cohort(root: Path, spec: PhantomSpec, *, workers: int = 1) -> None:
    """Write the cohort as `root/dataset`, a tree in the shape of CT-RATE.

    Work that is interrupted goes on where it was: a patient that is whole and was made by the same
    code from the same spec is kept. `dataset/cohort.json` is written last.

    Args:
        root: The raw root.
        spec: What to make.
        workers: Processes; the result does not depend on their number.

    Raises:
        DatasetError: `root/dataset` holds something that is not a synthetic cohort.
    """
    base = root / "dataset"
    if base.exists() and any(base.iterdir()) and not (base / _RECORDS).is_dir():
        raise DatasetError(
            f"{base}: holds files that are not a synthetic cohort; choose an empty raw_root, or "
            f"set phantom to null to use these files"
        )
    (base / _RECORDS).mkdir(parents=True, exist_ok=True)
    remove(base / "cohort.json")
    jobs = plan(spec)
    _drop_others(base, {job.patient for job in jobs})
    made = _make_all(jobs, base, spec=spec, workers=workers)
    rows: dict[Part, list[Row]] = {part: [] for part in PARTS}
    for job in progress(jobs, name="phantom", unit="patient"):
        rows[job.part] += next(made)
    for part in PARTS:
        _write_tables(base, part, rows=rows[part])
    counts = {part: sum(job.part == part for job in jobs) for part in PARTS}
    series = {part: sum(j.reconstructions for j in jobs if j.part == part) for part in PARTS}
    summary = {"code": _code(), "spec": spec.model_dump(mode="json")}
    write_json(base / "cohort.json", {**summary, "patients": counts, "series": series})
    logger.info("%s: %s patients, %s series", base, sum(counts.values()), sum(series.values()))


def _drop_others(base: Path, patients: set[str]) -> None:
    """Remove patients that an earlier cohort at this place had and this one has not."""
    for record in (base / _RECORDS).glob("*.json"):
        if record.stem not in patients:
            _drop(base, record.stem)


def _drop(base: Path, patient: str) -> None:
    part = patient.partition("_")[0]
    (base / _RECORDS / f"{patient}.json").unlink(missing_ok=True)
    for tree in (part, f"{part}_fixed"):
        remove(base / tree / patient)
    for kind in _TRUTHS:
        for truth in (base / kind / part).glob(f"{patient}_*"):
            truth.unlink()


def _make_all(
    jobs: Sequence[Job], base: Path, *, spec: PhantomSpec, workers: int
) -> Iterator[list[Row]]:
    """Yield the rows of every patient, in order."""
    one = partial(_make_or_keep, base=base, spec=spec)
    if workers <= 1:
        yield from map(one, jobs)
        return
    context = get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield from pool.map(one, jobs)
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Let this worker end when the process that started it is gone, killed as it may be."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _code() -> str:
    """Return the hash of the code that makes a patient: other code makes it again."""
    return fingerprint("ct3dlib.datasets.phantom")


def _make_or_keep(job: Job, base: Path, *, spec: PhantomSpec) -> list[Row]:
    """Return a patient's rows; its files are made unless they are there from the same spec."""
    path = base / _RECORDS / f"{job.patient}.json"
    shared = spec.model_dump(mode="json", include={"seed", "matrix", "slice_spacing", "version"})
    every = spec.dicom_every
    parts = [_code(), str(job), shared, every]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        files = [file for row in record["rows"] for file in row["files"]]
        if record["key"] == key and all((base / file).exists() for file in files):
            return record["rows"]
    _drop(base, job.patient)
    rows = make_patient(job, base, spec=spec)
    write_json(path, {"key": key, "rows": rows})
    return rows


def make_patient(job: Job, base: Path, *, spec: PhantomSpec) -> list[Row]:
    """Write every series of one patient and its truth; return the rows for the tables.

    Args:
        job: Which patient.
        base: The folder `dataset`.
        spec: Seed, grids and version of the tree.
    """
    rng = np.random.default_rng([spec.seed, PARTS.index(job.part), job.number, 1])
    patient = draw_patient(rng)
    scan = draw_scan(rng, patient)
    report = write_report(patient, rng)
    rows = []
    for index in range(job.reconstructions):
        place = _Place(base, f"{job.patient}_a_{index + 1}", job, spec)
        made = draw_reconstruction(rng, scan, spec=spec, number=index)
        due = bool(spec.dicom_every) and (job.first + index) % spec.dicom_every == 0
        metadata = metadata_row(place.volume, patient, scan=scan, reconstruction=made)
        hu, *truths = render(patient, made.grid)
        image = _Image(pad(acquire(hu, made), scan), truths, in_scanner(made.grid, scan), made)
        files = _write_series(place, image, metadata=metadata, dicom=due and not job.fault)
        texts = (report.clinical, report.technique, report.findings, report.impressions)
        labels = dict(zip(LABELS, patient.labels, strict=True))
        pair = {"question": report.question, "answer": report.answer}
        rows.append(
            {
                "metadata": None if job.fault == "no_metadata" else metadata,
                "report": dict(zip(REPORT_COLUMNS, (place.volume, *texts), strict=True)),
                "labels": {"VolumeName": place.volume, **labels},
                "vqa": {"volumename": place.volume, **pair},
                "files": files,
            }
        )
    return rows


@dataclass(frozen=True)
class _Place:
    """Where a series is written, and as what."""

    base: Path
    name: str
    job: Job
    spec: PhantomSpec

    @property
    def volume(self) -> str:
        """Its name in the tables, that of a NIfTI file even where it is DICOM."""
        return f"{self.name}.nii.gz"

    @property
    def folder(self) -> Path:
        """The folder of its study."""
        tree = self.job.part + ("_fixed" if self.spec.version == "v2" else "")
        return self.base / tree / self.job.patient / self.name.rsplit("_", 1)[0]


@dataclass(frozen=True, eq=False)
class _Image:
    """A series as the scanner gave it, and its truths; the grid is in the scanner's frame."""

    hu: NDArray[np.int16]
    truths: Sequence[NDArray[np.uint8]]
    grid: Grid
    made: Reconstruction


def _write_series(place: _Place, image: _Image, *, metadata: Cells, dicom: bool) -> list[str]:
    """Write one series and its truths, unless it is damaged; return paths below `dataset`."""
    path = place.folder / (place.name if dicom else place.volume)
    if dicom:
        series = Series(place.name, place.job.patient, image.grid, metadata)
        write_dicom_series(path, image.hu, series=series)
    elif place.spec.version == "v2":
        write_truth(path, image.hu, grid=image.grid)
    else:
        stored = image.hu.astype(np.int32) - int(metadata["RescaleIntercept"])
        write_stored(path, stored.astype(np.float32 if image.made.as_float else np.int16))
    written = [path]
    if place.job.fault:
        damage(path, place.job.fault)
        return [path.relative_to(place.base).as_posix()]
    for kind, truth in zip(_TRUTHS, image.truths, strict=True):
        written.append(place.base / kind / place.job.part / place.volume)
        write_truth(written[-1], truth, grid=image.grid)
    return [file.relative_to(place.base).as_posix() for file in written]


def _write_tables(base: Path, part: Part, *, rows: Sequence[Row]) -> None:
    metadata = [row["metadata"] for row in rows if row["metadata"] is not None]
    write_csv(base / "metadata" / f"{_METADATA_NAMES[part]}.csv", METADATA_COLUMNS, rows=metadata)
    write_csv(
        base / "radiology_text_reports" / f"{_REPORT_NAMES[part]}.csv",
        REPORT_COLUMNS,
        rows=[row["report"] for row in rows],
    )
    write_csv(
        base / "multi_abnormality_labels" / f"{part}_predicted_labels.csv",
        ("VolumeName", *LABELS),
        rows=[row["labels"] for row in rows],
    )
    write_json(base / "vqa" / f"{part}_vqa.json", [row["vqa"] for row in rows])
