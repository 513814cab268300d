"""Compare the region store with the synthetic cohort's true masks."""

from argparse import Namespace

from ct3dlib.cohort.catalog import read_catalog
from ct3dlib.cohort.private import raw_root
from ct3dlib.inference.evaluate_regions import evaluate_regions
from workflow_scripts.step import Arguments, run, write_json


def main(args: Namespace) -> None:
    """Write metrics/regions.json."""
    catalog = read_catalog(args.catalog)
    raw = raw_root(args.root, catalog, private=args.private)
    write_json(args.metrics, evaluate_regions(catalog, args.regions, raw=raw))


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .paths("root", "private", "catalog", "metrics")
        .lists("regions"),
    )
