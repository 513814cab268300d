"""Join the status tables of a split's shards into one."""

from argparse import Namespace

import pandas as pd

from ct3dlib.cohort.store import read_table, write_table
from workflow_scripts.step import Arguments, run, write_json


def main(args: Namespace) -> None:
    """Write the table, sorted by volume, with the shards; then the marker: rows by status."""
    shards = [read_table(path).assign(shard=int(path.stem)) for path in args.tables]
    table = pd.concat(shards).sort_values("volume", ignore_index=True)
    write_table(table, args.table)
    counts = table["status"].value_counts()
    write_json(args.done, {str(status): int(number) for status, number in counts.items()})


if __name__ == "__main__":
    run(main, Arguments(description=__doc__).lists("tables").paths("table", "done"))
