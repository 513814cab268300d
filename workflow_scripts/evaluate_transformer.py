"""Measure how well the trained transformer fills in masked tokens of the held-out splits."""

from argparse import Namespace

from ct3dlib.config import TransformerSpec
from ct3dlib.inference.loaded import load_transformer
from ct3dlib.objectives.evaluate_transformer import evaluate_transformer
from ct3dlib.training.distributed import choose_device
from ct3dlib.training.token_items import split_items
from workflow_scripts.step import Arguments, run, write_json


def main(args: Namespace) -> None:
    """Write {split: metrics}."""
    spec: TransformerSpec = args.spec
    transformer = load_transformer(args.model, choose_device(spec.device))
    train, tune, valid = (
        split_items(args.tokens, split, args.catalog, spec) for split in ("train", "tune", "valid")
    )
    held_out = {"tune": tune, "valid": valid}
    write_json(
        args.metrics, evaluate_transformer(transformer, spec, train=train, held_out=held_out)
    )


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(TransformerSpec)
        .paths("catalog", "tokens", "model", "metrics"),
    )
