"""Measure what a recipe's store holds: counts, grids, intensities, losses, duplicates, disk."""

from argparse import Namespace

from ct3dlib.cohort.catalog import read_catalog
from ct3dlib.cohort.statistics import measure
from workflow_scripts.step import Arguments, run, write_json


def main(args: Namespace) -> None:
    """Write the statistics."""
    write_json(args.statistics, measure(read_catalog(args.catalog), args.volumes))


if __name__ == "__main__":
    run(main, Arguments(description=__doc__).lists("volumes").paths("catalog", "statistics"))
