"""The catalog: one row per series found under the raw root, measured from headers and tables.

Readers of data sets make `Row`s; `arrange` gives them their split and shard. Nothing that was
found is left out: what cannot be used is a row with its problem.
"""

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ct3dlib.cohort.labels import LABELS
from ct3dlib.cohort.split import (
    Assignments,
    Patient,
    assign_splits,
    check_drawn,
    check_patients,
)
from ct3dlib.config import SPLITS, CatalogSpec, Split
from ct3dlib.errors import DatasetError, StoreError
from ct3dlib.scan.volume import Domain

logger = logging.getLogger(__name__)

_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

Kind = Literal["nifti", "dicom", "itk", "pictures", "npz"]

# Column -> type on disk; the order is that of the columns.
SCHEMA = pa.schema(
    [
        ("volume", pa.string()),
        ("dataset", pa.string()),
        ("patient", pa.string()),
        ("study", pa.string()),
        ("split", pa.string()),
        ("shard", pa.int32()),
        ("kind", pa.string()),
        ("domain", pa.string()),
        ("sources", pa.list_(pa.string())),
        ("item", pa.int64()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("spacing", pa.list_(pa.float64())),
        ("shape", pa.list_(pa.int64())),
        ("slope", pa.float64()),
        ("intercept", pa.float64()),
        ("metadata", pa.string()),
        ("metadata_hash", pa.string()),
        ("labels", pa.list_(pa.int8())),
        ("label", pa.string()),
        ("findings", pa.string()),
        ("impressions", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("qa_source", pa.string()),
        ("regions_truth", pa.string()),
        ("lesion_mask", pa.string()),
        ("problem", pa.string()),
        ("problem_message", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One series as a reader found it.

    Args:
        volume: Unique id; a safe file name, see `safe_name`.
        dataset: Name of the reader.
        patient: Who it is of; splits never divide a patient. Never a DICOM PatientID as it is.
        study: The examination; reconstructions of one share its report.
        split: What the data set says, None where it says nothing. Under "train", `tune` may be
            drawn; the catalog holds the final split.
        shard: None until it is given.
        kind: What the sources are; "itk" is NRRD and MetaImage.
        domain: What the values mean.
        sources: Files, POSIX paths relative to the raw root.
        item: Place of the volume in its source where that holds many ("npz").
        size: Bytes of all sources.
        mtime_ns: Times of the sources' changes, ns since 1970, added up modulo 2^63.
        spacing: (D, H, W), mm, None where it is not known without decoding.
        shape: (D, H, W), None where it is not known without decoding.
        slope: Rescale slope of the data set's table.
        intercept: Rescale intercept of the data set's table, HU.
        metadata: The table's row as JSON, blank cells left out.
        labels: 0 or 1 for each of `LABELS`.
        label: Class or modality, in data sets whose volumes have one each.
        findings: Findings section of the report, "" where there is none.
        impressions: Impression section of the report, "" where there is none.
        question: Of a question-answer pair about the volume.
        answer: Of that pair.
        qa_source: Where the pair is from: "vqa" (the data set) or "template" (the report).
        regions_truth: True regions, path relative to the raw root.
        lesion_mask: Lesions that somebody drew, path relative to the raw root.
        problem: Code why the series is rejected without being read.
        problem_message: The same for people.

    Raises:
        ValueError: A name is unsafe, a source leaves the root, or fields contradict each other.
    """

    volume: str
    dataset: str
    patient: str
    study: str
    split: Split | None = None
    shard: int | None = None
    kind: Kind
    domain: Domain = "hu"
    sources: tuple[str, ...]
    item: int | None = None
    size: int
    mtime_ns: int
    spacing: tuple[float, float, float] | None = None
    shape: tuple[int, int, int] | None = None
    slope: float | None = None
    intercept: float | None = None
    metadata: str = "{}"
    labels: tuple[int, ...] | None = None
    label: str | None = None
    findings: str = ""
    impressions: str = ""
    question: str = ""
    answer: str = ""
    qa_source: Literal["vqa", "template"] | None = None
    regions_truth: str | None = None
    lesion_mask: str | None = None
    problem: str | None = None
    problem_message: str | None = None

    def __post_init__(self) -> None:
        """Check what later steps build paths and joins on."""
        if not _SAFE.fullmatch(self.volume):
            raise ValueError(f"volume {self.volume!r} is not a safe file name; use safe_name")
        if not self.sources:
            raise ValueError(f"volume {self.volume}: no sources")
        for source in self.sources:
            path = PurePosixPath(source)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"volume {self.volume}: source {source!r} leaves the raw root")
        if self.labels is not None and len(self.labels) != len(LABELS):
            raise ValueError(f"volume {self.volume}: {len(self.labels)} labels, not {len(LABELS)}")
        if (self.problem is None) != (self.problem_message is None):
            raise ValueError(f"volume {self.volume}: a problem needs a code and a message")

    @property
    def metadata_hash(self) -> str:
        """sha256 of the metadata, so that corrected metadata make the volume anew."""
        return hashlib.sha256(self.metadata.encode()).hexdigest()


_FIELDS = tuple(field.name for field in fields(Row))


def without_root(message: str, root: Path) -> str:
    """Return a message with paths relative to the raw root: the same on every machine."""
    return message.replace(f"{root}{os.sep}", "").replace(str(root), ".")


def to_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Return rows as a table with the columns of `SCHEMA`, missing values null."""
    values = [{name: getattr(row, name) for name in (*_FIELDS, "metadata_hash")} for row in rows]
    return pa.Table.from_pylist(values, schema=SCHEMA).to_pandas()


def arrange(
    rows: Sequence[Row],
    spec: CatalogSpec,
    *,
    given: Mapping[str, Split],
    previous: Assignments,
) -> pd.DataFrame:
    """Return the catalog, sorted by volume: rows with the split of their patient and a shard.

    Args:
        rows: What a reader found, ids unique.
        spec: Shares, shards, seed.
        given: Splits of patients that the user's table states; they count most.
        previous: Splits of patients in earlier catalogs; they are kept.

    Raises:
        DatasetError: An id occurs twice, the data set puts a patient into two splits, there are
            too few patients, or earlier ones were drawn with another seed or other shares.
    """
    rows = sorted(rows, key=lambda row: row.volume)
    for first, second in pairwise(rows):
        if first.volume == second.volume:
            raise DatasetError(
                f"volume {first.volume} occurs twice, as {first.sources[0]} and "
                f"{second.sources[0]}; rename one"
            )
    patients = _patients(rows, spec, given)
    check_drawn(previous, patients, spec)
    splits = assign_splits(patients, spec, previous=previous.patients)
    arranged = []
    for row in rows:
        split = splits[row.patient]
        shard = shard_of(row.volume, spec.shards[split])
        arranged.append(replace(row, split=split, shard=shard))
    check_patients((row.patient, row.split) for row in arranged)
    _log_totals(arranged)
    return to_frame(arranged)


def _patients(rows: Sequence[Row], spec: CatalogSpec, given: Mapping[str, Split]) -> list[Patient]:
    """Return one entry per patient, sorted by name."""
    patients: dict[str, Patient] = {}
    for row in rows:
        whole = row.problem is None and row.shape is not None and row.shape[0] >= spec.min_slices
        new = Patient(row.patient, origin=row.split, given=given.get(row.patient), whole=whole)
        old = patients.get(row.patient, new)
        if new.given is None and old.origin != new.origin:
            raise DatasetError(
                f"patient {row.patient} is in {old.origin} and in {new.origin}; keep one of the "
                f"two, or set catalog.split_csv"
            )
        patients[row.patient] = replace(new, whole=old.whole or whole)
    return [patients[name] for name in sorted(patients)]


def _log_totals(rows: Sequence[Row]) -> None:
    """Log the size of the catalog, and a warning for a split without volumes."""
    counts = Counter(row.split for row in rows)
    logger.info(
        "catalog: %s volumes of %s patients (%s), %s with a problem",
        len(rows),
        len({row.patient for row in rows}),
        ", ".join(f"{split} {counts[split]}" for split in SPLITS),
        sum(row.problem is not None for row in rows),
    )
    for split in (split for split in SPLITS if not counts[split]):
        logger.warning("catalog: no volume in %s", split)


def shard_of(volume: str, num_shards: int) -> int:
    """Return the shard of a volume: a stable hash, so that adding a volume moves no other."""
    digest = hashlib.blake2b(volume.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % num_shards


def write_catalog(
    frame: pd.DataFrame, path: Path, *, shard_dir: Path, shards: Mapping[Split, int]
) -> None:
    """Write the catalog and every shard's slice `{shard_dir}/{split}/{shard:04d}.parquet`.

    Shards without volumes get a table too; those of an earlier, larger number are removed. Every
    file is replaced whole, and the same catalog gives the same bytes.
    """
    for split, num_shards in shards.items():
        folder = shard_dir / split
        stale = set(folder.glob("*.parquet"))
        for shard in range(num_shards):
            target = folder / f"{shard:04d}.parquet"
            _write(frame.loc[frame["split"].eq(split) & frame["shard"].eq(shard)], target)
            stale.discard(target)
        for old in stale:
            old.unlink()
    _write(frame, path)


def _write(frame: pd.DataFrame, path: Path) -> None:
    """Write a table of `SCHEMA` under a temporary name and rename it."""
    table = pa.Table.from_pandas(frame, schema=SCHEMA, preserve_index=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    # The schema's own metadata would hold the versions of pandas and pyarrow.
    pq.write_table(table.replace_schema_metadata(None), partial, compression="zstd")
    partial.replace(path)


def read_catalog(path: Path) -> pd.DataFrame:
    """Return a catalog or a shard's slice of it, as `arrange` made it.

    Raises:
        StoreError: The file is missing, is not Parquet or lacks a column.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(f"{path}: not a catalog ({error}); run the rule catalog again") from error
    if missing := [name for name in SCHEMA.names if name not in table.column_names]:
        raise StoreError(f"{path}: no column {missing[0]!r}; run the rule catalog again")
    return table.select(SCHEMA.names).cast(SCHEMA).to_pandas()
