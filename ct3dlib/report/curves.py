"""Training curves from a run's metrics.jsonl."""

import io
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure


def read_metrics(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Return the steps and values of each metric of a metrics.jsonl; empty where there is none."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    if not path.exists():
        return series
    for line in path.read_text().splitlines():
        row = json.loads(line)
        step = row.pop("step")
        for name, value in row.items():
            steps, values = series.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
    return series


def curves(series: dict[str, tuple[list[int], list[float]]], names: list[str]) -> bytes:
    """Return a PNG with one panel per metric, training and validation in it.

    Args:
        series: What `read_metrics` returned.
        names: Metrics without their prefix, as `loss`; those that are not there are left out.
    """
    # A training with a discriminator names the metrics of each turn.
    series = {name.replace("train/model/", "train/"): found for name, found in series.items()}
    shown = [n for n in names if f"train/{n}" in series or f"val/{n}" in series]
    figure = Figure(figsize=(4.2 * max(1, len(shown)), 2.8), layout="constrained")
    for i, name in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), i + 1)
        for split, color, marker in (("train", "#8fb3c4", ""), ("val", "#b5482f", "o")):
            if f"{split}/{name}" in series:
                steps, values = series[f"{split}/{name}"]
                axes.plot(steps, values, color=color, marker=marker, markersize=3, label=split)
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()
