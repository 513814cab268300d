"""Lay the keys of several metric files into one object."""

import json
from argparse import Namespace

from ct3dlib.errors import StoreError
from workflow_scripts.step import Arguments, run, write_json


def main(args: Namespace) -> None:
    """Write all keys; `n` is that of the first part that has one, `counts` are those of all.

    Raises:
        StoreError: Two parts say something of the same name.
    """
    merged: dict[str, object] = {}
    counts = {}
    for path in args.parts:
        part = json.loads(path.read_text())
        if "n" in part:
            counts[path.stem] = part.pop("n")
        if twice := sorted(merged.keys() & part.keys()):
            raise StoreError(f"{path}: {', '.join(twice)}: another part has it too")
        merged |= part
    first = next(iter(counts.values()), None)
    write_json(args.metrics, {**merged, "n": first, "counts": counts})


if __name__ == "__main__":
    run(main, Arguments(description=__doc__).lists("parts").paths("metrics"))
