"""The report's sections of numbers: how the trainings went, what was measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ct3dlib.report.curves import curves, read_metrics
from ct3dlib.report.page import Block, Figure, Section, Table

CURVES = {
    "transformer": ["loss", "bits_per_index", "accuracy_digit_0", "lr"],
    "features": ["loss", "accuracy", "anatomy_accuracy", "lr"],
}
TOKENIZER_CURVES = ["loss", "psnr_db", "code_usage", "kl", "lr"]


def training_section(runs: Sequence[Path]) -> Section:
    """Return the curves of every training, stage by stage where it had stages.

    Args:
        runs: Folders of the training runs.
    """
    blocks: list[Block] = []
    for run in runs:
        for stage in sorted(run.glob("stage-*")) or [run]:
            name = run.name if stage == run else f"{run.name}, {stage.name.replace('-', ' ')}"
            series = read_metrics(stage / "metrics.jsonl")
            drawn = curves(series, CURVES.get(run.name, TOKENIZER_CURVES))
            blocks.append(Figure(drawn, f"{name}: training and validation"))
    return Section("Training", tuple(blocks))


def measures_section(metrics: Mapping[str, Any]) -> Section:
    """Return the tables of everything that was measured on held-out volumes.

    Args:
        metrics: Contents of the metric files, by their names.
    """
    rows = [_quality(name, m["valid"]) for name, m in metrics["reconstruction"].items()]
    generation = metrics["generation"]
    shown = {k: v for k, v in generation.items() if isinstance(v, int | float)}
    blocks: list[Block] = [
        Table(
            pd.DataFrame(rows).fillna("").astype(str),
            "Reconstruction of the held-out split, mean over volumes. The seam ratio is that of "
            "the axis with the most visible borders of windows (1: as smooth as elsewhere).",
        ),
        Table(
            pd.DataFrame([{k: round(v, 4) for k, v in shown.items()}]),
            "Samples against held-out volumes (kernel and Fréchet distance on the tokenizer's "
            "features), each other (MS-SSIM; 1: all the same) and the training (PSNR to its "
            "nearest volume; a copy is nearer than any held-out volume is).",
        ),
    ]
    if "regions" in metrics:
        found = metrics["regions"]
        frame = pd.DataFrame([{"region": k, "Dice": round(v, 3)} for k, v in found["dice"].items()])
        spacing = " x ".join(f"{s:.1f}" for s in found["spacing"])
        caption = f"Regions of the {found['backend']} backend against the truth, at {spacing} mm."
        blocks.append(Table(frame, caption))
    return Section("Metrics", tuple(blocks))


def _quality(name: str, valid: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of one tokenizer."""
    tissues = {k: v for k, v in valid["hu_mae_by_tissue"].items() if k != "all"}
    return {
        "tokenizer": name,
        "PSNR (dB)": round(valid["psnr_db"], 2),
        "mean volume (dB)": _rounded(valid["mean_volume_psnr_db"]),
        "SSIM": None if valid["ssim"] is None else round(valid["ssim"], 3),
        "error (HU)": round(valid["hu_mae"], 1),
        **{f"{tissue} (HU)": _rounded(value) for tissue, value in tissues.items()},
        "seam ratio": _rounded(valid["seam_ratio"]),
        "code usage": None if valid["code_usage"] is None else f"{valid['code_usage']:.1%}",
        "perplexity": _rounded(valid["code_perplexity"]),
        "volumes": valid["n"],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
