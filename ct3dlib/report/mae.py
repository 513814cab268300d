"""The report's section on the masked autoencoder and what was fine-tuned from it."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from ct3dlib.cohort.store import StoredVolume
from ct3dlib.inference.evaluate_mae import Filled
from ct3dlib.inference.evaluate_predictions import Curve
from ct3dlib.report.page import Block, Figure, Section, Table, Text
from ct3dlib.report.pictures import Window, above, beside, planes, png


def draw_filled(
    shown: Sequence[tuple[StoredVolume, Filled]], *, value_range: tuple[float, float]
) -> bytes:
    """Return a PNG of volumes: as they are, as the encoder saw them, with predicted patches.

    Args:
        shown: Volumes, and what was made of them.
        value_range: Of the model.
    """
    rows = [
        beside(
            [
                planes(array, volume.spacing, window=value_range)
                for array in (filled.original, filled.seen, filled.filled)
            ]
        )
        for volume, filled in shown
    ]
    return png(above(rows))


def draw_masks(
    shown: Sequence[tuple[StoredVolume, NDArray[np.uint8], NDArray[np.uint8]]], *, window: Window
) -> bytes:
    """Return a PNG of volumes with the masks that are stored of them, and those predicted.

    Args:
        shown: Volumes, and their classes, D H W.
        window: Values from black to white; MR keeps its own.
    """
    rows = [
        beside(
            [
                planes(
                    volume.read(),
                    volume.spacing,
                    window=volume.own_window or window,
                    regions=classes,
                )
                for classes in (stored, predicted)
            ]
        )
        for volume, stored, predicted in shown
    ]
    return png(above(rows))


def draw_roc(curves: Mapping[str, Curve], auroc: Mapping[str, float | None]) -> bytes:
    """Return a PNG of ROC curves, the best first in the legend."""
    figure = Canvas(figsize=(8.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    ranked = sorted(curves, key=lambda name: -(auroc[name] or 0))
    colors = matplotlib.colormaps["turbo"]
    for number, name in enumerate(ranked):
        color = colors((number + 0.5) / len(ranked))
        label = f"{auroc[name]:.2f} {name}"
        axes.plot(
            curves[name].false_positive_rate,
            curves[name].true_positive_rate,
            color=color,
            label=label,
            linewidth=1.4,
        )
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    if ranked:
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8, frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()


def mae_section(measured: Mapping[str, Any], pictures: Sequence[Path]) -> Section:
    """Return what the masked autoencoder fills in, and how good its fine-tuned models are.

    Args:
        measured: `metrics/mae.json`.
        pictures: What the evaluations drew.
    """
    drawn = {path.stem: path.read_bytes() for path in pictures}
    blocks: list[Block] = []
    if "reconstruction" in measured:
        blocks.append(Text(_filled_in(measured["reconstruction"])))
    if "picture" in drawn:
        caption = (
            "Held-out volumes: as they are, what the encoder sees, and with the patches that it "
            "does not see filled in (where patches are normalised, with their own mean and "
            "contrast)."
        )
        blocks.append(Figure(drawn["picture"], caption))
    blocks += _findings(measured, drawn.get("roc"))
    if "small_budget" in measured:
        blocks.append(_small_budget(measured["small_budget"]))
    if "dice" in measured:
        blocks.append(_dice(measured))
    if measured.get("froc"):
        blocks.append(_froc(measured["froc"]))
    if "segmentation" in drawn:
        blocks.append(
            Figure(
                drawn["segmentation"],
                "Held-out volumes with their stored masks, and with those predicted.",
            )
        )
    return Section("Masked autoencoder", tuple(blocks))


def _filled_in(found: Mapping[str, Any]) -> str:
    """Return in words how well masked patches are predicted."""
    text = (
        f"Of {found['n']} held-out volumes the masked patches are predicted with an error of "
        f"{found['masked_mse']:.4f} (squared, unit: {found['unit']}); one who knows no more than "
        f"a mean has {found['mean_mse']:.4f}"
    )
    text += "." if found["explained"] is None else f": {found['explained']:.0%} of it is explained."

    if "other_patient_mse" in found:
        text += (
            f" The control, which sees another patient's patches, has "
            f"{found['other_patient_mse']:.4f}."
        )
    return text


def _findings(measured: Mapping[str, Any], roc: bytes | None) -> list[Block]:
    """Return the scores of the fine-tuned model."""
    blocks: list[Block] = []
    if "findings" in measured:
        rows = [_finding(name, row) for name, row in measured["findings"].items()]
        rows.sort(key=lambda row: row["AUROC"], reverse=True)
        caption = (
            "Findings of held-out patients as the fine-tuned encoder tells them, with 95 % "
            "intervals over patients (1,000 resamples)."
        )
        blocks.append(Table(pd.DataFrame(rows).fillna("").astype(str), caption))
    for key, caption in (
        ("classes", "Classes of held-out volumes, with 95 % intervals over patients."),
        ("regression", "Numbers of held-out volumes, with 95 % intervals over patients."),
    ):
        if measured.get(key):
            found = measured[key] if key == "regression" else {"": measured[key]}
            rows = [{"": name, **_scores(row)} for name, row in found.items() if row]
            blocks.append(Table(pd.DataFrame(rows).fillna("").astype(str), caption))
    if roc is not None:
        blocks.append(Figure(roc, "ROC curves of the findings, AUROC beside their names."))
    return blocks


def _finding(name: str, row: Mapping[str, Any]) -> dict[str, str]:
    """Return the row of one finding."""
    return {
        "finding": name,
        "AUROC": _with_interval(row, "auroc"),
        "average precision": _with_interval(row, "average_precision"),
        "F1": _number(row["f1"]),
        "sensitivity": _number(row["sensitivity"]),
        "specificity": _number(row["specificity"]),
        "Brier": _number(row["brier"]),
        "have it": f"{row['n_positive']} of {row['n']}",
    }


def _scores(row: Mapping[str, Any]) -> dict[str, str]:
    """Return all scores of a row that have intervals."""
    return {key: _with_interval(row, key) for key in row if f"{key}_ci" in row}


def _small_budget(found: Mapping[str, Any]) -> Block:
    """Return the table of both starts, mean and deviation over seeds."""
    rows = []
    for finding in found["pretrained"]:
        ours, theirs = found["pretrained"][finding], found["from_scratch"][finding]
        rows.append(
            {"finding": finding, "pretrained": _spread(ours), "from scratch": _spread(theirs)}
        )
    means = {"finding": "mean of all findings"}
    means |= {
        shown: _number(_mean_of_all(found[name]))
        for shown, name in (("pretrained", "pretrained"), ("from scratch", "from_scratch"))
    }
    rows.append(means)
    seeds = max(len(values) for values in found["pretrained"].values())
    caption = (
        f"AUROC of held-out patients after {found['steps']} steps on {found['patients']} patients "
        f"with labels, from the pretrained encoder and from scratch: mean ± deviation of {seeds} "
        f"seeds, last weights."
    )
    return Table(pd.DataFrame(rows), caption)


def _mean_of_all(table: Mapping[str, Sequence[float | None]]) -> float | None:
    """Return the mean over findings and seeds."""
    known = [value for values in table.values() for value in values if value is not None]
    return fmean(known) if known else None


def _spread(values: Sequence[float | None]) -> str:
    """Return mean and deviation over seeds."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    return f"{fmean(known):.2f}" + (f" ± {stdev(known):.2f}" if len(known) > 1 else "")


