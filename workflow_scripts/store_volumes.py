"""Store one shard's series as normalised volumes; bad ones become rejected rows."""

from argparse import Namespace

from ct3dlib.cohort.catalog import read_catalog
from ct3dlib.cohort.shard import store_shard
from ct3dlib.config import RecipeSpec
from workflow_scripts.step import Arguments, run


def main(args: Namespace) -> None:
    """Store the shard."""
    rows = read_catalog(args.rows)
    store_shard(
        rows,
        args.root,
        recipe=args.spec,
        code=args.code,
        status=args.status,
        private=args.private,
    )


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(RecipeSpec)
        .paths("root", "private", "rows", "status")
        .text("code"),
    )
