"""Bring one shard's drawn lesion masks onto the grid of its volumes."""

from argparse import Namespace

from ct3dlib.cohort.catalog import read_catalog
from ct3dlib.cohort.private import raw_root
from ct3dlib.regions.lesions import store_lesions
from workflow_scripts.step import Arguments, run


def main(args: Namespace) -> None:
    """Store the masks."""
    rows = read_catalog(args.rows)
    raw = raw_root(args.root, rows, private=args.private)
    store_lesions(args.volumes, rows, raw=raw, code=args.code, status=args.status)


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .paths("root", "private", "volumes", "rows", "status")
        .text("code"),
    )
