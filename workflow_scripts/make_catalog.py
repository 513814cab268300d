"""List every series under the raw root, split patients, spread volumes over shards."""

from argparse import Namespace

from ct3dlib.cohort.catalog import write_catalog
from ct3dlib.cohort.pseudonyms import Pseudonyms
from ct3dlib.cohort.split import load_assignments, save_assignments
from ct3dlib.config import CatalogSpec
from ct3dlib.datasets import build_catalog
from workflow_scripts.step import Arguments, run


def main(args: Namespace) -> None:
    """Write the catalog, its shards and the assignments that later runs keep."""
    previous = load_assignments(args.assignments)
    names = Pseudonyms(args.private / "key", previous.key)
    frame = build_catalog(args.root, args.spec, names=names, previous=previous)
    splits = dict(zip(frame["patient"], frame["split"], strict=True))
    save_assignments(args.assignments, splits, spec=args.spec, key=names.fingerprint)
    write_catalog(frame, args.catalog, shard_dir=args.shards, shards=args.spec.shards)


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(CatalogSpec)
        .paths("root", "private", "assignments", "catalog", "shards"),
    )
