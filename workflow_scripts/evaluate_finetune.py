"""Score the predictions of the held-out split."""

from argparse import Namespace

import pandas as pd

from ct3dlib.cohort.catalog import read_catalog
from ct3dlib.config import MaeFinetuneSpec
from ct3dlib.inference.evaluate_predictions import evaluate_predictions, join_targets, roc_curves
from ct3dlib.objectives.finetuning import targets_of
from ct3dlib.report.mae import draw_roc
from workflow_scripts.step import Arguments, run, write_json


def main(args: Namespace) -> None:
    """Draw the ROC curves, then write AUROC and other scores by finding."""
    spec: MaeFinetuneSpec = args.spec
    targets = targets_of(spec, read_catalog(args.catalog))
    predictions = pd.read_csv(args.predictions, dtype={"volume": str, "patient": str})
    found = join_targets(predictions, targets)
    metrics = evaluate_predictions(found, spec.task)
    findings = "auroc" in metrics
    args.curves.parent.mkdir(parents=True, exist_ok=True)
    args.curves.write_bytes(
        draw_roc(roc_curves(found) if findings else {}, metrics.get("auroc", {}))
    )
    write_json(args.metrics, metrics)


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(MaeFinetuneSpec)
        .paths("catalog", "predictions", "curves", "metrics"),
    )
