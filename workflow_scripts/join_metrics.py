"""Join metric files named after what they measure into one object."""

import json
from argparse import Namespace

from workflow_scripts.step import Arguments, run, write_json


def main(args: Namespace) -> None:
    """Write {name of a part: its content}."""
    write_json(args.metrics, {part.stem: json.loads(part.read_text()) for part in args.parts})


if __name__ == "__main__":
    run(main, Arguments(description=__doc__).lists("parts").paths("metrics"))
