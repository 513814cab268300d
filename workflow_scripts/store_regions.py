"""Segment one shard's volumes into regions."""

from argparse import Namespace

import pandas as pd

from ct3dlib.cohort.private import RawRoot, raw_root
from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import RegionsSpec
from ct3dlib.regions.shard import segment_shard
from workflow_scripts.step import Arguments, run


def main(args: Namespace) -> None:
    """Segment the shard."""
    raw = RawRoot(args.root)
    if "labelmap" in args.spec.providers:  # nobody else has to know what a scan's files are called
        stored = stored_volumes([args.volumes])
        files = pd.DataFrame(
            {"volume": [v.volume for v in stored], "sources": [v.sources for v in stored]}
        )
        raw = raw_root(args.root, files, private=args.private)
    segment_shard(args.volumes, args.spec, raw=raw, code=args.code, status=args.status)


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(RegionsSpec)
        .paths("root", "private", "volumes", "status")
        .text("code"),
    )
