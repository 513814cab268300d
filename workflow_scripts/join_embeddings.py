"""Join the embeddings of a split's shards into one table."""

from argparse import Namespace

from ct3dlib.inference.embedding_tables import join_embeddings
from workflow_scripts.step import Arguments, run


def main(args: Namespace) -> None:
    """Write the table, sorted by volume."""
    join_embeddings(args.tables, args.table)


if __name__ == "__main__":
    run(main, Arguments(description=__doc__).lists("tables").paths("table"))
