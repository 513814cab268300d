"""The report's section on regions: how well they are found, by whom, and how they look."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from ct3dlib.cohort.store import StoredVolume, read_status, records, stored_volumes
from ct3dlib.config import RecipeSpec
from ct3dlib.regions.label_map import COLORS, REGIONS
from ct3dlib.regions.mask import on_grid
from ct3dlib.report.page import Block, Figure, Legend, Section, Table, Text
from ct3dlib.report.pictures import beside, planes, png, shown_ids

Rows = Sequence[Mapping[str, Any]]


def regions_section(
    tables: Sequence[Path],
    examples: Sequence[StoredVolume],
    *,
    measured: Mapping[str, Any] | None,
    recipe: RecipeSpec,
) -> Section:
    """Return what the region store holds, against the truth where there is one.

    Args:
        tables: Status tables of the region store, all splits.
        examples: Volumes to show.
        measured: `metrics/regions.json`; None: there are no true masks.
        recipe: Of the examples.

    Raises:
        StoreError: A table or a stored mask cannot be read.
    """
    rows = [row for path in tables for row in records(read_status(path))]
    stored = [row for row in rows if row["status"] == "stored"]
    if not rows:
        return Section("Regions", (Text("There are no volumes."),))
    if not stored:
        reasons = Counter(row["reason"] for row in rows)
        why = ", ".join(f"{reason} {n}" for reason, n in sorted(reasons.items()))
        return Section("Regions", (Text(f"None of {len(rows)} volumes has regions: {why}."),))
    table = region_table(stored, measured)
    caption = _caption(len(stored), len(rows), measured)
    if "agreement" in table:
        caption += " Agreement: mean Dice of what was drawn anew with what prompted it (how often)."
    return Section(
        "Regions",
        (
            Table(table, caption),
            *_skipped(stored),
            *_pictures(tables, examples, recipe),
        ),
    )


def region_table(stored: Rows, measured: Mapping[str, Any] | None) -> pd.DataFrame:
    """Return one row per region as the report shows it: overlap with the truth, then the store.

    Args:
        stored: Rows of the status tables that have regions.
        measured: `metrics/regions.json`; None: without the columns of the truth.
    """
    by_region: dict[str, list[dict[str, Any]]] = {name: [] for name in REGIONS[1:]}
    for row in stored:
        for said in json.loads(row["regions"]):
            by_region[said["name"]].append(said)
    shown = [
        {"region": name, **_against_truth(name, measured), **_in_store(said)}
        for name, said in by_region.items()
    ]
    if measured is not None and "lungs" in measured["dice"]:
        shown.append({"region": "lungs", **_against_truth("lungs", measured)})
    return pd.DataFrame(shown, dtype=object).dropna(axis=1, how="all").fillna("").astype(str)


def _against_truth(name: str, measured: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the cells of a region that come of true masks."""
    if measured is None or name not in measured["dice"]:
        return {}
    error = measured["volume_error"][name]
    return {
        "Dice": f"{measured['dice'][name]:.3f}",
        "volumes": measured["n_by_region"][name],
        "volume error": None if error is None else f"{error:+.0%}",
        "missed": measured["missed"][name],
        "invented": measured["invented"][name],
    }


def _in_store(said: Rows) -> dict[str, Any]:
    """Return the cells of a region that come of the status tables."""
    status = Counter(row["status"] for row in said)
    sources = Counter(row["source"] for row in said if row["source"])
    agreement = [row["agreement"] for row in said if row["agreement"] is not None]
    by = [source if n == len(said) else f"{source} {n}" for source, n in sources.most_common()]
    return {
        **{name: f"{status[name] / len(said):.0%}" for name in ("ok", "approximate", "absent")},
        "by": ", ".join(by) or "nobody",
        "agreement": f"{fmean(agreement):.2f} ({len(agreement)})" if agreement else None,
    }


def _caption(num_stored: int, num_rows: int, measured: Mapping[str, Any] | None) -> str:
    """Return what the table of regions holds."""
    store = (
        f"{num_stored} of {num_rows} volumes have regions: the share of them where each is found "
        "well (ok), placed by a prior (approximate) or absent, and who looked for it."
    )
    if measured is None:
        return store
    spacing = " x ".join(f"{s:.1f}" for s in measured["spacing"])
    return (
        f"Against the truth at {spacing} mm: mean Dice of the volumes where truth or mask holds a "
        "region, mean error of its volume, in how many volumes it was missed or invented. "
        f"{store}"
    )


def _skipped(stored: Rows) -> list[Block]:
    """Return the table of the providers that could say nothing, if there were any."""
    skips = [skip for row in stored for skip in json.loads(row["skipped"])]
    counts = Counter((skip["provider"], skip["reason"]) for skip in skips)
    messages = {(skip["provider"], skip["reason"]): skip["message"] for skip in reversed(skips)}
    frame = pd.DataFrame(
        [
            {"provider": key[0], "reason": key[1], "volumes": n, "the first of them": messages[key]}
            for key, n in counts.most_common()
        ]
    )
    caption = "Providers that could say nothing of a volume; the next in the chain was asked."
    return [] if frame.empty else [Table(frame, caption)]


def _pictures(
    tables: Sequence[Path], examples: Sequence[StoredVolume], recipe: RecipeSpec
) -> list[Block]:
    """Return the examples plain and with their regions laid over, and what the colours mean."""
    masks = {volume.volume: volume for volume in stored_volumes(tables)}
    blocks: list[Block] = []
    present: set[int] = set()
    for volume in examples:
        if (found := masks.get(volume.volume)) is None:
            continue
        mask = on_grid(found.read(), found.affine, affine=volume.affine, shape=volume.shape)
        hu, window = volume.read(), volume.own_window or recipe.window
        plain = planes(hu, volume.spacing, window=window)
        laid_over = planes(hu, volume.spacing, window=window, regions=mask)
        blocks.append(Figure(png(beside([plain, laid_over])), f"{volume.volume} and its regions"))
        present |= {*shown_ids(mask)}
    if present:
        blocks.append(Legend(tuple((REGIONS[i], COLORS[i]) for i in sorted(present))))
    return blocks
