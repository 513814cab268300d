"""Join a split's token shards, hold them against the catalog, write the split's marker."""

from argparse import Namespace

from ct3dlib.cohort.catalog import read_catalog
from ct3dlib.cohort.store import records, write_table
from ct3dlib.inference.encode import collect_tokens
from workflow_scripts.step import Arguments, run, write_json


def main(args: Namespace) -> None:
    """Write tokens/{split}.parquet, then tokens/{split}.done."""
    catalog = read_catalog(args.catalog)
    volumes = [row["volume"] for row in records(catalog) if row["split"] == args.split]
    table, summary = collect_tokens(volumes, args.tables)
    write_table(table, args.table)
    write_json(args.done, summary)


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .text("split")
        .lists("tables")
        .paths("catalog", "table", "done"),
    )
