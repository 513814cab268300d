"""What a pseudonymised catalog hides, the private table that tells it, and the files behind it."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ct3dlib.cohort.catalog import Row
from ct3dlib.cohort.durable import publish
from ct3dlib.cohort.pseudonyms import Pseudonyms
from ct3dlib.errors import StoreError, VolumeError
from ct3dlib.scan.dicom_facts import facts_of

TABLE = "names.parquet"
# The pseudonym of a volume, then what was hidden under it.
_SCHEMA = pa.schema(
    [
        ("volume", pa.string()),
        ("name", pa.string()),
        ("study", pa.string()),
        ("patient", pa.string()),
        ("sources", pa.list_(pa.string())),
        ("regions_truth", pa.string()),
        ("lesion_mask", pa.string()),
        ("mtime_ns", pa.int64()),
        ("metadata", pa.string()),
        ("problem_message", pa.string()),
    ]
)
_PSEUDONYM = re.compile(r"v[0-9a-f]{12}:\w+")


def hide(rows: Sequence[Row], names: Pseudonyms) -> tuple[list[Row], pd.DataFrame]:
    """Return rows under pseudonyms, and the table of what they stand for.

    Volumes, studies, patients and files are renamed; of the metadata the allow-list stays; file
    times become a number that changes when they do. Reports, labels and voxels stay as they are.
    """
    hidden = [_hidden(row, names) for row in rows]
    table = [
        {
            "volume": new.volume,
            "name": old.volume,
            **{name: getattr(old, name) for name in _SCHEMA.names[2:]},
        }
        for old, new in zip(rows, hidden, strict=True)
    ]
    return hidden, pa.Table.from_pylist(table, schema=_SCHEMA).to_pandas()


def _read(path: Path, volumes: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return rows of the private table; of all volumes where none are named."""
    wanted = None if volumes is None else [("volume", "in", [*volumes])]
    try:
        return pq.read_table(path, schema=_SCHEMA, filters=wanted).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(
            f"{path}: cannot be read ({error}); bring the private folder back from where the "
            f"catalog was made, or delete the catalog to build it again"
        ) from error


def _hidden(row: Row, names: Pseudonyms) -> Row:
    """Return one row under pseudonyms."""
    volume = names.of("volume", row.volume)
    metadata = json.loads(row.metadata)
    # Rescale and geometry were read into columns of their own; "member" says where voxels lie.
    member = {"member": metadata["member"]} if row.kind == "npz" else {}
    kept = {**facts_of(metadata), **member}
    return replace(
        row,
        volume=volume,
        study=names.of("study", row.study),
        patient=names.of("patient", row.patient),
        sources=tuple(f"{volume}:{place}" for place in range(len(row.sources))),
        regions_truth=row.regions_truth and f"{volume}:regions",
        lesion_mask=row.lesion_mask and f"{volume}:lesions",
        mtime_ns=int(names.of("volume", f"{row.volume} of {row.mtime_ns}")[1:], 16),
        metadata=json.dumps(kept, sort_keys=True, ensure_ascii=False),
        problem_message=row.problem and f"{volume}: {row.problem}; the private table says more",
    )


def save_hidden(table: pd.DataFrame, folder: Path) -> None:
    """Write the private table, readable by its owner alone; volumes that are gone keep their row.

    Args:
        table: What `hide` returned.
        folder: Where the key lies too.
    """
    path = folder / TABLE
    if path.exists():
        old = pa.Table.from_pylist(_read(path), schema=_SCHEMA).to_pandas()
        table = pd.concat([table, old.loc[~old["volume"].isin(table["volume"])]])
    table = table.sort_values("volume")
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT, 0o600))
    pq.write_table(pa.Table.from_pandas(table, schema=_SCHEMA, preserve_index=False), partial)
    publish(partial, path)


@dataclass(frozen=True)
class RawRoot:
    """The folder of the raw scans, and the files that pseudonyms of the catalog stand for.

    Args:
        folder: What paths of the catalog are relative to.
        files: Path by pseudonym; empty where the catalog holds the paths themselves.
    """

    folder: Path
    files: Mapping[str, str] = field(default_factory=dict)

    def path(self, source: str) -> Path:
        """Return the file that a source, a mask or a truth of the catalog is.

        Raises:
            VolumeError: `UNSAFE_PATH`, it lies outside the folder.
            StoreError: A pseudonym that the private table does not tell.
        """
        real = self.files.get(source, source)
        if real is source and _PSEUDONYM.fullmatch(source):
            raise StoreError(
                f"{source}: a pseudonym that {TABLE} does not tell; bring the private folder back "
                f"from where the catalog was made, or delete the catalog to build it again"
            )
        pure = PurePosixPath(real)
        if pure.is_absolute() or ".." in pure.parts:
            raise VolumeError(
                "UNSAFE_PATH", f"{source}: points out of the raw root; correct the catalog"
            )
        return self.folder / pure

    def hides(self, source: str) -> bool:
        """Return whether a source is a pseudonym, whose file no message may name."""
        return source in self.files


def raw_root(folder: Path, rows: pd.DataFrame, *, private: Path | None = None) -> RawRoot:
    """Return the raw root with the files of some volumes.

    Args:
        folder: What paths of the catalog are relative to.
        rows: Of the catalog.
        private: Folder of the private table; only looked into where the rows hold pseudonyms.

    Raises:
        StoreError: The private table cannot be read.
    """
    hidden = any(_PSEUDONYM.fullmatch(sources[0]) for sources in rows["sources"])
    if private is None or not hidden:
        return RawRoot(folder)
    files: dict[str, str] = {}
    for row in _read(private / TABLE, rows["volume"].tolist()):
        volume = row["volume"]
        files |= {f"{volume}:{place}": source for place, source in enumerate(row["sources"])}
        masks = {"regions": row["regions_truth"], "lesions": row["lesion_mask"]}
        files |= {f"{volume}:{what}": mask for what, mask in masks.items() if mask}
    return RawRoot(folder, files)
