"""Segment one shard's volumes into regions."""

from argparse import Namespace

from ct3dlib.config import RegionsSpec
from ct3dlib.regions.shard import segment_shard
from workflow_scripts.step import Arguments, run


def main(args: Namespace) -> None:
    """Segment the shard."""
    segment_shard(args.volumes, args.spec, code=args.code, status=args.status)


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__).spec(RegionsSpec).paths("volumes", "status").text("code"),
    )