def _dice(measured: Mapping[str, Any]) -> Block:
    """Return the table of segmented classes."""
    baseline = measured.get("baseline_dice", {})
    rows = [
        {"class": name, "Dice": _number(value), "atlas": _number(baseline.get(name))}
        for name, value in measured["dice"].items()
    ]
    caption = (
        "Masks of held-out volumes by the decoder over the pretrained encoder, against the stored "
        "ones; atlas: the most frequent class of each voxel in the training."
    )
    return Table(pd.DataFrame(rows), caption)


def _froc(found: Mapping[str, Any]) -> Block:
    """Return the table of detected lesions."""
    lesions, volumes = found.get("n_lesions"), found.get("n_volumes")
    caption = (
        f"Lesions found by their boxes, of {lesions} in {volumes} held-out volumes: the share that "
        f"is found where so many boxes a volume may be false (FROC), and the mean of these."
    )
    prefix = "sensitivity_at_"
    shares = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    row = {**dict(sorted(shares.items(), key=lambda at: float(at[0]))), "mean": found.get("cpm")}
    return Table(pd.DataFrame([{k: _number(v) for k, v in row.items()}]), caption)


def _with_interval(row: Mapping[str, Any], key: str) -> str:
    """Return a score and its interval."""
    interval = row.get(f"{key}_ci")
    if row[key] is None:
        return ""
    return _number(row[key]) + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
