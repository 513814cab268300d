"""List every series under the raw root, split patients, spread volumes over shards."""

from argparse import Namespace

from ct3dlib.cohort.catalog import (
    build_catalog,
    load_assignments,
    save_assignments,
    write_catalog,
)
from ct3dlib.config import CatalogSpec
from workflow_scripts.step import Arguments, run


def main(args: Namespace) -> None:
    """Write the catalog, its shards and the assignments that later runs keep."""
    frame = build_catalog(args.root, args.spec, previous=load_assignments(args.assignments))
    save_assignments(args.assignments, frame)
    write_catalog(frame, args.catalog, args.shards, args.spec)


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(CatalogSpec)
        .paths("root", "assignments", "catalog", "shards"),
    )
