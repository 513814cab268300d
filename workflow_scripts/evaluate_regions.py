"""Compare the region store with the synthetic cohort's true masks."""

from argparse import Namespace

from ct3dlib.cohort.catalog import read_catalog
from ct3dlib.cohort.private import raw_root
from ct3dlib.config import RegionsSpec
from ct3dlib.inference.evaluate_regions import evaluate_regions
from workflow_scripts.step import Arguments, run, write_json


def main(args: Namespace) -> None:
    """Write metrics/regions.json."""
    catalog = read_catalog(args.catalog)
    raw = raw_root(args.root, catalog, private=args.private)
    dice = evaluate_regions(catalog, args.regions, raw=raw)
    write_json(args.metrics, {**dice, "backend": args.spec.backend})


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(RegionsSpec)
        .paths("root", "private", "catalog", "metrics")
        .lists("regions"),
    )
