"""The report of a finished run: what went in, what came out, how good it is, what was rejected."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ct3dlib.cohort.store import StoredVolume, read_status, records, stored_volumes
from ct3dlib.config import RecipeSpec, ReportSpec
from ct3dlib.inference.decode import decode_volume, find_tokens
from ct3dlib.inference.evaluate_samples import read_samples
from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.metrics.reconstruction import psnr_db
from ct3dlib.regions.label_map import REGIONS
from ct3dlib.report.cohort import cohort_section
from ct3dlib.report.graph import pipeline
from ct3dlib.report.mae import mae_section
from ct3dlib.report.measures import measures_section, training_section
from ct3dlib.report.page import (
    Block,
    Drawing,
    Figure,
    Section,
    Stat,
    Stats,
    Table,
    Text,
    render,
)
from ct3dlib.report.pictures import (
    LUNG,
    SOFT,
    Picture,
    Window,
    beside,
    difference,
    planes,
    png,
)
from ct3dlib.report.regions import regions_section


@dataclass(frozen=True)
class Inputs:
    """Files that a finished run holds.

    Args:
        catalog: The catalog.
        volumes: Status tables of the volume store.
        statistics: Statistics of stores, each in the folder of its recipe.
        regions: Status tables of the region store, all splits; none where the config has none.
        tokens: Joined token tables, one a split.
        examples: Pictures of a volume through each tokenizer, each in the folder of its name.
        samples: Table of the samples, beside them.
        metrics: Metric files.
        runs: Folders of the training runs.
        mae: What the evaluations of the masked autoencoder drew.
    """

    catalog: Path
    volumes: Sequence[Path]
    statistics: Sequence[Path]
    regions: Sequence[Path]
    tokens: Sequence[Path]
    examples: Sequence[Path]
    samples: Path
    metrics: Sequence[Path]
    runs: Sequence[Path]
    mae: Sequence[Path]


def build_report(inputs: Inputs, tokenizer: Tokenizer, spec: ReportSpec, *, name: str) -> str:
    """Return the report as one HTML page.

    Args:
        inputs: What the run left.
        tokenizer: The one that made the tokens.
        spec: Title and number of examples.
        name: The tokenizer's name in the config.

    Raises:
        StoreError: A table or a stored volume is missing.
    """
    catalog = pd.read_parquet(inputs.catalog)
    status = pd.concat([read_status(path) for path in inputs.volumes], ignore_index=True)
    tokens = {path.stem: read_status(path) for path in inputs.tokens}
    metrics = {path.stem: json.loads(path.read_text()) for path in inputs.metrics}
    tables = [p for p in inputs.volumes if p.parent.name == "valid"]
    encoded = {row["volume"] for row in records(tokens["valid"]) if row["status"] == "encoded"}
    held_out = [volume for volume in stored_volumes(tables) if volume.volume in encoded]
    examples = _one_a_patient(held_out, catalog)[: spec.num_examples]
    sections = [
        _overview(
            catalog, status, tokens=tokens, metrics=metrics, name=name, regions=bool(inputs.regions)
        ),
        cohort_section({p.parent.name: json.loads(p.read_text()) for p in inputs.statistics}),
        _inputs(examples, recipe=tokenizer.recipe),
        *_regions(
            inputs.regions, examples, measured=metrics.get("regions"), recipe=tokenizer.recipe
        ),
        _reconstructions(
            examples, inputs, tokenizer, name=name, measured=metrics["reconstruction"]
        ),
        _samples(inputs.samples, tokenizer.recipe),
        *([mae_section(metrics["mae"], inputs.mae)] if "mae" in metrics else []),
        training_section(inputs.runs),
        measures_section(metrics),
        _rejected(pd.concat(tokens.values()), catalog),
    ]
    return render(spec.title, sections)


def _overview(
    catalog: pd.DataFrame,
    status: pd.DataFrame,
    *,
    tokens: Mapping[str, pd.DataFrame],
    metrics: Mapping[str, Any],
    name: str,
    regions: bool,
) -> Section:
    stored = sum(row["status"] == "stored" for row in records(status))
    joined = records(pd.concat(tokens.values()))
    num_tokens = sum(math.prod(row["shape"]) for row in joined if row["status"] == "encoded")
    valid = metrics["reconstruction"][name]["valid"]
    gain = _gain(valid)
    counts = Counter(row["split"] for row in records(catalog))
    drawing = pipeline(
        [
            ("raw scans", f"{len(catalog)} series"),
            ("volumes", f"{stored} stored"),
            *([("regions", f"{len(REGIONS) - 1} regions")] if regions else []),
            ("tokenizer", f"{name}, {valid['psnr_db']:.1f} dB"),
            ("tokens", f"{num_tokens:,}"),
            ("transformer", "MaskGIT"),
            ("samples", f"{metrics['generation']['n']} volumes"),
        ]
    )
    stats = [
        Stat(str(len(catalog)), "series found"),
        Stat(str(stored), "volumes stored"),
        Stat(str(len(status) - stored), "rejected with a reason"),
        Stat(str(catalog["patient"].nunique()), "patients"),
        Stat(f"{valid['psnr_db']:.2f} dB", f"held-out PSNR of {name} (range of the window)"),
        Stat("" if gain is None else f"{gain:+.2f} dB", "above the mean volume"),
        Stat(f"{valid['code_usage']:.0%}", "code usage"),
    ]
    text = ", ".join(f"{split}: {counts[split]} series" for split in tokens)
    return Section("Overview", (Stats(tuple(stats)), Drawing(drawing, f"The graph. {text}.")))


def _regions(
    tables: Sequence[Path],
    examples: Sequence[StoredVolume],
    *,
    measured: Mapping[str, Any] | None,
    recipe: RecipeSpec,
) -> list[Section]:
    """Return the section on regions, where the config has them."""
    if not tables:
        return []
    return [regions_section(tables, examples, measured=measured, recipe=recipe)]


def _inputs(examples: Sequence[StoredVolume], *, recipe: RecipeSpec) -> Section:
    how = (
        "in the lung and the soft-tissue window" if recipe.domain == "hu" else "as models see them"
    )
    blocks: list[Block] = [
        Text(
            f"Stored volumes of the held-out split, {how}. Axial, coronal, sagittal; the patient's "
            "right is on the left."
        )
    ]
    for volume in examples:
        hu = volume.read()
        shown = _windows(recipe, volume.own_window or recipe.window)
        picture = beside([planes(hu, volume.spacing, window=window) for window in shown])
        size = " x ".join(f"{s:.1f}" for s in volume.spacing)
        shape = " x ".join(str(n) for n in volume.shape)
        blocks.append(Figure(png(picture), f"{volume.volume}: {shape} voxels, {size} mm"))
    return Section("Inputs", tuple(blocks))


def _reconstructions(
    examples: Sequence[StoredVolume],
    inputs: Inputs,
    tokenizer: Tokenizer,
    *,
    name: str,
    measured: Mapping[str, Any],
) -> Section:
    blocks: list[Block] = [
        Text(
            "Held-out volumes decoded from their stored tokens: original, reconstruction, "
            "difference (red is too high, blue too low, full colour at a quarter of the window)."
        )
    ]
    table = next(path for path in inputs.tokens if path.stem == "valid")
    for volume in examples:
        original, window = volume.read(), volume.own_window or tokenizer.recipe.window
        decoded = decode_volume(find_tokens(table, volume.volume), tokenizer, stored_grid=True)
        rows: list[Picture] = [
            planes(original, volume.spacing, window=window),
            planes(decoded.array, volume.spacing, window=window),
            difference(original, decoded.array, volume.spacing, window=window),
        ]
        quality = psnr_db(original, decoded.array, window=window)
        blocks.append(Figure(png(beside(rows)), f"{volume.volume}: PSNR {quality:.2f} dB"))
    for picture in inputs.examples:
        other = picture.parent.name
        if other != name:
            caption = f"The first held-out volume through {other}."
            if measured[other]["valid"]["code_usage"] is None:  # a variational model
                caption += " The second row is drawn from its prior, latent by latent."
            blocks.append(Figure(picture.read_bytes(), caption))
    return Section("Reconstructions", tuple(blocks))


def _windows(recipe: RecipeSpec, window: Window) -> tuple[Window, ...]:
    """Return in which windows a volume is shown: radiology's for CT, else the models'."""
    return (LUNG, SOFT) if recipe.domain == "hu" else (window,)


def _samples(table: Path, recipe: RecipeSpec) -> Section:
    rows = records(pd.read_csv(table, keep_default_na=False))
    volumes = read_samples(table, [row["file"] for row in rows])
    blocks: list[Block] = [
        Text("Volumes drawn from the token transformer, decoded; the finding asked for below each.")
    ]
    for row, volume in zip(rows, volumes, strict=True):
        hu, spacing = volume.array, volume.spacing
        shown = _windows(recipe, recipe.window)
        pictures = [planes(hu, spacing, window=window) for window in shown]
        asked = row["label"] or "no finding"
        caption = f"{row['file']}: asked for {asked}, seed {row['seed']}"
        blocks.append(Figure(png(beside(pictures)), caption))
    return Section("Samples", tuple(blocks))


def _rejected(tokens: pd.DataFrame, catalog: pd.DataFrame) -> Section:
    splits = {row["volume"]: row["split"] for row in records(catalog)}
    rejected = [row for row in records(tokens) if row["status"] == "rejected"]
    if not rejected:
        return Section("Rejected volumes", (Text("None: every series found was encoded."),))
    frame = pd.DataFrame(
        {
            "volume": [row["volume"] for row in rejected],
            "split": [splits[row["volume"]] for row in rejected],
            "stage": [row["stage"] for row in rejected],
            "reason": [row["reason"] for row in rejected],
            "what was found, and the way out": [row["message"] for row in rejected],
        }
    )
    caption = f"{len(frame)} of {len(tokens)} series could not be used; all others were encoded."
    return Section("Rejected volumes", (Table(frame, caption),))


def _one_a_patient(volumes: Sequence[StoredVolume], catalog: pd.DataFrame) -> list[StoredVolume]:
    """Return the first volume of each patient."""
    patients = {row["volume"]: row["patient"] for row in records(catalog)}
    first: dict[str, StoredVolume] = {}
    for volume in volumes:
        first.setdefault(patients[volume.volume], volume)
    return list(first.values())


def _gain(valid: Mapping[str, Any]) -> float | None:
    mean = valid["mean_volume_psnr_db"]
    return None if mean is None else valid["psnr_db"] - mean


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"
