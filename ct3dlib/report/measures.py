"""The report's sections of numbers: how the trainings went, what was measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ct3dlib.report.curves import curves, read_metrics
from ct3dlib.report.page import Block, Figure, Section, Table

CURVES = {
    "transformer": ["loss", "bits_per_index", "accuracy_digit_0", "lr"],
    "classifier": ["loss", "accuracy", "lr"],
    "mae": ["loss", "baseline", "lr"],
    "mae_finetune": ["loss", "balanced_accuracy", "rmse", "lr"],
    "mae_segment": ["loss", "dice", "lr"],
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
    blocks: list[Block] = [
        Table(
            pd.DataFrame(rows).fillna("").astype(str),
            "Reconstruction of the held-out split, mean over volumes. The seam ratio is that of "
            "the axis with the most visible borders of windows (1: as smooth as elsewhere).",
        ),
        *([_transformer(metrics["transformer"])] if "transformer" in metrics else []),
        *_generation(metrics["generation"]),
    ]
    return Section("Metrics", tuple(blocks))


def _transformer(found: Mapping[str, Any]) -> Block:
    """Return the table of what the transformer learnt, a row a split."""
    keys = {
        "bits an index": "bits_per_index",
        "without context": "baseline_bits_per_index",
        "first digit right": "accuracy_digit_0",
        "without context, right": "baseline_accuracy_digit_0",
    }
    rows = [
        {"split": split, **{k: _significant(m.get(v)) for k, v in keys.items()}, "volumes": m["n"]}
        for split, m in found.items()
    ]
    return Table(
        pd.DataFrame(rows).fillna("").astype(str),
        "Masked indices as the transformer predicts them, and as one would who knows only how "
        "often each class of a digit comes in the training.",
    )


def _generation(found: Mapping[str, Any]) -> list[Block]:
    """Return the tables of samples: distances from held-out volumes, and all other numbers."""
    rows = [
        _distances(name, found, end)
        for name, end in (("samples", ""), ("training volumes, as many", "_real"))
    ]
    shown = {
        key: round(value, 4)
        for key, value in found.items()
        if isinstance(value, int | float) and not key.startswith(("kid", "frechet"))
    }
    tables = [
        Table(
            pd.DataFrame(rows).dropna(axis=1, how="all").fillna("").astype(str),
            "Distance from the held-out volumes: kernel (± its standard error) and Fréchet on the "
            "tokenizer's features, FID and KID on those of slices seen by another network. What "
            "samples as good as real ones score is in the line of the training volumes.",
        ),
        Table(
            pd.DataFrame([shown]),
            "Samples against each other (MS-SSIM; 1: all the same) and the training (PSNR to its "
            "nearest volume; a copy is nearer than any held-out volume is).",
        ),
    ]
    return [*tables, *_labels(found)]


def _labels(found: Mapping[str, Any]) -> list[Block]:
    """Return the table of how well a classifier tells what samples were asked for, if one did."""
    rows = [
        {
            "label": label,
            "samples": _share(accuracy),
            "held-out volumes": _share(found["held_out_balanced_accuracy"].get(label)),
        }
        for label, accuracy in found["label_balanced_accuracy"].items()
    ]
    if not rows:
        return []
    return [
        Table(
            pd.DataFrame(rows).fillna("").astype(str),
            "Balanced accuracy (chance: 0.5) with which a classifier that was trained on real "
            "volumes tells the label that a sample was asked for, and that of held-out volumes.",
        )
    ]


def _distances(name: str, found: Mapping[str, Any], end: str) -> dict[str, Any]:
    """Return the row of one set of volumes, whose keys have this end."""
    kid, spread = found[f"kid{end}"], found[f"kid_std{end}"]
    return {
        "volumes": name,
        "kernel": _significant(kid) if spread is None else f"{kid:.4g} ± {spread:.2g}",
        "Fréchet": _significant(found[f"frechet{end}"]),
        **{
            f"{plane} {measure.upper()}": _significant(value)
            for measure in ("fid", "kid")
            for plane, value in (found[f"slice_{measure}{end}"] or {}).items()
        },
    }


def _significant(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


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
