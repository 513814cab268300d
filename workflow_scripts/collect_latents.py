"""Join a split's latents, with the mean and deviation of each channel in the marker."""

from argparse import Namespace

from ct3dlib.cohort.store import write_table
from ct3dlib.inference.latents import collect_latents
from workflow_scripts.step import Arguments, run, write_json


def main(args: Namespace) -> None:
    """Write latents/{split}.parquet, then latents/{split}.done."""
    table, summary = collect_latents(args.tables)
    write_table(table, args.table)
    write_json(args.done, summary)


if __name__ == "__main__":
    run(main, Arguments(description=__doc__).lists("tables").paths("table", "done"))
