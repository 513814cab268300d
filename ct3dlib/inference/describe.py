"""What a model or a table holds, as text for people."""

import json
from collections import Counter
from pathlib import Path

import pandas as pd

from ct3dlib.cohort.location import Location
from ct3dlib.cohort.store import read_table, records
from ct3dlib.errors import StoreError
from ct3dlib.models.exported import load_model


def describe_model(folder: Path) -> str:
    """Return the spec, the preprocessing contract and the training of a model.

    Raises:
        CheckpointError: The folder holds no whole model.
    """
    model = load_model(folder)
    parameters = sum(p.numel() for p in model.module.parameters())
    parts = {
        "spec": model.spec.model_dump(mode="json"),
        "contract": dict(model.contract),
        "training": dict(model.training),
    }
    head = (
        f"{folder}: {type(model.module).__name__}, {parameters:,} parameters, {model.sha256[:12]}"
    )
    return "\n".join([head, *(f"{k}: {json.dumps(v, indent=2)}" for k, v in parts.items())])


def describe_table(path: Location) -> str:
    """Return the counts of a status table or catalog, its rejected rows, and a line per volume.

    Raises:
        StoreError: The file is not a table with volumes.
    """
    try:
        frame = read_table(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: not a model's folder and not a table ({error})") from error
    if "volume" not in frame.columns:
        raise StoreError(f"{path}: no column 'volume'; give a catalog or a status table")
    rows = records(frame)
    lines = [f"{path}: {len(rows)} volumes"]
    counts = Counter(row["status"] for row in rows if "status" in row)
    lines += [f"  {status}: {count}" for status, count in counts.items()]
    rejected = [row for row in rows if row.get("status") == "rejected"]
    lines += [f"  {row['volume']} rejected, {row['reason']}: {row['message']}" for row in rejected]
    problems = [row for row in rows if row.get("problem")]
    lines += [f"  {r['volume']} to be rejected, {r['problem_message']}" for r in problems]
    columns = [c for c in ("volume", "split", "shard", "shape", "spacing") if c in frame.columns]
    out = [*rejected, *problems]
    kept = [{c: row[c] for c in columns} for row in rows if row not in out]
    return "\n".join([*lines, pd.DataFrame(kept).to_string(index=False) if kept else ""])
