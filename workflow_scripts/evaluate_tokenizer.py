"""Measure a tokenizer's reconstructions on the held-out split."""

from argparse import Namespace

from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import TokensSpec
from ct3dlib.inference.evaluate import evaluate_tokenizer
from ct3dlib.inference.loaded import load_tokenizer
from ct3dlib.report.example import draw_example
from ct3dlib.training.distributed import choose_device
from workflow_scripts.step import Arguments, run, write_json


def main(args: Namespace) -> None:
    """Draw the first volume, then write {split: metrics}."""
    tokenizer = load_tokenizer(args.model, choose_device(args.device))
    held_out = stored_volumes(args.valid)
    batch = args.spec.windows_per_batch
    metrics = evaluate_tokenizer(
        tokenizer, stored_volumes(args.train), held_out, windows_per_batch=batch
    )
    draw_example(args.example, tokenizer, held_out[0], windows_per_batch=batch)
    write_json(args.metrics, {"valid": metrics})


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(TokensSpec)
        .paths("model", "example", "metrics")
        .text("device")
        .lists("train", "valid"),
    )
