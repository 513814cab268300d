"""Predict what a fine-tuned model was trained to of every volume of a split."""

from argparse import Namespace

from ct3dlib.cohort.catalog import read_catalog
from ct3dlib.inference.predictor import load_predictor, predict_split
from ct3dlib.training.distributed import choose_device
from workflow_scripts.step import Arguments, run


def main(args: Namespace) -> None:
    """Write predictions/{split}.csv, one row for each volume of the catalog."""
    model = load_predictor(args.model, choose_device(args.device))
    catalog = read_catalog(args.catalog)
    rows = catalog.loc[catalog["split"] == args.split]
    frame = predict_split(model, rows, args.volumes)
    args.table.parent.mkdir(parents=True, exist_ok=True)
    partial = args.table.with_name(f"{args.table.name}.partial")
    frame.to_csv(partial, index=False, float_format="%.9g")
    partial.replace(args.table)


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .paths("model", "catalog", "table")
        .lists("volumes")
        .text("split", "device"),
    )
